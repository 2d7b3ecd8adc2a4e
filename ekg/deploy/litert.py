"""LiteRT's .tflite file, for phones, small boards and microcontrollers."""

import contextlib
import functools
import logging
import re
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from ekg.deploy.format import Format, Reader, batched_shape, check_float32, random_inputs
from ekg.deploy.packages import quiet, require
from ekg.devices.compute import in_graph
from ekg.errors import EkgError, first_line
from ekg.graph.calls import Graph

logger = logging.getLogger(__name__)


class LiteRT(Format):
    """A .tflite file without operators of TensorFlow's own, which few runtimes have.

    It takes any batch. Where the converter needs a fixed one, as for recurrent layers, it takes one
    example at a time.
    """

    name, suffix, packages, quantizes = "litert", ".tflite", ("ai-edge-litert",), True
    runtime, timed_with = "litert", ("ai-edge-litert",)

    def write(self, source, path):
        check_float32(source, "LiteRT")
        try:
            with quiet():
                takes_any = _write_any(source, path)
        except OSError:  # a full disk: the caller names the file
            raise
        except Exception as error:  # the converter's own types, and Keras'
            raise EkgError(
                f"`model` {source.model.name!r}: LiteRT cannot take it ({why_not(error)})."
            ) from None
        if not takes_any:
            logger.info(
                "%r is written for one example at a time: LiteRT's converter needs a fixed batch",
                source.model.name,
            )

    def open(self, path, source=None):
        return LiteRTReader(path, source)

    def timed(self, model, batch, threads=None, input_shape=None):
        try:
            return super().timed(model, batch, threads, input_shape)
        except EkgError as error:
            # Recurrent layers, say, convert for a fixed batch only; there is no file of this one.
            run = self._timed_at(model, batch, threads, input_shape)
            logger.info("timed at batch %d only: %s", batch, error)
            return run

    def timed_part(self, model, batch, threads=None):
        """Converts a part for this batch only: six times as fast as writing a file."""
        return self._timed_at(model, batch, threads)

    def _timed_at(self, model, batch, threads, input_shape=None):
        _, model = self.prepare(model, input_shape)
        graph = Graph(model, input_shape)
        content = _convert(model, graph, batch)
        interpreter = _interpreter(threads, model_content=content)
        with quiet():
            interpreter.allocate_tensors()
        details = interpreter.get_input_details()
        for entry, array in zip(details, _in_order(details, random_inputs(graph, batch))):
            interpreter.set_tensor(entry["index"], array)
        return interpreter.invoke


def _write_any(source, path):
    """Writes a Source for any batch, or else for one example; returns whether for any."""
    try:
        _write(source, path, None)
    except OSError:
        raise
    except Exception as error:  # the converter's own types, and Keras'
        if _unknown_operators(error):
            raise
        try:
            _write(source, path, 1)
        except OSError:
            raise
        except Exception:
            raise error from None  # it says more than the second
        return False
    return True


def _write(source, path, batch):
    """Writes a Source for a number of examples; None for any.

    Keras' own export has the converter read a SavedModel with all layers and variables; one of a
    single function with constants takes a quarter of the time and gives the same outputs.
    """
    signature = [source.signature_for(batch)]
    function = in_graph(
        functools.partial(source.model.__call__, training=False), input_signature=signature
    ).get_concrete_function()
    # The converter knows `while` and `if` as functions only.
    frozen = convert_variables_to_constants_v2(function, lower_control_flow=False)

    def serve(*inputs):
        outputs = tf.nest.flatten(frozen(*tf.nest.flatten(inputs)))
        return tf.nest.pack_sequence_as(function.structured_outputs, outputs)

    module = tf.Module()
    module.serve = in_graph(serve, input_signature=signature)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=module.serve)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        _set_options(converter, source)
        Path(path).write_bytes(converter.convert())


def _interpreter(threads, **model):
    return require("ai-edge-litert").Interpreter(num_threads=threads, **model)


def _convert(model, graph, batch):
    """Returns a model of a fixed batch as the bytes of a .tflite file."""
    specs = [
        tf.TensorSpec(batched_shape(graph, number, batch), graph.dtype(number), f"input_{place}")
        for place, number in enumerate(graph.inputs)
    ]

    @functools.partial(in_graph, input_signature=specs)
    def function(*inputs):
        return tf.nest.flatten(model(graph.structured_inputs(list(inputs)), training=False))

    try:
        with quiet():
            return tf.lite.TFLiteConverter.from_concrete_functions(
                [function.get_concrete_function()]
            ).convert()
    except Exception as error:  # the converter's own types
        raise EkgError(
            f"`model` {model.name!r}: LiteRT cannot take it ({why_not(error)})."
        ) from None


def _in_order(details, arrays):
    """Returns the arrays of input_0, input_1, ... in the order in which an interpreter has them."""
    numbers = [int(entry["name"].split(":")[0].rpartition("_")[2]) for entry in details]
    return [arrays[number] for number in numbers]


def _set_options(converter, source):
    operators = tf.lite.OpsSet.TFLITE_BUILTINS
    if source.quantize is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if source.quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if source.quantize == "int8":
        operators = tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        converter.representative_dataset = lambda: _one_by_one(source)
        converter.inference_input_type = converter.inference_output_type = tf.int8
    converter.target_spec.supported_ops = [operators]


def _one_by_one(source):
    for place in range(len(source.examples[0])):
        yield dict(zip(source.input_names, (array[place : place + 1] for array in source.examples)))


def why_not(error):
    """Returns why the converter failed: the names of operators that LiteRT does not know, or its
    message.
    """
    unknown = _unknown_operators(error)
    return f"it has no operator for {', '.join(unknown)}" if unknown else first_line(error)[:300]


def _unknown_operators(error):
    return [
        name
        for names in re.findall(r"^(?:Custom|Flex) ops: (.+)$", str(error), re.MULTILINE)
        for name in names.split(", ")
    ]


class LiteRTReader(Reader):
    """A .tflite file in LiteRT, on one thread unless a pass is timed on more."""

    def __init__(self, path, source=None):
        self._path = str(path)
        try:
            with quiet():
                self._interpreter = _interpreter(1, model_path=str(path))
                # Memory is allocated for each run: a network of any size fails at size 1.
                self._runner = self._interpreter.get_signature_runner()
        except ValueError as error:
            raise EkgError(f"{path}: LiteRT cannot read it ({first_line(error)}).") from None
        details, results = self._runner.get_input_details(), self._runner.get_output_details()
        self.inputs = (
            list(source.input_names)
            if source and set(source.input_names) == set(details)
            else sorted(details)
        )
        self.outputs = (
            list(source.output_names)
            if source and set(source.output_names) == set(results)
            else sorted(results)
        )
        self.batch = (
            "any"
            if all(entry["shape_signature"][0] == -1 for entry in details.values())
            else int(next(iter(details.values()))["shape"][0])
        )

    def make_pass(self, arrays, threads=None):
        if self.batch not in ("any", len(arrays[0])):
            raise EkgError(f"{self._path}: it takes a batch of {self.batch} only.")
        content = Path(self._path).read_bytes()  # the file may go before the pass
        interpreter = _interpreter(threads or 1, model_content=content)
        details = self._runner.get_input_details()
        entries = [details[name] for name in self.inputs]
        for entry, array in zip(entries, arrays):
            interpreter.resize_tensor_input(entry["index"], array.shape)
        with self._naming_failures(), quiet():
            interpreter.allocate_tensors()
            for entry, array in zip(entries, arrays):
                interpreter.set_tensor(entry["index"], _quantised(array, entry))
            interpreter.invoke()
        return interpreter.invoke

    @contextlib.contextmanager
    def _naming_failures(self):
        try:
            yield
        except RuntimeError as error:  # the interpreter's only type
            raise EkgError(f"{self._path}: LiteRT cannot run it ({first_line(error)}).") from None

    def run(self, arrays):
        details, results = self._runner.get_input_details(), self._runner.get_output_details()
        given = {name: _quantised(array, details[name]) for name, array in zip(self.inputs, arrays)}
        with self._naming_failures():
            values = self._runner(**given)
        return [_dequantised(values[name], results[name]) for name in self.outputs]


def _quantised(array, details):
    scales = details["quantization_parameters"]
    if not len(scales["scales"]) or details["dtype"] == np.float32:
        return np.asarray(array, details["dtype"])
    limits = np.iinfo(details["dtype"])
    levels = (
        np.round(np.asarray(array, np.float32) / scales["scales"][0]) + scales["zero_points"][0]
    )
    return np.clip(levels, limits.min, limits.max).astype(details["dtype"])


def _dequantised(array, details):
    scales = details["quantization_parameters"]
    if not len(scales["scales"]) or details["dtype"] == np.float32:
        return np.array(array)
    return (array.astype(np.float32) - scales["zero_points"][0]) * scales["scales"][0]
