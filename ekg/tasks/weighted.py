"""Tasks with weights of examples, classes or positions, as `fit` takes them.

A weighted label consists of the label, its weight, and its share: 0 for an ignored class, and
otherwise such that the mean share of all labels is 1. The loss is the mean of weight · share ·
loss, as in Keras. Metrics use the share alone, as Keras' metrics ignore weights. Losses of
knowledge are not weighted.
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
)
from ekg.tasks.wrapper import Wrapper

AT_PLACE = {  # dense task -> the task at a single position of its map
    DenseClassification: Classification(),
    DenseMultiLabel: MultiLabel(),
}
EXTRA = 2  # numbers that are appended to each label: weight and share


@dataclasses.dataclass(frozen=True)
class Weighted(Wrapper):
    """A task whose labels carry weights, see the module; the inner task is one of tasks.TASKS.

    Attributes:
        ignore_class: class number that is ignored, such as the void class of a segmentation, or
            None.
    """

    ignore_class: int | None = None

    @property
    def name(self):
        """The inner task's name."""
        return self.inner.name

    @property
    def metrics(self):
        """The inner task's metrics."""
        return self.inner.metrics

    def metrics_of(self, shape):
        return self.inner.metrics_of(shape)

    @property
    def takes_smoothing(self):
        """Whether the inner task's labels are classes."""
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
        """Returns weighted labels, float32 [examples, *places, numbers per label + EXTRA].

        Args:
            labels: labels in the user's form, array [examples, ...].
            shape: shape of the output for one example.
            what: name of the labels in error messages.
            weights: weights of the examples or of their positions, array [examples, ...]; None
                weights all by 1.
            class_weight: {class number: weight}, with 1 for other classes; or None.

        Raises:
            EkgError: labels or weights do not fit the output.
        """
        counts = np.ones(1, bool)
        if self.ignore_class is not None:
            labels, counts = self._without_ignored(np.asarray(labels), shape, what)
        prepared = self.inner.prepare_labels(labels, shape, what)
        places = (len(prepared), *self.inner.places(shape))
        weight = np.ones(places, np.float32)
        if weights is not None:
            weight = _spread(weights, places, what)
        if class_weight is not None:
            by_class = self._weights_by_class(prepared, shape, class_weight, what)
            weight = weight * by_class.reshape(places)
        counts = np.broadcast_to(counts, places)
        if not counts.any():
            raise EkgError(f"{what}: all are of the class {self.ignore_class}, which is left out.")
        if not (weight * counts).any():
            raise EkgError(f"{what}: all have a weight of 0, so nothing is left to learn from.")
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
        """The inner task's strata, and one more for the examples of the ignored class."""
        labels = np.asarray(labels)
        strata = np.asarray(self.inner.strata(self.values(labels)))
        is_counted = labels[..., -1].any(axis=tuple(range(1, labels.ndim - 1)))
        return np.where(is_counted, strata, strata.max(initial=0) + 1)

    def values(self, labels):
        """Returns the inner task's labels, given weighted ones as NumPy array or tensor."""
        values = labels[..., :-EXTRA]
        has_classes = isinstance(self.inner, (Classification, DenseClassification))
        if values.shape[-1] > 1 or not has_classes:
            return values
        if tf.is_tensor(values):
            return tf.cast(values[..., 0], tf.int32)
        return values[..., 0].astype(np.int32)

    def _without_ignored(self, labels, shape, what):
        """Returns (labels with class 0 in place of the ignored class, which labels count)."""
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

    def _weights_by_class(self, labels, shape, class_weight, what):
        """Returns the weight of each label, according to its class.

        Args:
            labels: labels as the inner task prepares them.
            shape: shape of the output for one example.
            class_weight: {class number: weight}.
            what: name of the labels in error messages.
        """
        is_single = isinstance(self.inner, MultiLabel) and labels.shape[-1] == 1
        if not is_single and not isinstance(self.inner, (Classification, DenseClassification)):
            raise EkgError(
                f"`class_weight` is for classes, and {what} are those of a {self.inner.name}; "
                "give the weights of examples: (images, labels, weights)."
            )
        num_classes = 2 if is_single else shape[-1]
        known = {*range(num_classes), self.ignore_class}
        unknown = [name for name in class_weight if name not in known]
        if unknown:
            raise EkgError(
                f"`class_weight` names the class {unknown[0]}, and there are {num_classes}, from 0 "
                f"to {num_classes - 1}."
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
        task = AT_PLACE.get(type(self.inner), self.inner)
        values, outputs = self._flat(self.values(labels), outputs)
        losses = task.loss(values, outputs, smoothing)
        return self._mean(losses, labels[..., -2] * labels[..., -1])

    def measure(self, labels, outputs):
        task = AT_PLACE.get(type(self.inner), self.inner)
        values, outputs = self._flat(self.values(labels), outputs)
        measured = task.measure(values, outputs).values()
        return {
            name: self._mean(value, labels[..., -1]) for name, value in zip(self.metrics, measured)
        }

    def _flat(self, values, outputs):
        """Returns (labels, outputs) with each position as an example of its own."""
        is_number = len(values.shape) < len(outputs.shape)
        flat = tf.reshape(values, [-1] if is_number else [-1, values.shape[-1]])
        return flat, tf.reshape(outputs, [-1, outputs.shape[-1]])

    def _mean(self, values, factors):
        """Returns the mean of values times factors per example, [batch].

        Args:
            values: one value per position, in any shape of the right size.
            factors: array [batch, *places].
        """
        rows = tf.reshape(values, tf.shape(factors)) * tf.cast(factors, values.dtype)
        return tf.reduce_mean(rows, axis=list(range(1, len(rows.shape))))


def is_weighted(task):
    """Returns whether a Task, or one of its parts, has weighted labels."""
    parts = getattr(task, "parts", ())
    return isinstance(task, Weighted) or any(is_weighted(part.task) for part in parts)


def _spread(weights, places, what):
    """Broadcasts weights of examples or positions to all positions, float32 [*places]."""
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


def _is_class_weight(class_number, weight):
    if not isinstance(class_number, numbers.Integral) or not isinstance(weight, numbers.Real):
        return False
    return weight >= 0 and np.isfinite(weight)


def with_weights(task, ignore_class, weights, class_weight):
    """Wraps a Task in Weighted if anything weighs its labels; otherwise returns the Task.

    Args:
        task: Task to wrap.
        ignore_class: class number that the compiled loss ignores, or None.
        weights: list with the weights of each data source, or None for a source without weights.
        class_weight: {class number: weight}, or None.

    Raises:
        EkgError: the task cannot be weighted, or class_weight is invalid.
    """
    has_weights = any(array is not None for array in weights)
    if class_weight is not None and has_weights:
        raise EkgError(
            "`class_weight` and weights of the examples exclude each other; multiply them yourself."
        )
    if class_weight is not None:
        is_dict = isinstance(class_weight, dict)
        if not is_dict or not all(_is_class_weight(*pair) for pair in class_weight.items()):
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
