"""The task of a network with several outputs, composed of one task per output.

All outputs are joined into one vector of numbers, so search, memory bank, training and evaluation
handle it like any other task.
"""

import dataclasses
import functools
import math

import numpy as np
import tensorflow as tf

from ekg.errors import EkgError
from ekg.tasks.kinds import Classification, Regression, Task

GUESSES = 1024  # largest number of examples that the loss of the constant guess is measured on


@dataclasses.dataclass(frozen=True)
class Part:
    """One of several outputs that count.

    Attributes:
        name: name of the output.
        task: its Task, whose `output` is the number of this output.
        shape: shape of the output for one example.
        label_shape: shape of one label, as the task prepares it.
        label_type: number format of the labels.
        weight: weight of its loss, distance and divergence in the sums; see weight_of().
    """

    name: str
    task: Task
    shape: tuple[int, ...]
    label_shape: tuple[int, ...]
    label_type: str
    weight: float = 1.0


def weight_of(task, labels):
    """Returns the weight that makes the loss of one of several outputs comparable to the others.

    The loss of classes is in nats, and its weight is 1. The loss of a regression is in the squared
    unit of its numbers; it is divided by the loss of a network that always returns the mean label.

    Args:
        task: Task of the output.
        labels: prepared labels, array [examples, ...].
    """
    if not isinstance(task.unwrapped, Regression):
        return 1.0
    indices = np.linspace(0, len(labels) - 1, min(len(labels), GUESSES)).astype(np.int64)
    sample = np.asarray(labels[indices])
    mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    guess = np.broadcast_to(mean, sample.shape)
    loss = float(np.mean(task.loss(sample, guess), dtype=np.float64))
    return 1 / loss if loss > 0 else 1.0


@dataclasses.dataclass(frozen=True)
class Outputs(Task):
    """The task of several outputs of a network, all of which count.

    Its losses take one vector with the numbers of all outputs, [batch, numbers], in the order of
    the outputs. Labels are joined in the same way, float32. Loss, distance and divergence are the
    weighted sums over the parts. Metrics of all parts are reported, as "output/metric".

    Attributes:
        parts: tuple of Part, in the order of the network's outputs.
    """

    parts: tuple[Part, ...] = ()

    @property
    def name(self):
        """The name and task of every part."""
        return ", ".join(f"{part.name}: {part.task.name}" for part in self.parts)

    @property
    def metrics(self):
        """Names of the metrics of all parts."""
        return tuple(f"{part.name}/{name}" for part in self.parts for name in part.task.metrics)

    def metrics_of(self, shape):
        return tuple(
            f"{part.name}/{name}"
            for part in self.parts
            for name in part.task.metrics_of(part.shape)
        )

    @property
    def has_labels(self):
        """Whether the user supplies the labels of all parts."""
        return all(part.task.has_labels for part in self.parts)

    @property
    def takes_smoothing(self):
        """Whether the labels of any part are classes."""
        return any(part.task.takes_smoothing for part in self.parts)

    @property
    def needs_teacher_of_views(self):
        """Whether any part needs it."""
        return any(part.task.needs_teacher_of_views for part in self.parts)

    # ---------------------------------------------------------------- networks

    @property
    def outputs(self):
        return tuple(part.task.output for part in self.parts)

    @property
    def logits(self):
        return tuple(number for part in self.parts for number in part.task.logits)

    def tensor(self, graph):
        raise EkgError(
            f"`model` {graph.model.name!r}: several of its outputs count, and one is needed here."
        )

    def tensors(self, graph):
        return [part.task.tensor(graph) for part in self.parts]

    def joined(self, values):
        rows = [
            tf.reshape(tf.cast(value, tf.float32), [-1, math.prod(part.shape)])
            for part, value in zip(self.parts, values, strict=True)
        ]
        return tf.concat(rows, axis=1)

    def shape(self, graph):
        return (sum(math.prod(part.task.shape(graph)) for part in self.parts),)

    def places(self, output):
        return ()

    def seen_parts(self, output):
        return [seen for part in self.parts for seen in part.task.seen_parts(part.shape)]

    def moved(self, values, output, first, move):
        # Labels have one batch axis in front, knowledge has two: batch and teacher.
        shapes = [part.label_shape if first == 1 else part.shape for part in self.parts]
        edges = np.cumsum([0, *map(math.prod, shapes)]).tolist()
        batch_shape = [-1, *values.shape[1:first]]
        moved = []
        for part, shape, start, stop in zip(self.parts, shapes, edges, edges[1:]):
            part_values = tf.reshape(values[..., start:stop], [*batch_shape, *shape])
            part_values = part.task.moved(part_values, part.shape, first, move)
            moved.append(tf.reshape(part_values, [*batch_shape, stop - start]))
        return tf.concat(moved, axis=-1)

    def in_training(self):
        """Returns the same task with weights of at most 1.

        Numbers with little variance have a large weight in the search. In training, the weight
        would multiply their learning rate, at which the network was never stable.
        """
        parts = [dataclasses.replace(part, weight=min(part.weight, 1.0)) for part in self.parts]
        return dataclasses.replace(self, parts=tuple(parts))

    def taking_labels(self, function):
        def function_of_vectors(images, labels, seed):
            pair = function(images, self.named(labels), seed)
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                return pair
            return pair[0], self._in_row(pair[1])

        return function_of_vectors

    def named(self, labels):
        """Splits labels [batch, numbers] into {name of an output: its labels, [batch, ...]}."""
        part_labels = self._labels(labels)
        return {part.name: array for part, array in zip(self.parts, part_labels)}

    def _in_row(self, named):
        """Joins labels by output name into [batch, numbers]; the inverse of named()."""
        names = [part.name for part in self.parts]
        if not isinstance(named, dict) or set(named) != set(names):
            raise EkgError(f"`augment` must return labels as it gets them, a dict of {names}.")
        rows = [
            tf.reshape(tf.cast(named[part.name], tf.float32), [-1, math.prod(part.label_shape)])
            for part in self.parts
        ]
        return tf.concat(rows, axis=1)

    def check_network(self, graph):
        for part in self.parts:
            part.task.check_network(graph)
            if part.task.shape(graph) != part.shape:
                raise EkgError(
                    f"`model` {graph.model.name!r}: its output {part.name!r} has shape "
                    f"{part.task.shape(graph)}, and the data set was made for {part.shape}."
                )

    def check_output(self, graph):
        for part in self.parts:
            part.task.check_output(graph)

    # ---------------------------------------------------------------- labels

    @functools.cached_property
    def _label_edges(self):
        """First column of each part's labels in a row, followed by the number of columns."""
        return [0, *np.cumsum([math.prod(part.label_shape) for part in self.parts]).tolist()]

    @property
    def label_size(self):
        """Number of columns in the label of an example."""
        return self._label_edges[-1]

    def columns(self, number):
        """Returns the slice of a label's columns that belong to the part with this number."""
        return slice(*self._label_edges[number : number + 2])

    def prepare_labels(self, labels, shape, what="labels"):
        """Returns labels, float32 [examples, numbers]; they must already have this form."""
        labels = np.asanyarray(labels)
        if labels.ndim != 2 or labels.shape[1] != self.label_size or labels.dtype != np.float32:
            raise EkgError(
                f"{what} of the outputs {self.name}: float32 of shape (examples, "
                f"{self.label_size}) is needed; received {labels.dtype} of shape {labels.shape}."
            )
        return labels

    def check_labels(self, labels, shape, what="labels"):
        labels = self.prepare_labels(labels, shape, what)
        for number, part in enumerate(self.parts):
            part_labels = self._part_labels(labels, number)
            part.task.check_labels(part_labels, part.shape, f"{what}, output {part.name!r}")

    def _part_labels(self, labels, number):
        """Returns the labels of one part as a NumPy array, in the form that its task takes."""
        part = self.parts[number]
        columns = np.asarray(labels[:, self.columns(number)])
        return columns.reshape(len(labels), *part.label_shape).astype(part.label_type)

    def strata(self, labels):
        """The strata of the first labelled classification, else of the first labelled output."""

        def rank(number):
            task = self.parts[number].task
            return not task.has_labels, not isinstance(task.unwrapped, Classification)

        number = min(range(len(self.parts)), key=rank)
        return self.parts[number].task.strata(self._part_labels(labels, number))

    def given(self, labels):
        chosen = [
            labels[:, self.columns(number)]
            for number, part in enumerate(self.parts)
            if part.task.has_labels
        ]
        return np.concatenate(chosen, axis=1) if chosen else labels[:0]

    # ---------------------------------------------------------------- losses

    def loss(self, labels, outputs, smoothing=0.0):
        return self._loss("loss", labels, outputs, smoothing)

    def label_loss(self, labels, outputs, smoothing=0.0):
        return self._loss("label_loss", labels, outputs, smoothing)

    def _loss(self, method, labels, outputs, smoothing):
        if smoothing and not self.takes_smoothing:
            raise EkgError(
                "`label_smoothing` has no effect here: no output has labels that are classes; "
                "leave it out."
            )
        losses = []
        for part, label, output in zip(self.parts, self._labels(labels), self._apart(outputs)):
            part_smoothing = smoothing if part.task.takes_smoothing else 0.0
            losses.append(getattr(part.task, method)(label, output, part_smoothing))
        return self._sum(losses)

    def distance(self, teacher, outputs):
        knowledge_and_outputs = zip(self._apart(teacher), self._apart(outputs))
        return self._sum(
            [
                part.task.distance(knowledge, output)
                for part, (knowledge, output) in zip(self.parts, knowledge_and_outputs)
            ]
        )

    def divergence(self, teacher, outputs, temperature):
        knowledge_and_outputs = zip(self._apart(teacher), self._apart(outputs))
        return self._sum(
            [
                part.task.divergence(knowledge, output, temperature)
                for part, (knowledge, output) in zip(self.parts, knowledge_and_outputs)
            ]
        )

    def measure(self, labels, outputs):
        measured = {}
        for part, label, output in zip(self.parts, self._labels(labels), self._apart(outputs)):
            for name, value in part.task.measure(label, output).items():
                measured[f"{part.name}/{name}"] = value
        return measured

    def _sum(self, values):
        """Returns the weighted sum of one value per part, [batch]."""
        return tf.add_n(
            [part.weight * value for part, value in zip(self.parts, values, strict=True)]
        )

    def _apart(self, outputs):
        """Splits joined outputs into the output of each part, [batch, ...]."""
        edges = np.cumsum([0, *(math.prod(part.shape) for part in self.parts)]).tolist()
        return [
            tf.reshape(outputs[:, start:stop], [-1, *part.shape])
            for part, start, stop in zip(self.parts, edges, edges[1:])
        ]

    def _labels(self, labels):
        """Splits joined labels into the labels of each part, tensors [batch, ...]."""
        part_labels = []
        for number, part in enumerate(self.parts):
            values = tf.reshape(labels[:, self.columns(number)], [-1, *part.label_shape])
            part_labels.append(tf.cast(values, part.label_type))
        return part_labels
