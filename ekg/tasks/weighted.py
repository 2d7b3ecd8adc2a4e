"""Weights of examples, of classes and of places, as fit takes them: they count in every loss with
labels.

A weighted label is the label, its weight, and its share: 0 where a class is left out, else so that
the mean share of all labels is 1. The loss is the mean of weight · share · loss, as Keras' own;
figures of merit take the share alone, as Keras' metrics take no weights. Knowledge is not weighted.
"""

import dataclasses
import numbers

import numpy as np
import tensorflow as tf

from ekg.errors import EkgError
from ekg.tasks.kinds import (
    Classification,
    DenseClassification,
    DenseMultiLabel,
    MultiLabel,
    Regression,
    Task,
)

# The task at a single place of a map
AT_PLACE = {DenseClassification: Classification(), DenseMultiLabel: MultiLabel()}
EXTRA = 2  # numbers of a label besides its own: weight and share


@dataclasses.dataclass(frozen=True)
class Weighted(Task):
    """A task whose labels carry weights; see the module.

    Attributes:
        inner: one of tasks.TASKS.
        ignore_class: class number that counts nothing, as the void of a segmentation, or None.
    """

    inner: Task = Classification()
    ignore_class: int | None = None

    @property
    def name(self):
        """That of the task."""
        return self.inner.name

    @property
    def metrics(self):
        """Those of the task."""
        return self.inner.metrics

    def metrics_of(self, shape):
        return self.inner.metrics_of(shape)

    @property
    def has_class_logits(self):
        """As of the task."""
        return self.inner.has_class_logits

    @property
    def takes_logits(self):
        """As of the task."""
        return self.inner.takes_logits

    @property
    def takes_smoothing(self):
        """As of the task."""
        return self.inner.takes_smoothing

    def check_network(self, graph):
        self.inner.check_network(graph)

    def check_output(self, graph):
        self.inner.check_output(graph)

    def places(self, output):
        return self.inner.places(output)

    def seen_parts(self, output):
        return [(self.inner, output)]

    # ---------------------------------------------------------------- labels

    def prepare_labels(self, labels, shape, what="labels", weights=None, class_weight=None):
        """Returns weighted labels, float32 [examples, *places, numbers of a label + EXTRA].

        Args:
            labels: as a user has them, array [examples, ...].
            shape: of the output for one example.
            what: what to call them in an error.
            weights: of the examples, or of their places, array [examples, ...]; None for 1.
            class_weight: {class number: weight}, 1 for others; or None.

        Raises:
            EkgError: labels or weights do not fit the output.
        """
        counts = np.ones(1, bool)
        if self.ignore_class is not None:
            labels, counts = self._without_ignored(np.asarray(labels), shape, what)
        prepared = self.inner.prepare_labels(labels, shape, what)
        places = (len(prepared), *self.inner.places(shape))
        weight = np.ones(places, np.float32) if weights is None else _spread(weights, places, what)
        if class_weight is not None:
            weight = weight * self._of_classes(prepared, class_weight, what).reshape(places)
        counts = np.broadcast_to(counts, places)
        if not counts.any():
            raise EkgError(f"{what}: all are of the class {self.ignore_class}, which is left out.")
        share = counts / counts.mean()
        values = prepared.reshape(*places, -1)
        return np.concatenate([values, weight[..., None], share[..., None]], -1).astype(np.float32)

    def check_labels(self, labels, shape, what="labels"):
        labels = np.asarray(labels)
        if labels.dtype != np.float32 or labels.shape[-1] <= EXTRA:
            raise EkgError(
                f"{what}: weighted ones are needed, float32; received {labels.dtype} of shape "
                f"{labels.shape}."
            )
        self.inner.check_labels(self.values(labels), shape, what)

    def scale(self, labels):
        return self.inner.scale(self.values(np.asarray(labels)))

    def strata(self, labels):
        return self.inner.strata(self.values(np.asarray(labels)))

    def values(self, labels):
        """Returns labels as the task prepares them, of a NumPy array or a tensor."""
        values = labels[..., :-EXTRA]
        if values.shape[-1] > 1 or not isinstance(
            self.inner, (Classification, DenseClassification)
        ):
            return values
        return (
            tf.cast(values[..., 0], tf.int32)
            if tf.is_tensor(values)
            else values[..., 0].astype(np.int32)
        )

    def _without_ignored(self, labels, shape, what):
        """Returns (labels with another class in place of the one left out, which of them count)."""
        rank = len(shape)
        if labels.ndim == rank + 1 and labels.shape[-1] == 1:
            labels = labels[..., 0]
        if labels.ndim != rank or labels.dtype.kind not in "iuf":
            raise EkgError(
                f"{what}: where the class {self.ignore_class} is left out, class numbers are "
                f"needed; received {labels.dtype} of shape {labels.shape}."
            )
        counts = labels != self.ignore_class
        return np.where(counts, labels, 0), counts

    def _of_classes(self, labels, class_weight, what):
        """Returns the weight of each label by its class."""
        is_single = isinstance(self.inner, MultiLabel) and labels.shape[-1] == 1
        if not is_single and not isinstance(self.inner, (Classification, DenseClassification)):
            raise EkgError(
                f"`class_weight` is for classes, and {what} are those of a {self.inner.name}; "
                "give the weights of examples: (images, labels, weights)."
            )
        if is_single:
            labels = (labels[..., 0] > 0.5).astype(np.int32)
        classes = labels.argmax(-1) if labels.dtype.kind == "f" else labels
        weights = np.ones(classes.shape, np.float32)
        for name, weight in class_weight.items():
            weights[classes == name] = weight
        return weights

    # ---------------------------------------------------------------- losses

    def loss(self, labels, outputs, smoothing=0.0):
        at = AT_PLACE.get(type(self.inner), self.inner)
        values, outputs = self._flat(self.values(labels), outputs)
        losses = at.loss(values, outputs, smoothing)
        return self._mean(losses, labels[..., -2] * labels[..., -1])

    def measure(self, labels, outputs):
        at = AT_PLACE.get(type(self.inner), self.inner)
        values, outputs = self._flat(self.values(labels), outputs)
        measured = at.measure(values, outputs).values()
        return {
            name: self._mean(value, labels[..., -1]) for name, value in zip(self.metrics, measured)
        }

    def distance(self, teacher, outputs):
        return self.inner.distance(teacher, outputs)

    def divergence(self, teacher, outputs, temperature):
        return self.inner.divergence(teacher, outputs, temperature)

    def _flat(self, values, outputs):
        """Returns (labels, outputs) with each place as an example."""
        is_number = len(values.shape) < len(outputs.shape)
        flat = tf.reshape(values, [-1] if is_number else [-1, values.shape[-1]])
        return flat, tf.reshape(outputs, [-1, outputs.shape[-1]])

    def _mean(self, values, factors):
        """Returns the mean of each example, [batch], of values at all places times factors [batch,
        *places].
        """
        rows = tf.reshape(values, tf.shape(factors)) * tf.cast(factors, values.dtype)
        return tf.reduce_mean(rows, axis=list(range(1, len(rows.shape))))


def is_weighted(task):
    """Returns whether labels of a Task carry weights, of one of its outputs at least."""
    return isinstance(task, Weighted) or any(
        is_weighted(part.task) for part in getattr(task, "parts", ())
    )


def _spread(weights, places, what):
    """Returns weights for all places, float32, of those of examples or places."""
    weights = np.asarray(weights)
    if weights.dtype.kind not in "biuf" or not np.isfinite(weights).all() or (weights < 0).any():
        raise EkgError(
            f"weights of {what} must be finite numbers from 0 on; received {weights.dtype}."
        )
    if weights.ndim == len(places) + 1 and weights.shape[-1] == 1:
        weights = weights[..., 0]
    if weights.shape != places[: weights.ndim] or not weights.ndim:
        raise EkgError(
            f"weights of {what} have shape {weights.shape}, and {places} or {places[:1]} is needed."
        )
    if not weights.any():
        raise EkgError(f"weights of {what} are all 0.")
    weights = weights.reshape(*weights.shape, *[1] * (len(places) - weights.ndim))
    return np.broadcast_to(weights, places).astype(np.float32)


def with_weights(task, ignore_class, weights, class_weight):
    """Returns the Weighted of a Task where anything weighs its labels, else the Task.

    Args:
        task: Task.
        ignore_class: class number that the compiled loss leaves out, or None.
        weights: list of the weights of each source, or None.
        class_weight: {class number: weight}, or None.

    Raises:
        EkgError: the task or class_weight cannot be weighted.
    """
    has_weights = any(own is not None for own in weights)
    if class_weight is not None and has_weights:
        raise EkgError(
            "`class_weight` and weights of the examples exclude each other; multiply them yourself."
        )
    if class_weight is not None:
        pairs = class_weight.items() if isinstance(class_weight, dict) else [(None, None)]
        if not all(
            isinstance(name, numbers.Integral)
            and isinstance(own, numbers.Real)
            and own >= 0
            and np.isfinite(own)
            for name, own in pairs
        ):
            raise EkgError(
                "`class_weight` must be a dict {class number: weight}; received "
                f"{class_weight!r}."
            )
    if ignore_class is None and class_weight is None and not has_weights:
        return task
    if type(task) not in (
        Classification,
        MultiLabel,
        DenseClassification,
        DenseMultiLabel,
        Regression,
    ):
        raise EkgError(
            f"weights are for the tasks of this project; a {task.name} of your own weighs its "
            "labels itself."
        )
    return Weighted(task.output, task, ignore_class)
