"""The base of deployment formats: write a network, open the file again, and time it."""

import dataclasses
import importlib.metadata
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ekg.deploy.folding import fold_batch_norms
from ekg.deploy.inference import in_float32
from ekg.deploy.packages import require
from ekg.errors import EkgError
from ekg.graph.calls import Graph, functional

QUANTIZATIONS = ("float16", "dynamic", "int8")


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A network to write.

    Attributes:
        model: the keras.Model that is written.
        graph: its Graph.
        quantize: one of QUANTIZATIONS, or None.
        examples: list of an array for each input, from which quantisation takes its ranges; None
            where it needs none.
    """

    model: keras.Model
    graph: Graph
    quantize: str | None = None
    examples: list | None = None

    @property
    def input_names(self):
        """Names of the inputs: of their input layers."""
        return [symbol._keras_history.operation.name for symbol in functional(self.model).inputs]

    @property
    def output_names(self):
        """Names of the outputs in the order in which Keras flattens them: the keys of a dict, or
        output_0, output_1, ...
        """
        structure = functional(self.model)._outputs_struct
        if isinstance(structure, dict) and not any(map(keras.tree.is_nested, structure.values())):
            return sorted(structure)
        return [f"output_{place}" for place in range(len(self.graph.outputs))]

    @property
    def signature(self):
        """The structure of inputs as the model takes it, with a tf.TensorSpec of any batch each."""
        return self.signature_for(None)

    def signature_for(self, batch):
        """Returns the signature for a number of examples; None for any."""
        names = iter(self.input_names)
        return keras.tree.map_structure(
            lambda symbol: tf.TensorSpec(
                (batch, *symbol.shape[1:]), symbol.dtype, name=next(names)
            ),
            functional(self.model)._inputs_struct,
        )


class Reader:
    """An exported network, opened in its own runtime.

    Attributes:
        inputs, outputs: names of its inputs and outputs.
        batch: "any", or the only number of examples that it takes.
    """

    inputs: list
    outputs: list
    batch = "any"

    def run(self, arrays):
        """Returns a list of one array per output, float32 where they are quantised, for one array
        per input.
        """
        raise NotImplementedError

    def make_pass(self, arrays, threads=None):
        """Returns a function without arguments that runs the network once on these arrays, to be
        timed; None if the format cannot be timed.

        Args:
            arrays: list of one array per input.
            threads: threads of a pass; None takes the default of the runtime.
        """
        return None


class Format:
    """A deployment format: writes a network, opens the file again, and times it.

    Attributes:
        name: as users write it.
        suffix: ending of its files; "" for a folder.
        packages: packages that it needs besides TensorFlow.
        folds: whether batch norms are folded before it writes.
        quantizes: whether it knows QUANTIZATIONS.
        runtime: name of the runtime in which its files are timed; None if they are not.
        timed_with: packages whose versions a time depends on, besides TensorFlow.
    """

    name: str
    suffix = ""
    packages: tuple[str, ...] = ()
    folds = True
    quantizes = False
    runtime: str | None = None
    timed_with: tuple[str, ...] = ()

    def write(self, source, path):
        """Writes a Source.

        Raises:
            EkgError: the format does not know an operator, or cannot hold the network otherwise.
        """
        raise NotImplementedError

    def open(self, path, source=None):
        """Returns the Reader of a file; `source` says the order of inputs and outputs where the
        file does not.
        """
        raise NotImplementedError

    def prepare(self, model, input_shape=None):
        """Returns (the network as it computes in inference, the network that is written).

        Args:
            model: functional or sequential keras.Model.
            input_shape: shape of an example, or a list of them, where the model takes any size.
        """
        if not self.folds:
            return model, model
        model = in_float32(model, input_shape)
        return model, fold_batch_norms(model, input_shape)

    def timed(self, model, batch, threads=None, input_shape=None):
        """Returns a function without arguments that runs a network once, as export() writes it, on
        a batch of random inputs, and waits for the result.

        Args:
            model: functional keras.Model.
            batch: number of examples.
            threads: threads that one pass may use; None takes the default of the runtime.
            input_shape: shape of an example, where the model takes any size.

        Raises:
            EkgError: the runtime is not installed, or does not know an operator of the model.
        """
        _, written = self.prepare(model, input_shape)
        source = Source(written, Graph(written, input_shape))
        with tempfile.TemporaryDirectory(prefix="ekg-") as folder:
            path = Path(folder) / f"network{self.suffix}"
            self.write(source, str(path))
            return self.timed_file(path, source, batch, threads)

    def timed_file(self, path, source, batch, threads=None):
        """Returns what timed() does, for a file of a Source."""
        return self.open(path, source).make_pass(random_inputs(source.graph, batch), threads)

    def timed_part(self, model, batch, threads=None):
        """Returns what timed() does, for a part of a network that is never written by itself.

        A table times hundreds of parts: a format whose files take seconds to write may take a
        shorter way to the same operations.
        """
        return self.timed(model, batch, threads)

    def versions(self):
        """Returns {package: version} of all packages that a time depends on."""
        found = {"tensorflow": tf.__version__}
        for package in self.timed_with:
            require(package)
            found[package] = importlib.metadata.version(package)
        return found


def random_inputs(graph, batch, draw=None):
    """Returns a list of one random array per input of a Graph; integers are all 1, texts one word.

    Args:
        graph: calls.Graph.
        batch: number of examples.
        draw: function from `size` to random numbers; None draws from [0, 1).
    """
    draw, values = draw or np.random.default_rng(0).random, []
    for number in graph.inputs:
        shape, dtype = batched_shape(graph, number, batch), graph.dtype(number)
        if dtype == "string":
            values.append(np.full(shape, b"text", object))
        elif np.issubdtype(np.dtype(dtype), np.floating):
            values.append(draw(size=shape).astype(dtype))
        else:
            values.append(np.ones(shape, dtype))
    return values


def batched_shape(graph, number, batch):
    """Returns the shape of a tensor of a Graph for this number of examples."""
    if not graph.rows[number]:  # a weight
        return graph.shapes[number]
    return int(batch * graph.rows[number]), *graph.shapes[number][1:]


def check_float32(source, what):
    """Raises EkgError if a layer computes in another dtype than float32."""
    for call in source.graph.calls:
        dtype = getattr(call.layer, "compute_dtype", "float32")
        if dtype in ("float16", "bfloat16"):
            raise EkgError(
                f"`model` {source.model.name!r}: layer {call.key!r} computes in {dtype}, and "
                f"{what} takes float32 alone; make the network with the policy float32 and load "
                "its weights."
            )
