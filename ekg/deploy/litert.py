"""LiteRT's .tflite file, for phones, small boards and microcontrollers."""

import re

import numpy as np
import tensorflow as tf

from ekg.deploy.formats import Format, Reader, check_float32
from ekg.deploy.packages import quiet, require
from ekg.errors import EkgError, first_line


class LiteRT(Format):
    """A .tflite file without operators of TensorFlow's own, which few runtimes have."""

    name, suffix, packages, quantizes = "litert", ".tflite", ("ai-edge-litert",), True

    def write(self, source, path):
        check_float32(source, "LiteRT")
        try:
            with quiet():
                source.model.export(
                    path,
                    format="litert",
                    verbose=False,
                    input_signature=[source.signature],
                    **_options(source),
                )
        except OSError:  # a full disk: it is named where the file is
            raise
        except Exception as error:  # the converter's own kinds, and Keras'
            raise EkgError(
                f"`model` {source.model.name!r}: LiteRT cannot take it ({why_not(error)})."
            ) from None

    def open(self, path, source=None):
        return LiteRTReader(path, source)


def _options(source):
    """Returns what the converter is told."""
    operators = tf.lite.OpsSet.TFLITE_BUILTINS
    if source.quantize is None:
        return {"target_spec": {"supported_ops": [operators]}}
    options = {
        "optimizations": [tf.lite.Optimize.DEFAULT],
        "target_spec": {"supported_ops": [operators]},
    }
    if source.quantize == "float16":
        options["target_spec"]["supported_types"] = [tf.float16]
    if source.quantize == "int8":
        options["target_spec"]["supported_ops"] = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        options |= {
            "representative_dataset": lambda: _one_by_one(source),
            "inference_input_type": tf.int8,
            "inference_output_type": tf.int8,
        }
    return options


def _one_by_one(source):
    for place in range(len(source.examples[0])):
        yield dict(zip(source.input_names, (array[place : place + 1] for array in source.examples)))


def why_not(error):
    """Returns why the converter failed; operators that LiteRT does not know by their names."""
    unknown = [
        name
        for names in re.findall(r"^(?:Custom|Flex) ops: (.+)$", str(error), re.MULTILINE)
        for name in names.split(", ")
    ]
    return f"it has no operator for {', '.join(unknown)}" if unknown else first_line(error)[:300]


class LiteRTReader(Reader):
    """A .tflite file in LiteRT on one thread."""

    def __init__(self, path, source=None):
        self._path = str(path)
        try:
            with quiet():
                self._interpreter = require("ai-edge-litert").Interpreter(
                    model_path=str(path), num_threads=1
                )
                self._interpreter.allocate_tensors()
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

    def make_pass(self, arrays):
        interpreter = require("ai-edge-litert").Interpreter(model_path=self._path, num_threads=1)
        details = interpreter.get_input_details()
        places = [
            next(entry["index"] for entry in details if f"_{name}:" in entry["name"])
            for name in self.inputs
        ]
        for place, array in zip(places, arrays):
            interpreter.resize_tensor_input(place, array.shape)
        with quiet():
            interpreter.allocate_tensors()
        return interpreter.invoke

    def run(self, arrays):
        details, results = self._runner.get_input_details(), self._runner.get_output_details()
        given = {name: _quantised(array, details[name]) for name, array in zip(self.inputs, arrays)}
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
