"""Tasks of networks of several outputs, and of outputs without labels.

Both are tasks like any other, so that search, memory bank, training and evaluation know nothing of
them: several outputs are one vector of all their numbers, and the labels of an output without any are
what the unpruned network returns there.
"""

import dataclasses
import functools
import math

import numpy as np
import tensorflow as tf

from ekg.errors import EkgError
from ekg.tasks import Classification, MultiLabel, Regression, Task

GUESSES = 1024  # examples, at most, that the loss of a guess is measured on
RARE = 0.1  # share of an equal part of the examples below which a class has no stratum of its own


@dataclasses.dataclass(frozen=True)
class Imitation(Task):
    """An output without labels: what counts is how far it is from the unpruned network's.

    Its labels are the unpruned network's outputs, float32, logits where the kind has classes. Loss: the
    kind's divergence from them at a temperature of 1, which is 0 for the unpruned network itself.
    Distance and divergence are the kind's.

    Attributes:
        kind: Task whose distance and divergence count.
        may_be_logits: whether numbers may be class logits: then it is shown whether the largest is the same.
    """

    kind: Task = Classification()
    may_be_logits: bool = False
    has_labels = False
    takes_smoothing = False

    @property
    def name(self):
        """The kind's name, and that there are no labels."""
        return f"{self.kind.name} without labels"

    @property
    def metrics(self):
        """Names of the figures of merit: the share of like answers, or the mean difference."""
        if isinstance(self.kind, Regression):
            return ("difference", "agreement") if self.may_be_logits else ("difference",)
        return ("agreement",)

    @property
    def has_class_logits(self):
        """As of the kind."""
        return self.kind.has_class_logits

    @property
    def takes_logits(self):
        """As of the kind."""
        return self.kind.takes_logits

    def check_network(self, graph):
        self._own_kind().check_network(graph)

    def check_output(self, graph):
        dtype = graph.dtype(self.tensor(graph))
        if not dtype.startswith(("float", "bfloat")):
            raise EkgError(
                f"`model` {graph.model.name!r}: output {self.output} has no labels and holds {dtype}, "
                "which nothing can be trained by; name it in `may_lose`."
            )
        self._own_kind().check_output(graph)

    def _own_kind(self):
        return dataclasses.replace(self.kind, output=self.output)

    def prepare_labels(self, labels, shape, what="labels"):
        labels = np.asarray(labels)
        if labels.shape[1:] != tuple(shape) or labels.dtype.kind != "f":
            raise EkgError(
                f"{what}: outputs of the unpruned network, {tuple(shape)} each, are needed; "
                f"received {labels.dtype} of shape {labels.shape[1:]}."
            )
        return labels.astype(np.float32, copy=False)

    def strata(self, labels):
        """The classes that the unpruned network gives, rare ones with the most frequent one."""
        if isinstance(self.kind, Regression):
            return self.kind.strata(labels)
        if not isinstance(self.kind, Classification):
            return super().strata(labels)
        classes = np.asarray(labels).argmax(axis=-1)
        counts = np.bincount(classes)
        is_rare = counts < RARE * len(classes) / max(np.count_nonzero(counts), 1)
        return np.where(is_rare[classes], counts.argmax(), classes)

    def given(self, labels):
        return labels[:0]

    def loss(self, labels, outputs, smoothing=0.0):
        return self.kind.divergence(labels, outputs, 1.0)

    def label_loss(self, labels, outputs, smoothing=0.0):
        return tf.zeros_like(self.loss(labels, outputs))

    def distance(self, teacher, outputs):
        return self.kind.distance(teacher, outputs)

    def divergence(self, teacher, outputs, temperature):
        return self.kind.divergence(teacher, outputs, temperature)

    def measure(self, labels, outputs):
        if isinstance(self.kind, Regression):
            values = {"difference": _mean_of_example(tf.abs(labels - outputs))}
            if self.may_be_logits:
                values["agreement"] = _agrees(tf.argmax(labels, -1) == tf.argmax(outputs, -1))
            return values
        if isinstance(self.kind, MultiLabel):
            return {"agreement": _agrees((labels > 0) == (outputs > 0))}
        return {"agreement": _agrees(tf.argmax(labels, -1) == tf.argmax(outputs, -1))}


def _agrees(is_same):
    return _mean_of_example(tf.cast(is_same, tf.float32))


def _mean_of_example(values):
    """Returns the mean of every example, [batch], of values [batch, ...]."""
    return tf.reduce_mean(tf.reshape(values, [tf.shape(values)[0], -1]), axis=1)


# ---------------------------------------------------------------- several outputs


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

    The loss of classes is in nats, and that of numbers in the square of their unit: it is divided by the
    loss of a network that always returns the mean label.

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

    What its losses take is one vector of all numbers that count, [batch, numbers], the outputs one after
    the other, and so are the labels, float32. Loss, distance and divergence are the weighted sums of the
    parts'. Metrics are those of all parts, named "output/metric".

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

    @property
    def has_labels(self):
        """Whether users give labels for all parts."""
        return all(part.task.has_labels for part in self.parts)

    @property
    def takes_smoothing(self):
        """Whether the labels of a part are classes."""
        return any(part.task.takes_smoothing for part in self.parts)

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
                f"{what} of the outputs {self.name}: float32 of shape (examples, {self.label_size}) is "
                f"needed; received {labels.dtype} of shape {labels.shape}."
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
        """Those of the first output of labelled classes, if there is one, or of the first output."""
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
                "`label_smoothing` has no effect here: no output has labels that are classes; leave it out."
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
