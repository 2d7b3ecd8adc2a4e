"""Tasks: what the method needs to know of what a network is for.

A task is a small object that holds no numbers of its own: the loss of outputs with labels, the distance of outputs to
knowledge, figures of merit, and which output of the network is meant. The formulas of the method (Lee and Song 2022) are
those of Classification; every other task states what it takes in their place.
"""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from ekg import logits
from ekg.errors import EkgError
from ekg.labels import check_labels, prepare_classes
from ekg.logits import cross_entropy, kl_divergence, mean_of_example, soft_cross_entropy

TOP5_CLASSES = 10  # of fewer classes most are among the first five
SCALED_EXAMPLES = 4096  # that the scale of labels is taken from
PARTS = 10  # that examples without classes are dealt to, so that a draw from each is a draw from everywhere


@dataclasses.dataclass(frozen=True)
class Task:
    """What a network is for; see the classes below.

    Attributes:
        output: number of the output that is meant, where the network has several, in the order in which Keras flattens them.
        name: what to call the task.
        metrics: names of its figures of merit, of metrics.METRICS; a search's history keeps the first.
        has_class_logits: whether the output is a vector of class logits, whose kernel keeps its norm when it is cut.
        has_labels: whether users give labels for all that counts; see imitation.Imitation.
        takes_smoothing: whether labels are classes, so that label smoothing means something.
        takes_logits: whether a softmax or sigmoid at the end is taken off.
        needs_teacher_of_views: whether a view may change what an unlabelled output should say.
    """
    output: int = 0
    name = "task"
    metrics = ()
    has_class_logits = False
    has_labels = True
    takes_smoothing = True
    takes_logits = True
    needs_teacher_of_views = False

    # ---------------------------------------------------------------- networks

    @property
    def outputs(self):
        """Numbers of the network's outputs that count."""
        return (self.output,)

    @property
    def logits(self):
        """Numbers of those whose softmax or sigmoid is taken off."""
        return self.outputs if self.takes_logits else ()

    def tensor(self, graph):
        """Returns the number of the tensor that is meant of a graph.calls.Graph.

        Raises:
            EkgError: the network has no such output.
        """
        if not 0 <= self.output < len(graph.outputs):
            raise EkgError(f"`model` {graph.model.name!r} has {len(graph.outputs)} outputs, and the task means output "
                           f"{self.output}; they are counted from 0.")
        return graph.outputs[self.output]

    def tensors(self, graph):
        """Returns the numbers of the tensors that count of a graph.calls.Graph; see tensor()."""
        return [self.tensor(graph)]

    def joined(self, values):
        """Returns what the losses take, one tensor [batch, ...], of the values of tensors()."""
        return values[0]

    def of(self, outputs):
        """Returns what the losses take of a network's outputs, as the network gives them."""
        flat = keras.tree.flatten(outputs)
        return self.joined([flat[number] for number in self.outputs])

    def shape(self, graph):
        """Returns the shape of what the losses take for one example."""
        return tuple(graph.shapes[self.tensor(graph)][1:])

    def places(self, output):
        """Returns the sizes of an output's axes that are places of what is seen, as labels have them; () for none."""
        return tuple(output[:-1])

    def seen_parts(self, output):
        """Returns (Task, shape of its output) of each output that is held in one of this shape."""
        return [(self, output)]

    def moved(self, values, output, first, move):
        """Returns labels or knowledge whose places begin at axis `first` as move(values, end of the places) moves them."""
        count = len(self.places(output))
        return move(values, first + count) if count else values

    def taking_labels(self, function):
        """Returns a function (images, prepared labels, seed) of a user's own with labels as users see them."""
        return function

    def check_network(self, graph):
        """Raises EkgError unless the output of a graph.calls.Graph is what the losses take."""
        self.check_output(graph)

    def check_output(self, graph):
        """Raises EkgError unless a network's output has a shape that the task knows; see check_network."""
        shape = graph.shapes[self.tensor(graph)]
        problem = self._problem(shape)
        if problem:
            raise EkgError(f"`model` {graph.model.name!r} returns an output of shape {shape}; {problem}")

    def _problem(self, shape):
        """Returns what is wrong with an output of this shape, (batch, ...), or None."""
        raise NotImplementedError

    def _check_is_not_squashed(self, graph):
        """Raises EkgError if an output is made of probabilities, by its last layer."""
        number = self.tensor(graph)
        last = next((call.layer for call in graph.calls if number in call.outputs), None)
        if last is not None and logits.squashes(last):
            raise EkgError(f"`model` {graph.model.name!r} returns probabilities, by its last layer {last.name!r}; take the "
                           "network without it, which returns logits.")

    def metrics_of(self, shape):
        """Returns the names of the figures of merit that say something of outputs of this shape, without the batch."""
        return self.metrics

    # ---------------------------------------------------------------- labels

    def prepare_labels(self, labels, shape, what="labels"):
        """Returns labels in the one form that the losses take, an array [examples, ...].

        Args:
            labels: as a user has them, array [examples, ...].
            shape: of the output for one example.
            what: what to call them in an error.

        Raises:
            EkgError: they are not labels for such an output.
        """
        raise NotImplementedError

    def check_labels(self, labels, shape, what="labels"):
        """Raises EkgError unless labels have the form that prepare_labels() gives."""
        prepared, labels = self.prepare_labels(labels, shape, what), np.asarray(labels)
        if prepared.shape != labels.shape or prepared.dtype.kind != labels.dtype.kind:
            raise EkgError(f"{what}: {prepared.dtype} of shape {prepared.shape} is needed; received {labels.dtype} of shape "
                           f"{labels.shape}.")

    def strata(self, labels):
        """Returns the number of the class, or part, of every example, int [examples], that balanced draws keep apart."""
        return np.arange(len(labels)) * PARTS // max(len(labels), 1)

    def given(self, labels):
        """Returns what a user gave of prepared labels; the unpruned network made the rest."""
        return labels

    # ---------------------------------------------------------------- losses

    def scale(self, labels):
        """Returns what losses and divergences are divided by in training, so that a learning rate fits labels of any scale.

        Args:
            labels: of the training examples, as prepare_labels() gives.
        """
        return 1.0

    def loss(self, labels, outputs, smoothing=0.0):
        """Returns the loss of every example with its label, [batch].

        Args:
            labels: as prepare_labels() gives, [batch, ...].
            outputs: [batch, ...].
            smoothing: share of a label that is spread over all classes, where there are classes.
        """
        raise NotImplementedError

    def label_loss(self, labels, outputs, smoothing=0.0):
        """Returns the loss as loss() does, but of what a user labelled alone."""
        return self.loss(labels, outputs, smoothing)

    def distance(self, teacher, outputs):
        """Returns the distance of every example's output to knowledge, [batch]: the second term of the reward.

        Args:
            teacher: what the knowledge says, of the outputs' shape.
            outputs: [batch, ...].
        """
        raise NotImplementedError

    def divergence(self, teacher, outputs, temperature):
        """Returns the distillation loss of every example, [batch].

        Args:
            teacher: [batch, ...].
            outputs: [batch, ...], of a shape that broadcasts with the teacher's.
            temperature: τ.
        """
        raise NotImplementedError

    def measure(self, labels, outputs):
        """Returns {metric: its value for every example, [batch]}, whose means are the task's figures of merit."""
        raise NotImplementedError


# ---------------------------------------------------------------- classification

@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """One class of several; the output is a vector of logits z [classes].

    Loss: cross-entropy CE(y, z). Distance: CE(softmax(t), z). Divergence: τ·KL(softmax(t/τ) ‖ softmax(z/τ)) with the factor
    τ of the paper. Labels are class numbers, also of shape (examples, 1), or one-hot vectors, or shares of the classes.
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
            loss = (1 - smoothing) * loss - smoothing * tf.reduce_mean(tf.nn.log_softmax(outputs), axis=-1)
        return loss

    def distance(self, teacher, outputs):
        return soft_cross_entropy(teacher, outputs)

    def divergence(self, teacher, outputs, temperature):
        return kl_divergence(teacher, outputs, temperature)

    def measure(self, labels, outputs):
        return {"top1": logits.top_k_hits(labels, outputs, 1), "top5": logits.top_k_hits(labels, outputs, 5)}


@dataclasses.dataclass(frozen=True)
class DenseClassification(Task):
    """A class for every position, as in segmentation; the output is a map of logits [..., classes].

    Every formula is Classification's at each position, and the mean over the positions. Labels are class numbers [...], with
    or without a last axis of length 1, or one-hot vectors, or shares of the classes.
    """
    name = "dense classification"
    metrics = ("pixel_accuracy",)

    def check_network(self, graph):
        super().check_network(graph)
        self._check_is_not_squashed(graph)

    def _problem(self, shape):
        if len(shape) < 3 or shape[-1] < 2:
            return "a dense classification needs a map of logits, (batch, ..., classes) with at least two classes."
        return None

    def prepare_labels(self, labels, shape, what="labels"):
        labels = prepare_classes(labels, len(shape), shape[-1], what)
        if (places := labels.shape[1:len(shape)]) != (expected := tuple(shape[:-1])):
            raise EkgError(f"{what} are maps of {places}, and the network returns maps of {expected}.")
        return labels

    def loss(self, labels, outputs, smoothing=0.0):
        loss = cross_entropy(labels, outputs)
        if smoothing:
            loss = (1 - smoothing) * loss - smoothing * tf.reduce_mean(tf.nn.log_softmax(outputs), axis=-1)
        return mean_of_example(loss)

    def distance(self, teacher, outputs):
        return mean_of_example(soft_cross_entropy(teacher, outputs))

    def divergence(self, teacher, outputs, temperature):
        return mean_of_example(kl_divergence(teacher, outputs, temperature))

    def measure(self, labels, outputs):
        is_right = tf.argmax(outputs, axis=-1, output_type=tf.int32) == logits.most_likely(labels, outputs)
        return {"pixel_accuracy": mean_of_example(tf.cast(is_right, tf.float32))}


@dataclasses.dataclass(frozen=True)
class MultiLabel(Task):
    """Labels that hold or not, one or several, each for itself; the output is a vector of logits z [labels].

    Every label is a classification with the two logits (0, z), and every formula the mean over the labels of
    Classification's: loss BCE(y, σ(z)), distance BCE(σ(t), σ(z)), divergence τ·KL(σ(t/τ) ‖ σ(z/τ)). Labels are 0 or 1, or
    soft labels between, of shape (examples, labels), or (examples,) for a single one.
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
        labels = np.asarray(labels)
        labels = labels[..., None] if labels.ndim == len(shape) else labels
        if labels.shape[1:] != tuple(shape):
            raise EkgError(f"{what}: the network has {shape[-1]} outputs, so (examples, {', '.join(map(str, shape))}) zeros "
                           f"and ones are needed; received shape {labels.shape}.")
        if labels.dtype.kind not in "biuf" or not ((labels >= 0) & (labels <= 1)).all():
            raise EkgError(f"{what} must be 0 or 1, or shares between; received others.")
        return labels.astype(np.float32)

    def strata(self, labels):
        return (labels[:, 0] > 0.5).astype(int) if labels.shape[1:] == (1,) else super().strata(labels)

    def loss(self, labels, outputs, smoothing=0.0):
        labels = (1 - smoothing) * labels + smoothing / 2 if smoothing else labels
        return mean_of_example(tf.nn.sigmoid_cross_entropy_with_logits(labels, outputs))

    def distance(self, teacher, outputs):
        return mean_of_example(tf.nn.sigmoid_cross_entropy_with_logits(tf.sigmoid(teacher), outputs))

    def divergence(self, teacher, outputs, temperature):
        p, q = teacher / temperature, outputs / temperature
        share = tf.sigmoid(p)
        difference = share * (tf.math.log_sigmoid(p) - tf.math.log_sigmoid(q)) + (1 - share) * (
            tf.math.log_sigmoid(-p) - tf.math.log_sigmoid(-q))
        return temperature * mean_of_example(difference)

    def measure(self, labels, outputs):
        is_right = (outputs > 0) == (labels > 0.5)
        return {self.metrics[0]: mean_of_example(tf.cast(is_right, tf.float32))}


@dataclasses.dataclass(frozen=True)
class DenseMultiLabel(MultiLabel):
    """Labels that hold or not at every place, as in segmentation by a sigmoid: MultiLabel's formulas, means over a map."""
    name = "dense multi-label classification"
    metrics = ("pixel_accuracy",)
    has_class_logits = False

    def _problem(self, shape):
        return "labels that hold or not at each place need maps of logits, (batch, ..., labels)." if len(shape) < 3 else None


# ---------------------------------------------------------------- regression

@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """Numbers; the output z has the shape of a label.

    With a Gaussian of unit variance around the output, twice the negative log-likelihood and twice the Kullback-Leibler
    divergence are squared differences, up to constants. Loss: mean over the numbers of (y − z)². Distance: that of (t − z)².
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
            raise EkgError(f"{what} have shape {labels.shape[1:]} each, and the network returns {tuple(shape)}.")
        return labels.astype(np.float32)

    def strata(self, labels):
        """Tenths of the range of the first number, of maps of their mean, as many examples in each."""
        first = labels.reshape(len(labels), -1).mean(1) if labels.ndim > 2 else labels.reshape(len(labels), -1)[:, 0]
        parts = np.empty(len(labels), np.int64)
        parts[np.argsort(first, kind="stable")] = np.arange(len(labels)) * min(PARTS, len(labels)) // max(len(labels), 1)
        return parts

    def scale(self, labels):
        """The variance of the labels, mean over the numbers of an example, where it is above 1; of another loss 1."""
        if type(self).loss is not Regression.loss:
            return 1.0
        some = labels[::max(len(labels) // SCALED_EXAMPLES, 1)]
        return max(float(some.var(axis=0, dtype=np.float64).mean()), 1.0)

    def loss(self, labels, outputs, smoothing=0.0):
        if smoothing:
            raise EkgError("`label_smoothing` has no effect here: a regression has no classes; leave it out.")
        return mean_of_example(tf.math.squared_difference(labels, outputs))

    def distance(self, teacher, outputs):
        return mean_of_example(tf.math.squared_difference(teacher, outputs))

    def divergence(self, teacher, outputs, temperature):
        return mean_of_example(tf.math.squared_difference(teacher, outputs)) / temperature

    def measure(self, labels, outputs):
        return {"mae": mean_of_example(tf.abs(labels - outputs))}


TASKS = {"classification": Classification, "multi_label": MultiLabel, "dense_classification": DenseClassification,
         "dense_multi_label": DenseMultiLabel, "regression": Regression}
