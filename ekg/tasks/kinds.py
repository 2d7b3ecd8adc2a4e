"""The tasks: classification, multi-label classification and regression, of images and of maps.

Classification uses the formulas of the method (Lee and Song 2022); every other task states what it
uses instead.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from ekg.errors import EkgError
from ekg.tasks import logits
from ekg.tasks.labels import check_finite, check_labels, prepare_classes, prepare_shares
from ekg.tasks.logits import cross_entropy, kl_divergence, mean_of_example, soft_cross_entropy
from ekg.tasks.task import NUM_STRATA, Task

TOP5_CLASSES = 10  # top-5 means little with fewer classes: most of them are among the first five
SCALED_EXAMPLES = 4096  # examples that the scale of labels is estimated from

# ---------------------------------------------------------------- classification


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """One class out of several; the output is a vector of logits z [classes].

    Loss: cross-entropy CE(y, z). Distance to a teacher's logits t: CE(softmax(t), z). Divergence:
    τ·KL(softmax(t/τ) ‖ softmax(z/τ)), where the factor τ is the paper's. Labels are class numbers,
    (examples,) or (examples, 1), or one-hot vectors, or class probabilities.
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
    """A class per position, as in segmentation; the output is a map of logits [..., classes].

    Every formula is the mean of Classification's over all positions. Labels are class numbers
    [...], with or without a last axis of length 1, or one-hot vectors, or class probabilities.
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
        places = labels.shape[1 : len(shape)]
        expected = tuple(shape[:-1])
        if places != expected:
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
        predicted = tf.argmax(outputs, axis=-1, output_type=tf.int32)
        is_right = predicted == logits.most_likely(labels, outputs)
        return {"pixel_accuracy": mean_of_example(tf.cast(is_right, tf.float32))}


@dataclasses.dataclass(frozen=True)
class MultiLabel(Task):
    """Independent yes-or-no labels, one or several; the output is a vector of logits z [labels].

    Every label is a classification with the two logits (0, z), and every formula is the mean of
    Classification's over the labels: loss BCE(y, σ(z)), distance BCE(σ(t), σ(z)), divergence
    τ·KL(σ(t/τ) ‖ σ(z/τ)). Labels are 0 or 1, or soft labels in between, with the shape (examples,
    labels), or (examples,) for a single label.
    """

    name = "multi-label classification"
    metrics = ("accuracy",)
    has_class_logits = True

    def check_network(self, graph):
        super().check_network(graph)
        self._check_is_not_squashed(graph)

    def _problem(self, shape):
        return "yes-or-no labels need logits, (batch, labels)." if len(shape) != 2 else None

    def prepare_labels(self, labels, shape, what="labels"):
        return prepare_shares(labels, shape, what)

    def strata(self, labels):
        if labels.shape[1:] != (1,):
            return super().strata(labels)
        return (labels[:, 0] > 0.5).astype(int)

    def loss(self, labels, outputs, smoothing=0.0):
        labels = (1 - smoothing) * labels + smoothing / 2 if smoothing else labels
        return mean_of_example(tf.nn.sigmoid_cross_entropy_with_logits(labels, outputs))

    def distance(self, teacher, outputs):
        losses = tf.nn.sigmoid_cross_entropy_with_logits(tf.sigmoid(teacher), outputs)
        return mean_of_example(losses)

    def divergence(self, teacher, outputs, temperature):
        p = teacher / temperature
        q = outputs / temperature
        share = tf.sigmoid(p)
        if_yes = tf.math.log_sigmoid(p) - tf.math.log_sigmoid(q)
        if_no = tf.math.log_sigmoid(-p) - tf.math.log_sigmoid(-q)
        return temperature * mean_of_example(share * if_yes + (1 - share) * if_no)

    def measure(self, labels, outputs):
        is_right = (outputs > 0) == (labels > 0.5)
        return {self.metrics[0]: mean_of_example(tf.cast(is_right, tf.float32))}


@dataclasses.dataclass(frozen=True)
class DenseMultiLabel(MultiLabel):
    """Independent yes-or-no labels per position, as in segmentation with a sigmoid.

    Every formula is the mean of MultiLabel's over the map.
    """

    name = "dense multi-label classification"
    metrics = ("pixel_accuracy",)
    has_class_logits = False

    def _problem(self, shape):
        if len(shape) < 3:
            return "yes-or-no labels per position need maps of logits, (batch, ..., labels)."
        return None


# ---------------------------------------------------------------- regression


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """Regression of numbers; the output z has the shape of a label.

    For a Gaussian of unit variance around the output, twice the negative log-likelihood and twice
    the Kullback-Leibler divergence are squared differences, up to constants. Loss: mean of (y − z)²
    over the numbers. Distance to a teacher's output t: mean of (t − z)². Divergence: mean of
    τ·((t − z)/τ)², since outputs are divided by τ, where the factor τ is the paper's.
    """

    name = "regression"
    metrics = ("mae",)
    takes_smoothing = False
    takes_logits = False  # a final softmax or sigmoid is part of the function that is fitted

    def _problem(self, shape):
        return "a regression needs at least one number, (batch, ...)." if len(shape) < 2 else None

    def prepare_labels(self, labels, shape, what="labels"):
        labels = np.asarray(labels)
        if labels.dtype.kind not in "biuf":
            raise EkgError(f"{what}: a regression needs numbers; received {labels.dtype}.")
        check_finite(labels, what)
        if labels.shape[1:] == tuple(shape[:-1]) and shape[-1] == 1:
            labels = labels[..., None]
        if labels.shape[1:] != tuple(shape):
            raise EkgError(
                f"{what} have shape {labels.shape[1:]} each, and the network returns "
                f"{tuple(shape)}."
            )
        return labels.astype(np.float32)

    def strata(self, labels):
        """Deciles of the first number of a label, or of the mean if labels are maps."""
        rows = labels.reshape(len(labels), -1)
        keys = rows.mean(1) if labels.ndim > 2 else rows[:, 0]
        num_strata = min(NUM_STRATA, len(labels))
        strata = np.empty(len(labels), np.int64)
        strata[np.argsort(keys, kind="stable")] = (
            np.arange(len(labels)) * num_strata // max(len(labels), 1)
        )
        return strata

    def scale(self, labels):
        """The variance of the labels, averaged over the numbers of an example, at least 1.

        A subclass with another loss has a scale of 1.
        """
        if type(self).loss is not Regression.loss:
            return 1.0
        sample = labels[:: max(len(labels) // SCALED_EXAMPLES, 1)]
        return max(float(sample.var(axis=0, dtype=np.float64).mean()), 1.0)

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
