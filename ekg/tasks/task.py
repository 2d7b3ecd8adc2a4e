"""What every task can do; the tasks themselves are in ekg.tasks."""

import dataclasses

import keras
import numpy as np

from ekg.errors import EkgError
from ekg.tasks import logits

# that examples without classes are dealt to, so that a draw from each is a draw from everywhere
PARTS = 10


@dataclasses.dataclass(frozen=True)
class Task:
    """What a network is for; see ekg.tasks.

    Attributes:
        output: number of the output that is meant, where the network has several, in the order in
            which Keras flattens them.
        name: what to call the task.
        metrics: names of its figures of merit, of metrics.METRICS; a search's history keeps the
            first.
        has_class_logits: whether the output is a vector of class logits, whose kernel keeps its
            norm when it is cut.
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
            raise EkgError(
                f"`model` {graph.model.name!r} has {len(graph.outputs)} outputs, and the task "
                f"means output {self.output}; they are counted from 0."
            )
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
        """Returns the sizes of an output's axes that are places of what is seen, as labels have
        them; () for none.
        """
        return tuple(output[:-1])

    def seen_parts(self, output):
        """Returns (Task, shape of its output) of each output that is held in one of this shape."""
        return [(self, output)]

    def moved(self, values, output, first, move):
        """Returns labels or knowledge whose places begin at axis `first` as move(values, end of the
        places) moves them.
        """
        count = len(self.places(output))
        return move(values, first + count) if count else values

    def in_training(self):
        """Returns the Task whose losses networks are trained with."""
        return self

    def taking_labels(self, function):
        """Returns a function (images, prepared labels, seed) of a user's own with labels as users
        see them.
        """
        return function

    def check_network(self, graph):
        """Raises EkgError unless the output of a graph.calls.Graph is what the losses take."""
        self.check_output(graph)

    def check_output(self, graph):
        """Raises EkgError unless a network's output has a shape that the task knows; see
        check_network.
        """
        shape = graph.shapes[self.tensor(graph)]
        problem = self._problem(shape)
        if problem:
            raise EkgError(
                f"`model` {graph.model.name!r} returns an output of shape {shape}; {problem}"
            )

    def _problem(self, shape):
        """Returns what is wrong with an output of this shape, (batch, ...), or None."""
        raise NotImplementedError

    def _check_is_not_squashed(self, graph):
        """Raises EkgError if an output is made of probabilities, by its last layer."""
        number = self.tensor(graph)
        last = next((call.layer for call in graph.calls if number in call.outputs), None)
        if last is not None and logits.squashes(last):
            raise EkgError(
                f"`model` {graph.model.name!r} returns probabilities, by its last layer "
                f"{last.name!r}; take the network without it, which returns logits."
            )

    def metrics_of(self, shape):
        """Returns the names of the figures of merit that say something of outputs of this shape,
        without the batch.
        """
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
            raise EkgError(
                f"{what}: {prepared.dtype} of shape {prepared.shape} is needed; received "
                f"{labels.dtype} of shape {labels.shape}."
            )

    def strata(self, labels):
        """Returns the number of the class, or part, of every example, int [examples], that balanced
        draws keep apart.
        """
        return np.arange(len(labels)) * PARTS // max(len(labels), 1)

    def given(self, labels):
        """Returns what a user gave of prepared labels; the unpruned network made the rest."""
        return labels

    # ---------------------------------------------------------------- losses

    def scale(self, labels):
        """Returns what losses and divergences are divided by in training, so that a learning rate
        fits labels of any scale.

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
        """Returns the distance of every example's output to knowledge, [batch]: the second term of
        the reward.

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
        """Returns {metric: its value for every example, [batch]}, whose means are the task's
        figures of merit.
        """
        raise NotImplementedError
