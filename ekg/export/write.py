"""Writes a network in a deployment format, reads it back in its own runtime, and keeps it only if it is right."""

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path

import keras
import numpy as np

from ekg.devices.compute import full_float32
from ekg.errors import EkgError
from ekg.export.folding import fold_batch_norms
from ekg.export.formats import QUANTIZATIONS, Source
from ekg.export.keras_file import KerasFile
from ekg.export.litert import LiteRT
from ekg.export.onnx_file import Onnx
from ekg.export.packages import require
from ekg.export.saved_model import SavedModel
from ekg.graph.calls import Graph

FORMATS = {form.name: form for form in (KerasFile(), SavedModel(), LiteRT(), Onnx())}
# Greatest difference of an output, as a share of the greatest absolute output, which counts as SMALL at least.
TOLERANCES = {None: 1e-4, "float16": 1e-2, "dynamic": 0.15, "int8": 0.3}
SMALL = 0.01
MIN_EXAMPLES = 64
CHUNK = 16  # examples that run together in the parity check


@dataclasses.dataclass(frozen=True)
class Export:
    """A network that was written, and how it differs from the one in memory.

    Attributes:
        path: of the file, or of the folder of a SavedModel.
        format: name of its format.
        quantize: how its numbers are kept, or None for float32.
        size: bytes.
        inputs, outputs: their names.
        batch: "any", or the one number of examples that it takes.
        examples: on how many both were compared.
        difference: greatest absolute difference of an output.
        largest: greatest absolute output of the network in memory.
        agreement: share of examples, or of positions, with the same greatest output, of outputs with several numbers.
        reader: the formats.Reader that ran it.
    """
    path: Path
    format: str
    quantize: str | None
    size: int
    inputs: list
    outputs: list
    batch: object
    examples: int
    difference: float
    largest: float
    agreement: float | None
    reader: object = dataclasses.field(repr=False)

    def __str__(self):
        same = "" if self.agreement is None else f", same top-1 in {self.agreement:.2%}"
        return (f"{self.path}: {self.format}{'' if self.quantize is None else f' {self.quantize}'}, {self.size:,} bytes, "
                f"batch {self.batch}, {', '.join(self.inputs)} -> {', '.join(self.outputs)}; greatest difference "
                f"{self.difference:.2g} of {self.largest:.3g}{same} ({self.examples} examples)")


def export(model, path, format=None, *, quantize=None, examples=None, tolerance=None):
    """Writes a network in a deployment format and proves it against the one in memory; returns the Export.

        ekg.export(result.model, "pruned.tflite", quantize="int8", examples=images)

    Batch norms are folded into the kernels before them, but for a .keras file, which can be trained again. The file is read
    back by its own runtime: LiteRT, ONNX Runtime, or a new Python process that has TensorFlow alone. It stands in its place
    only if its outputs are right; an earlier file of that name stays otherwise.

    Args:
        model: functional or sequential keras.Model.
        path: of the file; a folder for a SavedModel.
        format: "keras", "saved_model", "litert" or "onnx"; None tells it by the ending: .keras, none, .tflite, .onnx.
        quantize: of LiteRT: "float16", "dynamic" (weights in 8 bits) or "int8" (all in 8 bits, inputs and outputs, too);
            None for float32.
        examples: array [examples, ...] of inputs as the network takes them, or a list of one for each input, at least 64;
            for int8 it gives the ranges, too, by its first half. None takes random numbers, which int8 refuses.
        tolerance: greatest difference that an output may have, as a share of the greatest output; None takes 1e-4, for
            float16 1e-2, for dynamic .15, for int8 .3.

    Raises:
        EkgError: the format is unknown or its package is missing, it does not know an operator, or the outputs differ.
    """
    form, path = _format_of(path, format), Path(path)
    _check_options(form, path, quantize, examples)
    for package in form.packages:
        require(package)
    graph = Graph(model)
    arrays = _read_examples(graph, examples, quantize)
    ranges, arrays = ([array[:len(array) // 2] for array in arrays], [array[len(array) // 2:] for array in arrays]) if (
        quantize == "int8") else (None, arrays)
    written = fold_batch_norms(model, [array.shape[1:] for array in arrays]) if form.folds else model
    source = Source(written, Graph(written), quantize, ranges)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            made = Path(folder) / path.name
            form.write(source, str(made))
            reader = form.open(made, source)
            result = _compare(model, graph, reader, arrays, form, made, quantize)
            _check(result, TOLERANCES[quantize] if tolerance is None else tolerance)
            _put(made, path)
    except OSError as error:
        raise EkgError(f"{path}: cannot be written ({error.strerror or error}).") from None
    return dataclasses.replace(result, path=path, reader=form.open(path, source))


def _format_of(path, name):
    """Returns the Format that is named, or that the ending of a path tells."""
    suffix = Path(path).suffix
    if name is None:
        form = next((form for form in FORMATS.values() if form.suffix == suffix), None)
        if form is None:
            endings = ", ".join(f"{form.suffix or 'no ending'} ({form.name})" for form in FORMATS.values())
            raise EkgError(f"`path` {path}: no known ending; there are {endings}, or name the `format`.")
        return form
    if name not in FORMATS:
        raise EkgError(f"`format` must be one of {list(FORMATS)}; received {name!r}.")
    if FORMATS[name].suffix != suffix and FORMATS[name].suffix:
        raise EkgError(f"`path` {path}: a file of the format {name} ends with {FORMATS[name].suffix}.")
    return FORMATS[name]


def _check_options(form, path, quantize, examples):
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise EkgError(f"`quantize` must be one of {list(QUANTIZATIONS)}, or None; received {quantize!r}.")
    if quantize is not None and not form.quantizes:
        raise EkgError(f"`quantize` {quantize} has no effect here: the format {form.name} keeps float32; leave it out.")
    if quantize == "int8" and examples is None:
        raise EkgError("`examples` are needed for `quantize` int8: inputs from the training data, which give the ranges.")
    if path.is_dir() and (form.suffix or not (path / "saved_model.pb").exists() and any(path.iterdir())):
        raise EkgError(f"{path}: is a folder with other files; name another.")
    if path.is_file() and not form.suffix:
        raise EkgError(f"{path}: is a file, and a SavedModel is a folder; name another.")


def _read_examples(graph, examples, quantize):
    """Returns a list of an array for each input."""
    if examples is None:
        generator = np.random.default_rng(0)
        if any(None in graph.shapes[number][1:] for number in graph.inputs):
            raise EkgError(f"`examples` are needed: `model` {graph.model.name!r} takes inputs of any size, and they "
                           "tell one to compare at.")
        return [_random(generator, graph, number) for number in graph.inputs]
    several = isinstance(examples, (list, tuple, dict))
    arrays = [np.asarray(array) for array in (keras.tree.flatten(examples) if several else [examples])]
    least = 2 * MIN_EXAMPLES if quantize == "int8" else MIN_EXAMPLES
    if len(arrays) != len(graph.inputs):
        raise EkgError(f"`examples` must be an array for each of the {len(graph.inputs)} inputs; received {len(arrays)}.")
    for array, number in zip(arrays, graph.inputs):
        shape = graph.shapes[number][1:]
        if array.ndim != len(shape) + 1 or any(own not in (None, size) for own, size in zip(shape, array.shape[1:])):
            raise EkgError(f"`examples` have the shape {array.shape}, and the network takes {(None, *shape)}.")
        if len(array) < least:
            raise EkgError(f"`examples`: {len(array)} are too few; {least} are needed at least.")
    return [array.astype(graph.dtype(number)) for array, number in zip(arrays, graph.inputs)]


def _random(generator, graph, number):
    shape, dtype = (MIN_EXAMPLES, *graph.shapes[number][1:]), np.dtype(graph.dtype(number))
    return generator.normal(size=shape).astype(dtype) if np.issubdtype(dtype, np.floating) else np.ones(shape, dtype)


def _compare(model, graph, reader, arrays, form, path, quantize):
    """Returns the Export of a file whose outputs stand beside those of the network in memory."""
    number = len(arrays[0])
    step = number if form.name in ("keras", "saved_model") else CHUNK if reader.batch == "any" else reader.batch
    ours, theirs = [], []
    for begin in range(0, number - number % step if reader.batch != "any" else number, step):
        part = [array[begin:begin + step] for array in arrays]
        theirs.append(reader.run(part))
        with full_float32():
            ours.append([np.asarray(keras.ops.cast(value, "float32")) for value in keras.tree.flatten(
                model(graph.structured_inputs(part), training=False))])
    ours, theirs = ([np.concatenate(values) for values in zip(*parts)] for parts in (ours, theirs))
    shapes = [value.shape for value in ours], [value.shape for value in theirs]
    if shapes[0] != shapes[1]:
        raise EkgError(f"{path.name}: the exported network returns {shapes[1]}, and the one in memory {shapes[0]}; the file "
                       "is not kept.")
    difference = max(float(np.abs(mine - other).max()) for mine, other in zip(ours, theirs))
    largest = max(float(np.abs(mine).max()) for mine in ours)
    tops = [(mine.argmax(-1), other.argmax(-1)) for mine, other in zip(ours, theirs) if mine.shape[-1] > 1 and mine.ndim > 1]
    agreement = float(np.mean(np.concatenate([(mine == other).ravel() for mine, other in tops]))) if tops else None
    return Export(path, form.name, quantize, _size(path), reader.inputs, reader.outputs, reader.batch, number, difference,
                  largest, agreement, reader)


def _check(result, tolerance):
    """Raises EkgError unless what was read back says what the network in memory says."""
    if not result.difference <= tolerance * max(result.largest, SMALL if result.quantize is None else 0):
        raise EkgError(f"{result.path.name}: the exported network differs by {result.difference:.3g} where the greatest "
                       f"output is {result.largest:.3g}; {tolerance:g} of it is allowed (`tolerance`). The file is not "
                       "kept.")


def _size(path):
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size


def _put(made, path):
    """Moves what was made into its place."""
    if path.is_dir():
        shutil.rmtree(path)
    os.replace(made, path)
