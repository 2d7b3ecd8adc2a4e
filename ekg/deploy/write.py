"""Exports: writes a network in a deployment format, and keeps the file only if it is right."""

import dataclasses
import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ekg.data.inputs import Inputs, as_dtype
from ekg.data.own import make_data
from ekg.deploy import proof
from ekg.deploy.format import QUANTIZATIONS, Reader, Source, random_inputs
from ekg.deploy.formats import format_of
from ekg.deploy.fresh import FreshReader
from ekg.deploy.inference import is_random
from ekg.deploy.packages import require
from ekg.devices.compute import full_float32, in_graph
from ekg.errors import EkgError
from ekg.graph import groups
from ekg.graph.calls import Graph
from ekg.io.files import check_paths
from ekg.tasks.logits import squash_of
from ekg.tasks.metrics import has_metric, metric_named

MIN_EXAMPLES = 64
COMPARED_TOGETHER = 16  # examples that run together in the comparison


@dataclasses.dataclass(frozen=True)
class Export:
    """A network that was written, and how it differs from the one in memory.

    Attributes:
        path: path of the file, or of the folder of a SavedModel.
        format: name of its format.
        quantize: quantisation of its numbers, or None for float32.
        size: number of bytes.
        inputs, outputs: names of its inputs and outputs.
        batch: "any", or the only number of examples that it takes.
        examples: number of examples that were compared.
        difference: greatest absolute difference of an output.
        largest: greatest absolute output of the network in memory.
        agreement: share of examples, or of positions, with the same greatest output, over outputs
            with several numbers.
        reader: the format.Reader that ran it.
        share: greatest difference of a channel of an output, as a share of that channel's own
            range; see proof.scales_of.
        channel: (name of that output, number of the channel).
        metrics: {metric of the task: (value of the network in memory, value of the exported one)},
            if labels were given.
    """

    path: Path
    format: str
    quantize: str | None
    size: int
    inputs: list[str]
    outputs: list[str]
    batch: str | int
    examples: int
    difference: float
    largest: float
    agreement: float | None
    reader: Reader = dataclasses.field(repr=False)
    share: float = 0.0
    channel: tuple[str, int] = ("", 0)
    metrics: dict = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        same = "" if self.agreement is None else f", same top-1 in {self.agreement:.2%}"
        measured = "".join(
            f", {metric_named(name).title if has_metric(name) else name} "
            f"{_metric_text(name, other)} ({_metric_text(name, mine)} in memory)"
            for name, (mine, other) in self.metrics.items()
        )
        return (
            f"{self.path}: {self.format}{'' if self.quantize is None else f' {self.quantize}'}, "
            f"{self.size:,} bytes, batch {self.batch}, {', '.join(self.inputs)} -> "
            f"{', '.join(self.outputs)}; greatest difference {self.difference:.2g} of "
            f"{self.largest:.3g}, at most {self.share:.2g} of a channel's range "
            f"({self.channel[0]}, channel {self.channel[1]}){same}{measured} ({self.examples} "
            "examples)"
        )


def _metric_text(name, value):
    return metric_named(name).text(value) if has_metric(name) else f"{value:.4f}"


def export(
    model: keras.Model,
    path: str | Path,
    format: str | None = None,
    *,
    quantize: str | None = None,
    examples: Any = None,
    labels: Any = None,
    task: Any = "auto",
    tolerance: float | None = None,
) -> Export:
    """Writes a network in a deployment format, and checks it against the one in memory; returns the
    Export.

        ekg.export(result.model, "pruned.tflite", quantize="int8", examples=images, labels=labels)

    Batch norms are folded into the kernels before them, random layers work as in inference, and
    mixed dtype policies become float32, except in a .keras file, which can be trained again. The
    file is read back by its own runtime: LiteRT, ONNX Runtime, or a new Python process with
    TensorFlow only. It is kept only if its outputs are right; otherwise an earlier file of that
    name stays. Differences of every channel are relative to its own range, so that a small channel
    beside large ones counts as much. With labels, the task's shares of right answers, as top-1,
    decide about the output of a quantised network instead: they may be .02 lower, beyond two
    standard errors.

    Args:
        model: functional or sequential keras.Model.
        path: path of the file, or of the folder of a SavedModel.
        format: "keras", "saved_model", "litert" or "onnx"; None goes by the ending: .keras, none,
            .tflite, .onnx.
        quantize: for LiteRT: "float16", "dynamic" (weights in 8 bits) or "int8" (everything in 8
            bits, also inputs and outputs); None for float32.
        examples: array [examples, ...] of at least 64 inputs as the network takes them, or a dict,
            tuple or list of one per input; for int8 the first half also gives the ranges. None
            takes random numbers, which int8 refuses.
        labels: labels of the examples, as ekg.prune takes them; or None.
        task: task of the labels, as ekg.prune takes it.
        tolerance: greatest difference of a channel, as a share of its range, which then decides
            even with labels. None takes 1e-4, for float16 1e-2, for dynamic .15, for int8 .3.

    Raises:
        EkgError: the format is unknown or its package is missing, it lacks an operator, or the
            outputs differ.
    """
    check_paths({"path": path})
    form, path = format_of(path, format), Path(path)
    _check_options(form, path, quantize, examples, labels)
    for package in form.packages:
        require(package)
    arrays = _read_examples(Graph(model), examples, quantize)
    labels = _make_labels(model, arrays, labels, task)
    model, source, arrays, labels = _prepare(model, form, quantize, arrays, labels)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            draft = Path(folder) / path.name
            form.write(source, str(draft))
            reader = form.open(draft, source)
            comparison = _compare(model, reader, arrays, source, draft, labels)
            _check(comparison, model, source, arrays, reader, draft.name, labels, tolerance)
            size = _size(draft)
            _put(draft, path)
    except OSError as error:
        raise EkgError(f"{path}: cannot be written ({error.strerror or error}).") from None
    share, number, channel = comparison.worst()
    return Export(
        path,
        form.name,
        quantize,
        size,
        reader.inputs,
        reader.outputs,
        reader.batch,
        comparison.examples,
        comparison.difference,
        comparison.largest,
        comparison.agreement,
        form.open(path, source),
        share,
        (reader.outputs[number], channel),
        comparison.metrics,
    )


def _prepare(model, form, quantize, arrays, labels):
    """Returns (network to compare with, Source, examples to compare on, their Labels or None)."""
    ranges, shapes = None, [array.shape[1:] for array in arrays]
    if quantize == "int8":
        half = len(arrays[0]) // 2
        ranges, arrays = [array[:half] for array in arrays], [array[half:] for array in arrays]
        labels = (
            None if labels is None else dataclasses.replace(labels, values=labels.values[half:])
        )
    model, written = form.prepare(model, shapes)
    return model, Source(written, Graph(written), quantize, ranges), arrays, labels


def _check(comparison, model, source, arrays, reader, what, labels, tolerance):
    """Raises EkgError, with the cause if it is known, unless the file computes what the network in
    memory computes.
    """
    try:
        proof.check(
            comparison,
            what,
            reader.outputs,
            source.quantize,
            tolerance,
            () if labels is None else labels.task.outputs,
        )
    except EkgError:
        few = [array[:COMPARED_TOGETHER] for array in arrays]
        if is_random(model, source.graph.structured_inputs(few)):
            raise EkgError(
                f"{what}: `model` {model.name!r} is random in inference, too: two passes over the "
                "same examples differ, so it cannot be compared; remove the random layer. The "
                "file is not kept."
            ) from None
        raise


def _check_options(form, path, quantize, examples, labels):
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise EkgError(
            f"`quantize` must be one of {list(QUANTIZATIONS)}, or None; received {quantize!r}."
        )
    if quantize is not None and not form.quantizes:
        raise EkgError(
            f"`quantize` {quantize} has no effect here: the format {form.name} keeps float32; "
            "leave it out."
        )
    if quantize == "int8" and examples is None:
        raise EkgError(
            "`examples` are needed for `quantize` int8: inputs from the training data, which "
            "give the ranges."
        )
    if labels is not None and examples is None:
        raise EkgError(
            "`labels` have no effect here: they belong to `examples`, which are not given."
        )
    if path.is_dir() and (
        form.suffix or not (path / "saved_model.pb").exists() and any(path.iterdir())
    ):
        raise EkgError(f"{path}: is a folder with other files; name another.")
    if path.is_file() and not form.suffix:
        raise EkgError(f"{path}: is a file, and a SavedModel is a folder; name another.")


def _read_examples(graph, examples, quantize):
    """Returns a list of one array per input."""
    if examples is None:
        generator = np.random.default_rng(0)
        if any(None in graph.shapes[number][1:] for number in graph.inputs):
            raise EkgError(
                f"`examples` are needed: `model` {graph.model.name!r} takes inputs of any size, "
                "so give some of the size to compare at."
            )
        return random_inputs(graph, MIN_EXAMPLES, generator.normal)
    arrays = list(map(np.asarray, Inputs.of(graph).listed(examples, "examples")))
    least = 2 * MIN_EXAMPLES if quantize == "int8" else MIN_EXAMPLES
    for array, number in zip(arrays, graph.inputs):
        shape = graph.shapes[number][1:]
        if array.ndim != len(shape) + 1 or any(
            own not in (None, size) for own, size in zip(shape, array.shape[1:])
        ):
            raise EkgError(
                f"`examples` have the shape {array.shape}, and the network takes {(None, *shape)}."
            )
        if len(array) < least:
            raise EkgError(f"`examples`: {len(array)} are too few; at least {least} are needed.")
    return [as_dtype(array, graph.dtype(number)) for array, number in zip(arrays, graph.inputs)]


def _compare(model, reader, arrays, source, path, labels):
    """Returns the proof.Comparison of a file with the network in memory, after checking their
    shapes.

    Args:
        model: the network in memory.
        reader: format.Reader of the file.
        arrays: list of one array of examples per input.
        source: format.Source of what was written.
        path: path of the file.
        labels: proof.Labels of the examples, or None.
    """
    ours, theirs = _run_both(model, reader, arrays, source)
    shapes = [value.shape for value in ours], [value.shape for value in theirs]
    if shapes[0] != shapes[1]:
        raise EkgError(
            f"{path.name}: the exported network returns {shapes[1]}, and the one in memory "
            f"{shapes[0]}; the file is not kept."
        )
    graph = Graph(model, [array.shape[1:] for array in arrays])
    layout = groups.find(graph)
    softmaxes = [
        place for place, number in enumerate(graph.outputs) if squash_of(graph, number) == "softmax"
    ]
    return proof.compare(
        ours,
        theirs,
        [layout.axes[number] for number in graph.outputs],
        source.quantize,
        shares_one_scale=softmaxes,
        labels=labels,
    )


def _run_both(model, reader, arrays, source):
    """Returns (outputs of the network in memory, outputs of the file), each a list of one array per
    output.
    """
    number = len(arrays[0])
    runs_whole = isinstance(reader, FreshReader)  # each run starts a process
    step = number if runs_whole else COMPARED_TOGETHER if reader.batch == "any" else reader.batch
    last = number if reader.batch == "any" else number - number % step
    forward = in_graph(functools.partial(model.__call__, training=False))

    def run_model(part):
        inputs = source.graph.structured_inputs(list(map(tf.constant, part)))
        outputs = keras.tree.flatten(forward(inputs))
        return [np.asarray(keras.ops.cast(value, "float32")) for value in outputs]

    with full_float32():
        ours = _in_parts(run_model, arrays, last, COMPARED_TOGETHER)
    return ours, _in_parts(reader.run, arrays, last, step)


def _in_parts(run, arrays, last, step):
    """Returns the outputs of run() for the first `last` examples, `step` at a time."""
    parts = [
        run([array[begin : min(begin + step, last)] for array in arrays])
        for begin in range(0, last, step)
    ]
    return [np.concatenate(values) for values in zip(*parts)]


def _make_labels(model, arrays, labels, task):
    """Returns the proof.Labels of examples, or None if there are no labels."""
    if labels is None:
        return None
    data = make_data(model, (Inputs.of(Graph(model)).packed(arrays), labels), task=task)
    graph = Graph(model, data.image_shape)
    return proof.Labels(
        data.task, np.asarray(data.train.labels), proof.squashes_of(graph, data.task)
    )


def _size(path):
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if path.is_dir()
        else path.stat().st_size
    )


def _put(draft, path):
    """Moves a new file or folder into its place."""
    if path.is_dir():
        shutil.rmtree(path)
    os.replace(draft, path)
