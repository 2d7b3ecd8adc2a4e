"""The runtimes whose latency is measured: each loads a network and runs it on one batch.

Optional packages are imported where they are used.
"""

import functools
import importlib.metadata
import platform

import numpy as np
import tensorflow as tf

from ekg.deploy.litert import why_not
from ekg.deploy.packages import quiet, require
from ekg.devices import kind
from ekg.devices.compute import compiled, in_graph
from ekg.errors import EkgError, first_line
from ekg.graph.calls import Graph
from ekg.graph.execute import ExecutionOptions, pure_forward, read_variables

OPSET = 17  # of ONNX
AS_DEPLOYED = ExecutionOptions(tile_norms=False)


class Runtime:
    """What runs a network.

    Attributes:
        name: as users write it.
        packages: names of the packages whose versions a measurement depends on.
    """

    name: str
    packages: tuple[str, ...]

    def load(self, model, batch, threads, input_shape=None):
        """Returns a function without arguments that runs a model once on a batch of random inputs
        and waits for the result.

        Args:
            model: functional keras.Model.
            batch: examples.
            threads: that one pass may use; None takes what the runtime takes by itself.
            input_shape: of an example, where the model takes any size.

        Raises:
            EkgError: the runtime is not installed, or does not know an operator of the model.
        """
        raise NotImplementedError

    def versions(self):
        """Returns {package: version}, of what a measurement depends on."""
        found = {"tensorflow": tf.__version__}
        for package in self.packages:
            require(package)
            found[package] = importlib.metadata.version(package)
        return found


class TensorFlow(Runtime):
    """TensorFlow in this process, with its own threads, on the GPU if there is one."""

    name, packages = "tensorflow", ()

    def __init__(self, use_xla=False):
        self._use_xla = use_xla

    def load(self, model, batch, threads, input_shape=None):
        if threads is not None:
            raise EkgError(
                "`threads` has no effect here: TensorFlow's threads are those of the process; "
                "leave it out."
            )
        forward, variables = (
            compiled(pure_forward(model, AS_DEPLOYED), "forward pass", self._use_xla),
            read_variables(model),
        )
        graph = Graph(model, input_shape)
        inputs = graph.structured_inputs(list(map(tf.constant, _random_inputs(graph, batch))))

        def run():
            for output in tf.nest.flatten(forward(*variables, inputs, False)[0]):
                output.numpy()

        return run


class LiteRT(Runtime):
    """LiteRT on the CPU, as on phones and small boards."""

    name, packages = "litert", ("ai-edge-litert",)

    def load(self, model, batch, threads, input_shape=None):
        interpreter = require("ai-edge-litert").Interpreter(
            model_content=_convert(model, batch, input_shape), num_threads=threads
        )
        with quiet():
            interpreter.allocate_tensors()
        generator = np.random.default_rng(0)
        for details in interpreter.get_input_details():
            interpreter.set_tensor(
                details["index"], _random(generator, details["shape"], details["dtype"])
            )
        return interpreter.invoke


class OnnxRuntime(Runtime):
    """ONNX Runtime, on the GPU if its package and the machine have one."""

    name, packages = "onnxruntime", ("onnxruntime", "tf2onnx")

    def load(self, model, batch, threads, input_shape=None):
        runtime, converter = require("onnxruntime"), require("tf2onnx")
        graph, function, spec = _frozen(model, batch, input_shape)
        try:
            with quiet():
                proto, _ = converter.convert.from_function(function, spec, opset=OPSET)
        except Exception as error:  # tf2onnx raises whatever it meets
            raise EkgError(
                f"`model` {model.name!r}: cannot be written as ONNX ({first_line(error)[:300]})."
            ) from None
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        session = runtime.InferenceSession(
            proto.SerializeToString(), options, runtime.get_available_providers()
        )
        given = dict(
            zip([entry.name for entry in session.get_inputs()], _random_inputs(graph, batch))
        )
        return lambda: session.run(None, given)


RUNTIMES = {runtime.name: runtime for runtime in (TensorFlow(), LiteRT(), OnnxRuntime())}


def runtime_named(name):
    """Returns the Runtime of this name.

    Raises:
        EkgError: there is none.
    """
    if name not in RUNTIMES:
        raise EkgError(f"`runtime` must be one of {sorted(RUNTIMES)}; received {name!r}.")
    return RUNTIMES[name]


def machine():
    """Returns {what: value} of this machine that a latency depends on."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = dict(
                line.split(":", 1)
                for line in file.read().split("\n\n")[0].splitlines()
                if ":" in line
            )
        processor = {name.strip(): value.strip() for name, value in lines.items()}
        model = " ".join(
            processor.get(name, "") for name in ("model name", "cpu family", "model")
        ).strip()
    except OSError:
        model = platform.processor()
    return {
        "processor": model or platform.machine(),
        "architecture": platform.machine(),
        "gpus": kind.gpu_names(),
    }


def _frozen(model, batch, input_shape):
    """Returns (Graph, tf.function of the model with its weights as constants, list of a TensorSpec
    for each input).
    """
    graph, forward = Graph(model, input_shape), pure_forward(model, AS_DEPLOYED)
    trainable, other = ([value.numpy() for value in values] for values in read_variables(model))
    specs = [
        tf.TensorSpec(_batched(graph, number, batch), graph.dtype(number), name=f"input_{place}")
        for place, number in enumerate(graph.inputs)
    ]

    @functools.partial(in_graph, input_signature=specs)
    def function(*inputs):
        constants = ([tf.constant(value) for value in values] for values in (trainable, other))
        return tf.nest.flatten(forward(*constants, graph.structured_inputs(list(inputs)), False)[0])

    return graph, function, specs


def _convert(model, batch, input_shape):
    """Returns a model of a fixed batch as the bytes of a .tflite file, without operators of
    TensorFlow's own.
    """
    _, function, _ = _frozen(model, batch, input_shape)
    try:
        with quiet():
            return tf.lite.TFLiteConverter.from_concrete_functions(
                [function.get_concrete_function()]
            ).convert()
    except Exception as error:  # the converter's own kinds
        raise EkgError(
            f"`model` {model.name!r}: LiteRT cannot take it ({why_not(error)})."
        ) from None


def _batched(graph, number, batch):
    return int(batch * graph.rows[number]), *graph.shapes[number][1:]


def _random_inputs(graph, batch):
    generator = np.random.default_rng(0)
    return [
        _random(generator, _batched(graph, number, batch), np.dtype(graph.dtype(number)))
        for number in graph.inputs
    ]


def _random(generator, shape, dtype):
    if np.issubdtype(dtype, np.floating):
        return generator.random(tuple(shape)).astype(dtype)
    return np.ones(tuple(shape), dtype)  # a class number, an index of a row
