"""Tasks: what the method needs to know of what a network is for.

A task is a small object that holds no numbers of its own: the loss of outputs with labels, the
distance of outputs to knowledge, figures of merit, and which output of the network is meant. The
formulas of the method (Lee and Song 2022) are those of Classification; every other task states what
it takes in their place.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from ekg.errors import EkgError
from ekg.tasks import logits
from ekg.tasks.labels import check_labels, prepare_classes, prepare_shares
from ekg.tasks.logits import cross_entropy, kl_divergence, mean_of_example, soft_cross_entropy
from ekg.tasks.task import PARTS, Task

TOP5_CLASSES = 10  # of fewer classes most are among the first five
SCALED_EXAMPLES = 4096  # that the scale of labels is taken from

# ---------------------------------------------------------------- classification


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """One class of several; the output is a vector of logits z [classes].

    Loss: cross-entropy CE(y, z). Distance: CE(softmax(t), z). Divergence: τ·KL(softmax(t/τ) ‖
    softmax(z/τ)) with the factor τ of the paper. Labels are class numbers, also of shape (examples,
    1), or one-hot vectors, or shares of the classes.
    """

    name = "classification"
    metrics = ("top1", "top5")
    has_class_logits = True

    def metrics_of(self, shape):
        return self.metrics if shape[-1] >= TOP5_CLASSES else self.metrics[:1]

    def check_network(self, graph):
        super().check_network(graph)
        self._check_is_not_squashed(graph)

    def _problem(self, shape):
        if len(shape) != 2 or shape[-1] < 2:
            return "a search needs class logits, (batch, classes) with at least two classes."
        return None

    def prepare_labels(self, labels, shape, what="labels"):
        return prepare_classes(labels, 1, shape[-1], what)

    def check_labels(self, labels, shape, what="labels"):
        check_labels(labels, shape[-1], what)

    def strata(self, labels):
        labels = np.asarray(labels)
        return labels if labels.ndim == 1 else labels.argmax(-1)

    def loss(self, labels, outputs, smoothing=0.0):
        loss = cross_entropy(labels, outputs)
        if smoothing:  # Szegedy et al. 2016, section 7
            loss = (1 - smoothing) * loss - smoothing * tf.reduce_mean(
                tf.nn.log_softmax(outputs), axis=-1
            )
        return loss

    def distance(self, teacher, outputs):
        return soft_cross_entropy(teacher, outputs)

    def divergence(self, teacher, outputs, temperature):
        return kl_divergence(teacher, outputs, temperature)

    def measure(self, labels, outputs):
        return {
            "top1": logits.top_k_hits(labels, outputs, 1),
            "top5": logits.top_k_hits(labels, outputs, 5),
        }


@dataclasses.dataclass(frozen=True)
class DenseClassification(Task):
    """A class for every position, as in segmentation; the output is a map of logits [..., classes].

    Every formula is Classification's at each position, and the mean over the positions. Labels are
    class numbers [...], with or without a last axis of length 1, or one-hot vectors, or shares of
    the classes.
    """

    name = "dense classification"
    metrics = ("pixel_accuracy",)

    def check_network(self, graph):
        super().check_network(graph)
        self._check_is_not_squashed(graph)

    def _problem(self, shape):
        if len(shape) < 3 or shape[-1] < 2:
            return (
                "a dense classification needs a map of logits, (batch, ..., classes) with at "
                "least two classes."
            )
        return None

    def prepare_labels(self, labels, shape, what="labels"):
        labels = prepare_classes(labels, len(shape), shape[-1], what)
        if (places := labels.shape[1 : len(shape)]) != (expected := tuple(shape[:-1])):
            raise EkgError(
                f"{what} are maps of {places}, and the network returns maps of {expected}."
            )
        return labels

    def loss(self, labels, outputs, smoothing=0.0):
        loss = cross_entropy(labels, outputs)
        if smoothing:
            loss = (1 - smoothing) * loss - smoothing * tf.reduce_mean(
                tf.nn.log_softmax(outputs), axis=-1
            )
        return mean_of_example(loss)

    def distance(self, teacher, outputs):
        return mean_of_example(soft_cross_entropy(teacher, outputs))

    def divergence(self, teacher, outputs, temperature):
        return mean_of_example(kl_divergence(teacher, outputs, temperature))

    def measure(self, labels, outputs):
        is_right = tf.argmax(outputs, axis=-1, output_type=tf.int32) == logits.most_likely(
            labels, outputs
        )
        return {"pixel_accuracy": mean_of_example(tf.cast(is_right, tf.float32))}


@dataclasses.dataclass(frozen=True)
class MultiLabel(Task):
    """Labels that hold or not, one or several, each for itself; the output is a vector of logits z
    [labels].

    Every label is a classification with the two logits (0, z), and every formula the mean over the
    labels of Classification's: loss BCE(y, σ(z)), distance BCE(σ(t), σ(z)), divergence τ·KL(σ(t/τ)
    ‖ σ(z/τ)). Labels are 0 or 1, or soft labels between, of shape (examples, labels), or
    (examples,) for a single one.
    """

    name = "multi-label classification"
    metrics = ("accuracy",)
    has_class_logits = True

    def check_network(self, graph):
        super().check_network(graph)
        self._check_is_not_squashed(graph)

    def _problem(self, shape):
        return "labels that hold or not need logits, (batch, labels)." if len(shape) != 2 else None

    def prepare_labels(self, labels, shape, what="labels"):
        return prepare_shares(labels, shape, what)

    def strata(self, labels):
        return (
            (labels[:, 0] > 0.5).astype(int) if labels.shape[1:] == (1,) else super().strata(labels)
        )

    def loss(self, labels, outputs, smoothing=0.0):
        labels = (1 - smoothing) * labels + smoothing / 2 if smoothing else labels
        return mean_of_example(tf.nn.sigmoid_cross_entropy_with_logits(labels, outputs))

    def distance(self, teacher, outputs):
        return mean_of_example(
            tf.nn.sigmoid_cross_entropy_with_logits(tf.sigmoid(teacher), outputs)
        )

    def divergence(self, teacher, outputs, temperature):
        p, q = teacher / temperature, outputs / temperature
        share = tf.sigmoid(p)
        difference = share * (tf.math.log_sigmoid(p) - tf.math.log_sigmoid(q)) + (1 - share) * (
            tf.math.log_sigmoid(-p) - tf.math.log_sigmoid(-q)
        )
        return temperature * mean_of_example(difference)

    def measure(self, labels, outputs):
        is_right = (outputs > 0) == (labels > 0.5)
        return {self.metrics[0]: mean_of_example(tf.cast(is_right, tf.float32))}


@dataclasses.dataclass(frozen=True)
class DenseMultiLabel(MultiLabel):
    """Labels that hold or not at every place, as in segmentation by a sigmoid: MultiLabel's
    formulas, means over a map.
    """

    name = "dense multi-label classification"
    metrics = ("pixel_accuracy",)
    has_class_logits = False

    def _problem(self, shape):
        return (
            "labels that hold or not at each place need maps of logits, (batch, ..., labels)."
            if len(shape) < 3
            else None
        )


# ---------------------------------------------------------------- regression


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """Numbers; the output z has the shape of a label.

    With a Gaussian of unit variance around the output, twice the negative log-likelihood and twice
    the Kullback-Leibler
    divergence are squared differences, up to constants. Loss: mean over the numbers of (y − z)².
        Distance: that of (t − z)².
    Divergence: τ·((t − z)/τ)², as outputs are divided by τ, with the factor τ of the paper.
    """

    name = "regression"
    metrics = ("mae",)
    takes_smoothing = False
    takes_logits = False  # what it ends with belongs to its numbers

    def _problem(self, shape):
        return "a regression needs at least one number, (batch, ...)." if len(shape) < 2 else None

    def prepare_labels(self, labels, shape, what="labels"):
        labels = np.asarray(labels)
        if labels.dtype.kind not in "biuf" or not np.isfinite(labels).all():
            raise EkgError(f"{what}: a regression needs finite numbers; received {labels.dtype}.")
        if labels.shape[1:] == tuple(shape[:-1]) and shape[-1] == 1:
            labels = labels[..., None]
        if labels.shape[1:] != tuple(shape):
            raise EkgError(
                f"{what} have shape {labels.shape[1:]} each, and the network returns "
                f"{tuple(shape)}."
            )
        return labels.astype(np.float32)

    def strata(self, labels):
        """Tenths of the range of the first number, of maps of their mean, as many examples in
        each.
        """
        first = (
            labels.reshape(len(labels), -1).mean(1)
            if labels.ndim > 2
            else labels.reshape(len(labels), -1)[:, 0]
        )
        parts = np.empty(len(labels), np.int64)
        parts[np.argsort(first, kind="stable")] = (
            np.arange(len(labels)) * min(PARTS, len(labels)) // max(len(labels), 1)
        )
        return parts

    def scale(self, labels):
        """The variance of the labels, mean over the numbers of an example, where it is above 1; of
        another loss 1.
        """
        if type(self).loss is not Regression.loss:
            return 1.0
        some = labels[:: max(len(labels) // SCALED_EXAMPLES, 1)]
        return max(float(some.var(axis=0, dtype=np.float64).mean()), 1.0)

    def loss(self, labels, outputs, smoothing=0.0):
        if smoothing:
            raise EkgError(
                "`label_smoothing` has no effect here: a regression has no classes; leave it out."
            )
        return mean_of_example(tf.math.squared_difference(labels, outputs))

    def distance(self, teacher, outputs):
        return mean_of_example(tf.math.squared_difference(teacher, outputs))

    def divergence(self, teacher, outputs, temperature):
        return mean_of_example(tf.math.squared_difference(teacher, outputs)) / temperature

    def measure(self, labels, outputs):
        return {"mae": mean_of_example(tf.abs(labels - outputs))}


TASKS = {
    "classification": Classification,
    "multi_label": MultiLabel,
    "dense_classification": DenseClassification,
    "dense_multi_label": DenseMultiLabel,
    "regression": Regression,
}
