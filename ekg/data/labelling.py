"""Prepares the labels of all examples for the losses.

Outputs without labels are labelled with the outputs of the unpruned network.
"""

import dataclasses
import math
import tempfile

import keras
import numpy as np
import tensorflow as tf

from ekg.data.inputs import Inputs
from ekg.devices.compute import full_float32, in_graph
from ekg.errors import EkgError
from ekg.graph.heads import without_heads
from ekg.process import stopping
from ekg.process.progress import progress_bar
from ekg.tasks import compiled_loss
from ekg.tasks.output_names import Names
from ekg.tasks.outputs import Outputs, Part, weight_of
from ekg.tasks.weighted import Weighted, with_weights

BATCH = 64  # examples per forward pass of the unpruned network
MEMORY_BUDGET = 2**30  # bytes of labels that are kept in memory; more go to an unnamed file


def label(model, graph, choices, sources, class_weight=None):
    """Returns (Task of all outputs that count, list of the labels of each source).

    Labels have the shape [examples, ...].

    Args:
        model: the unpruned keras.Model, as the user passed it.
        graph: graph.calls.Graph of the model.
        choices: list of output_choice.Choice.
        sources: list of (sources.Examples, {number of an output: its labels}, name of the labels in
            messages), the training data first.
        class_weight: {class number: weight} for the training data, or None.

    Raises:
        EkgError: labels do not fit the outputs, or the network's outputs are not finite.
    """
    for choice in choices:
        choice.task.check_output(graph)
    for _, labels, what in sources[1:]:
        _check_like_first(choices, labels, what)
    weights = [_by_output(examples.weights, model, choices, what) for examples, _, what in sources]
    choices = _weigh(choices, model, weights, class_weight)
    prepared = []  # per source, a list with the labels of each output
    for number, (_, labels, what) in enumerate(sources):
        source_class_weight = class_weight if number == 0 else None
        source_labels = [
            _prepared(choice.task, graph, weights[number], labels, what, source_class_weight)
            for choice in choices
        ]
        prepared.append(source_labels)
    if len(choices) == 1 and prepared[0][0] is not None:
        return choices[0].task, [only_labels for (only_labels,) in prepared]

    parts = [_part(choice, graph, labels) for choice, labels in zip(choices, prepared[0])]
    task = Outputs(parts=tuple(parts))
    all_rows = []
    for (examples, _, what), source_labels in zip(sources, prepared):
        rows = _rows(examples.count, task.label_size)
        for number, part_labels in enumerate(source_labels):
            if part_labels is not None:
                rows[:, task.columns(number)] = part_labels.reshape(examples.count, -1)
        _imitate_(rows, task, model, examples, Inputs.of(graph), what)
        all_rows.append(rows)
    if len(choices) == 1:
        shape = parts[0].label_shape
        return choices[0].task, [rows.reshape(len(rows), *shape) for rows in all_rows]
    return _balanced(task, all_rows[0]), all_rows


def _check_like_first(choices, labels, what):
    """Raises EkgError unless further data labels the same outputs as the training data."""
    for choice in choices:
        has_labels = choice.task.output in labels
        if has_labels != choice.task.has_labels:
            here = "labels" if has_labels else "no labels"
            in_data = "none" if has_labels else "some"
            raise EkgError(
                f"{what}: output {choice.name!r} has {here} here, and {in_data} in `data`; give "
                "them in both or in neither."
            )


def _by_output(weights, model, choices, what):
    """Returns {number of an output: weights of its labels, array [examples, ...]}.

    Args:
        weights: of the examples, in any form of sources.Examples.
        model: keras.Model.
        choices: list of output_choice.Choice.
        what: name of the labels, for error messages.

    Raises:
        EkgError: there are weights for an output without labels.
    """
    if weights is None:
        return {}
    labelled = {choice.task.output: choice.name for choice in choices if choice.task.has_labels}
    if not labelled:
        raise EkgError("weights belong to labels, and there are no labels; leave the weights out.")
    if not isinstance(weights, (list, dict)):
        return dict.fromkeys(labelled, weights)
    names = Names(model)
    by_place = names.by_place(weights, "weights")
    for choice in choices:
        if choice.task.output in by_place and not choice.task.has_labels:
            raise EkgError(
                f"weights of the {what}: output {choice.name!r} has no labels; leave its weights "
                "out."
            )
    return {number: array for number, array in by_place.items() if number in labelled}


def _weigh(choices, model, weights, class_weight):
    """Returns the choices, with Weighted tasks where examples or classes are weighted.

    Args:
        choices: list of output_choice.Choice.
        model: keras.Model.
        weights: list of a _by_output() per source.
        class_weight: see label().
    """
    labelled = [choice for choice in choices if choice.task.has_labels]
    if class_weight is not None and len(labelled) != 1:
        raise EkgError(
            f"`class_weight` is for the labels of one output, and {len(labelled)} have labels; "
            "give weights of the examples instead: (images, labels, weights)."
        )
    weighed = []
    for choice in choices:
        task = choice.task
        if task.has_labels:
            loss = compiled_loss.read_loss(model, task.output)
            has_ignored = loss is not None and task.takes_logits
            ignored = loss.ignore_class if has_ignored else None
            own_weights = [by_output.get(task.output) for by_output in weights]
            task = with_weights(task, ignored, own_weights, class_weight)
        weighed.append(dataclasses.replace(choice, task=task))
    return weighed


def _prepared(task, graph, weights, labels, what, class_weight):
    """Returns an output's labels as its task prepares them; None if the user gave no labels.

    Args:
        task: Task.
        graph: graph.calls.Graph of the model.
        weights: of the labels of each output, see _by_output().
        labels, what, class_weight: see label().
    """
    if not task.has_labels:
        return None
    options = {}
    if isinstance(task, Weighted):
        options = {"weights": weights.get(task.output), "class_weight": class_weight}
    return task.prepare_labels(labels[task.output], task.shape(graph), what, **options)


def _part(choice, graph, labels):
    shape = choice.task.shape(graph)
    if labels is None:
        return Part(choice.name, choice.task, shape, shape, "float32")
    return Part(choice.name, choice.task, shape, labels.shape[1:], labels.dtype.name)


def _balanced(task, labels):
    """Returns the Outputs with weights that make losses of different units comparable."""
    parts = []
    for number, part in enumerate(task.parts):
        columns = labels[:, task.columns(number)]
        part_labels = columns.reshape(len(columns), *part.label_shape)
        part_task = part.task
        if isinstance(part_task, Weighted):
            part_labels = part_task.values(part_labels)
            part_task = part_task.inner
        parts.append(dataclasses.replace(part, weight=weight_of(part_task, part_labels)))
    return dataclasses.replace(task, parts=tuple(parts))


def _rows(count, size):
    """Returns an uninitialised float32 array [count, size] for labels, in memory or in a file."""
    if 4 * count * size <= MEMORY_BUDGET:
        return np.empty((count, size), np.float32)
    try:
        return np.memmap(tempfile.TemporaryFile(), np.float32, "w+", shape=(count, size))
    except OSError as error:
        raise EkgError(
            "the unpruned network's outputs are written to a file, and that failed "
            f"({error.strerror}); make room, set TMPDIR, or name outputs in `may_lose`."
        ) from None


def _imitate_(rows, task, model, examples, inputs, what):
    """Writes the unpruned network's outputs into the columns of the parts without labels."""
    numbers = [number for number, part in enumerate(task.parts) if not part.task.has_labels]
    if not numbers:
        return
    parts = [task.parts[number] for number in numbers]
    logits = [output for part in parts for output in part.task.logits]
    network = without_heads(model, logits, list(examples.shapes))[0] if logits else model

    def forward(images):
        outputs = keras.tree.flatten(network(inputs.cast(images), training=False))
        return [
            tf.reshape(tf.cast(outputs[part.task.output], tf.float32), [-1, math.prod(part.shape)])
            for part in parts
        ]

    forward = in_graph(forward, reduce_retracing=True)
    with progress_bar("unpruned network", examples.count, "image") as progress, full_float32():
        for start in range(0, examples.count, BATCH):
            stopping.check()
            indices = np.arange(start, min(start + BATCH, examples.count))
            outputs = forward(keras.tree.map_structure(tf.constant, examples.read(indices)))
            for number, part, values in zip(numbers, parts, outputs):
                if not np.isfinite(values.numpy()).all():
                    raise EkgError(
                        f"{what}: `model` {model.name!r} returns numbers that are not finite at "
                        f"its output {part.name!r} for examples {start} to {indices[-1]}."
                    )
                rows[indices, task.columns(number)] = values
            progress.update(len(indices))
