"""The task of a network of several outputs, made of the tasks of its outputs.

It is a task like any other, so that search, memory bank, training and evaluation know nothing of
it: several outputs are one vector of all their numbers.
"""

import dataclasses
import functools
import math

import numpy as np
import tensorflow as tf

from ekg.errors import EkgError
from ekg.tasks.kinds import Classification, Regression, Task

GUESSES = 1024  # examples, at most, that the loss of a guess is measured on


@dataclasses.dataclass(frozen=True)
class Part:
    """One of several outputs that count.

    Attributes:
        name: of the output.
        task: its Task, which means this output of the network.
        shape: of the output for one example.
        label_shape: of one label, as the task prepares it.
        label_type: number format of the labels.
        weight: of its loss, distance and divergence in the sums; see weight_of().
    """

    name: str
    task: Task
    shape: tuple[int, ...]
    label_shape: tuple[int, ...]
    label_type: str
    weight: float = 1.0


def weight_of(task, labels):
    """Returns what the loss of one of several outputs is multiplied by.

    The loss of classes is in nats, and that of numbers in the square of their unit: it is divided
    by the loss of a network that always returns the mean label.

    Args:
        task: Task.
        labels: as it prepares them, array [examples, ...].
    """
    if not isinstance(getattr(task, "kind", task), Regression):
        return 1.0
    some = np.asarray(
        labels[np.linspace(0, len(labels) - 1, min(len(labels), GUESSES)).astype(np.int64)]
    )
    guess = np.broadcast_to(some.mean(axis=0, dtype=np.float64).astype(np.float32), some.shape)
    loss = float(np.mean(task.loss(some, guess), dtype=np.float64))
    return 1 / loss if loss > 0 else 1.0


@dataclasses.dataclass(frozen=True)
class Outputs(Task):
    """Several outputs of a network, all of which count.

    What its losses take is one vector of all numbers that count, [batch, numbers], the outputs one
    after the other, and so are the labels, float32. Loss, distance and divergence are the weighted
    sums of the parts'. Metrics are those of all parts, named "output/metric".

    Attributes:
        parts: tuple of Part, in the order of the network's outputs.
    """

    parts: tuple[Part, ...] = ()

    @property
    def name(self):
        """The names of the parts, each with what it is."""
        return ", ".join(f"{part.name}: {part.task.name}" for part in self.parts)

    @property
    def metrics(self):
        """Names of the figures of merit of all parts."""
        return tuple(f"{part.name}/{name}" for part in self.parts for name in part.task.metrics)

    def metrics_of(self, shape):
        return tuple(
            f"{part.name}/{name}"
            for part in self.parts
            for name in part.task.metrics_of(part.shape)
        )

    @property
    def has_labels(self):
        """Whether users give labels for all parts."""
        return all(part.task.has_labels for part in self.parts)

    @property
    def takes_smoothing(self):
        """Whether the labels of a part are classes."""
        return any(part.task.takes_smoothing for part in self.parts)

    @property
    def needs_teacher_of_views(self):
        """Whether a part does."""
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
            f"`model` {graph.model.name!r}: several of its outputs count, and one is asked for."
        )

    def tensors(self, graph):
        return [part.task.tensor(graph) for part in self.parts]

    def joined(self, values):
        return tf.concat(
            [
                tf.reshape(tf.cast(value, tf.float32), [-1, math.prod(part.shape)])
                for part, value in zip(self.parts, values, strict=True)
            ],
            axis=1,
        )

    def shape(self, graph):
        return (sum(math.prod(part.task.shape(graph)) for part in self.parts),)

    def places(self, output):
        return ()

    def seen_parts(self, output):
        return [seen for part in self.parts for seen in part.task.seen_parts(part.shape)]

    def moved(self, values, output, first, move):
        moved, shapes = [], [part.label_shape if first == 1 else part.shape for part in self.parts]
        edges = np.cumsum([0, *map(math.prod, shapes)]).tolist()
        for part, shape, start, stop in zip(self.parts, shapes, edges, edges[1:]):
            lead = [-1, *values.shape[1:first]]
            own = tf.reshape(values[..., start:stop], [*lead, *shape])
            own = part.task.moved(own, part.shape, first, move)
            moved.append(tf.reshape(own, [*lead, stop - start]))
        return tf.concat(moved, axis=-1)

    def in_training(self):
        """The same without weights above 1.

        Numbers of little variance weigh much in the search; in training that would multiply their
        learning rate, with which the network was never stable.
        """
        parts = [dataclasses.replace(part, weight=min(part.weight, 1.0)) for part in self.parts]
        return dataclasses.replace(self, parts=tuple(parts))

    def taking_labels(self, function):
        def of_vectors(images, labels, seed):
            made = function(images, self.named(labels), seed)
            if not isinstance(made, (tuple, list)) or len(made) != 2:
                return made
            return made[0], self._in_row(made[1])

        return of_vectors

    def named(self, labels):
        """Returns {name of an output: its labels, [batch, ...]} of labels [batch, numbers]."""
        return {part.name: own for part, own in zip(self.parts, self._labels(labels))}

    def _in_row(self, named):
        """Returns the labels of all outputs, [batch, numbers], of those by their names."""
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
        """Where the labels of each part begin in an example's row, and where the last ones end."""
        return [0, *np.cumsum([math.prod(part.label_shape) for part in self.parts]).tolist()]

    @property
    def label_size(self):
        """Numbers in the label of an example."""
        return self._label_edges[-1]

    def columns(self, number):
        """Returns the slice of a label's numbers that are those of the part at this position."""
        return slice(*self._label_edges[number : number + 2])

    def prepare_labels(self, labels, shape, what="labels"):
        """Returns labels [examples, numbers], float32; here they come in this form already."""
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
            own = (
                labels[:, self.columns(number)]
                .reshape(len(labels), *part.label_shape)
                .astype(part.label_type)
            )
            part.task.check_labels(own, part.shape, f"{what}, output {part.name!r}")

    def strata(self, labels):
        """Those of the first output of labelled classes, or else of the first output."""
        number = min(
            range(len(self.parts)),
            key=lambda i: (
                not self.parts[i].task.has_labels,
                not isinstance(self.parts[i].task, Classification),
            ),
        )
        part = self.parts[number]
        own = np.asarray(labels[:, self.columns(number)]).reshape(len(labels), *part.label_shape)
        return part.task.strata(own.astype(part.label_type))

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
        return self._sum(
            [
                getattr(part.task, method)(
                    label, output, smoothing if part.task.takes_smoothing else 0.0
                )
                for part, label, output in zip(
                    self.parts, self._labels(labels), self._apart(outputs)
                )
            ]
        )

    def distance(self, teacher, outputs):
        return self._sum(
            [
                part.task.distance(knowledge, output)
                for part, knowledge, output in zip(
                    self.parts, self._apart(teacher), self._apart(outputs)
                )
            ]
        )

    def divergence(self, teacher, outputs, temperature):
        return self._sum(
            [
                part.task.divergence(knowledge, output, temperature)
                for part, knowledge, output in zip(
                    self.parts, self._apart(teacher), self._apart(outputs)
                )
            ]
        )

    def measure(self, labels, outputs):
        return {
            f"{part.name}/{name}": value
            for part, label, output in zip(self.parts, self._labels(labels), self._apart(outputs))
            for name, value in part.task.measure(label, output).items()
        }

    def _sum(self, values):
        """Returns the weighted sum of one value of each part, [batch]."""
        return tf.add_n(
            [part.weight * value for part, value in zip(self.parts, values, strict=True)]
        )

    def _apart(self, outputs):
        """Returns the output of each part, [batch, ...], of the vectors of all numbers."""
        edges = np.cumsum([0, *(math.prod(part.shape) for part in self.parts)]).tolist()
        return [
            tf.reshape(outputs[:, start:stop], [-1, *part.shape])
            for part, start, stop in zip(self.parts, edges, edges[1:])
        ]

    def _labels(self, labels):
        """Returns the labels of each part, [batch, ...]."""
        return [
            tf.cast(
                tf.reshape(labels[:, self.columns(number)], [-1, *part.label_shape]),
                part.label_type,
            )
            for number, part in enumerate(self.parts)
        ]
