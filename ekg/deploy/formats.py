"""The deployment formats: each writes a network as a file and opens it again in its own runtime."""

import dataclasses

import keras
import tensorflow as tf

from ekg.errors import EkgError
from ekg.graph.calls import Graph, functional

QUANTIZATIONS = ("float16", "dynamic", "int8")


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A network on its way out.

    Attributes:
        model: the keras.Model that is written.
        graph: its Graph.
        quantize: one of QUANTIZATIONS, or None.
        examples: list of an array for each input, of which quantisation takes its ranges; None
            where it needs none.
    """

    model: keras.Model
    graph: Graph
    quantize: str | None = None
    examples: list | None = None

    @property
    def input_names(self):
        """Names of the inputs, those of the layers behind them."""
        return [symbol._keras_history.operation.name for symbol in functional(self.model).inputs]

    @property
    def output_names(self):
        """Names of the outputs in the order in which Keras flattens them: those of a dict, else
        output_0, output_1, ...
        """
        structure = functional(self.model)._outputs_struct
        if isinstance(structure, dict) and not any(map(keras.tree.is_nested, structure.values())):
            return sorted(structure)
        return [f"output_{place}" for place in range(len(self.graph.outputs))]

    @property
    def signature(self):
        """The structure of inputs as the model takes it, a tf.TensorSpec each, of any batch."""
        names = iter(self.input_names)
        return keras.tree.map_structure(
            lambda symbol: tf.TensorSpec((None, *symbol.shape[1:]), symbol.dtype, name=next(names)),
            functional(self.model)._inputs_struct,
        )


class Reader:
    """An exported network, opened in its own runtime.

    Attributes:
        inputs, outputs: their names.
        batch: "any", or the one number of examples that it takes.
    """

    inputs: list
    outputs: list
    batch = "any"

    def run(self, arrays):
        """Returns a list of an array for each output, float32 where they are quantised, for an
        array for each input.
        """
        raise NotImplementedError

    def make_pass(self, arrays):
        """Returns a function without arguments that runs the network once on these arrays, to be
        timed; None for none.
        """
        return None


class Format:
    """A deployment format.

    Attributes:
        name: as users write it.
        suffix: that its files end with; "" for a folder.
        packages: that it needs besides TensorFlow.
        folds: whether batch norms are folded before it writes.
        quantizes: whether it knows QUANTIZATIONS.
    """

    name: str
    suffix = ""
    packages = ()
    folds = True
    quantizes = False

    def write(self, source, path):
        """Writes a Source.

        Raises:
            EkgError: the format does not know an operator, or cannot hold the network otherwise.
        """
        raise NotImplementedError

    def open(self, path, source=None):
        """Returns the Reader of a file; `source` tells the order of inputs and outputs where the
        file does not.
        """
        raise NotImplementedError


def check_float32(source, what):
    """Raises EkgError if a layer computes in another format than float32."""
    for call in source.graph.calls:
        dtype = getattr(call.layer, "compute_dtype", "float32")
        if dtype in ("float16", "bfloat16"):
            raise EkgError(
                f"`model` {source.model.name!r}: layer {call.key!r} computes in {dtype}, and "
                f"{what} takes "
                "float32 alone; make the network with the policy float32 and load its weights."
            )
