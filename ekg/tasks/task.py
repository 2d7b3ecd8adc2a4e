"""The base class of all tasks; the tasks themselves are in ekg.tasks.kinds."""

import dataclasses
from typing import ClassVar

import keras
import numpy as np

from ekg.errors import EkgError
from ekg.tasks import logits

NUM_STRATA = 10  # strata for balanced draws from examples that have no classes


@dataclasses.dataclass(frozen=True)
class Task:
    """What a network is for: its losses, labels and metrics; see ekg.tasks.

    Attributes:
        output: number of the network output that the task is for, in the order in which Keras
            flattens the outputs.
        name: name of the task in messages and tables.
        metrics: names of its metrics, from metrics.METRICS; the search history records the first.
        has_class_logits: whether the output is a vector of class logits; their kernel is rescaled
            to its old norm when it is cut.
        has_labels: whether the user supplies the labels of all outputs that count; see
            imitation.Imitation.
        takes_smoothing: whether labels are classes, which label smoothing needs.
        takes_logits: whether the losses take logits, so that a final softmax or sigmoid is removed.
        needs_teacher_of_views: whether a view may change the right answer of an unlabelled output,
            so that the teacher has to see the same view.
    """

    output: int = 0
    name = "task"
    metrics: ClassVar[tuple[str, ...]] = ()
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
        """Numbers of the outputs whose final softmax or sigmoid is removed."""
        return self.outputs if self.takes_logits else ()

    @property
    def unwrapped(self):
        """The Task whose formulas are used; see wrapper.Wrapper."""
        return self

    def tensor(self, graph):
        """Returns the number of the task's output tensor in a graph.calls.Graph.

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
        """Returns the numbers of all output tensors that count in a graph.calls.Graph."""
        return [self.tensor(graph)]

    def joined(self, values):
        """Joins the values of tensors() into the one tensor [batch, ...] that the losses take."""
        return values[0]

    def of(self, outputs):
        """Returns the tensor that the losses take, given all outputs of the network."""
        flat = keras.tree.flatten(outputs)
        return self.joined([flat[number] for number in self.outputs])

    def shape(self, graph):
        """Returns the shape of the tensor that the losses take, for one example."""
        return tuple(graph.shapes[self.tensor(graph)][1:])

    def places(self, output):
        """Returns the sizes of the spatial axes that outputs and labels share; () without any.

        Args:
            output: shape of the output for one example.
        """
        return tuple(output[:-1])

    def seen_parts(self, output):
        """Returns a list of (Task, shape of its output): one pair per output that the task joins.

        Args:
            output: shape of the joined output for one example.
        """
        return [(self, output)]

    def moved(self, values, output, first, move):
        """Moves labels or knowledge in the way in which a view moves the image.

        Args:
            values: labels or knowledge, with batch axes in front.
            output: shape of the output for one example.
            first: number of the first spatial axis of the values.
            move: function (values, number of the axis after the spatial ones) -> moved values.
        """
        count = len(self.places(output))
        return move(values, first + count) if count else values

    def in_training(self):
        """Returns the Task whose losses are used in training, which may weigh outputs otherwise."""
        return self

    def taking_labels(self, function):
        """Adapts a user's function (images, labels, seed) so that it takes prepared labels."""
        return function

    def check_network(self, graph):
        """Raises EkgError unless the losses can take the output of a graph.calls.Graph."""
        self.check_output(graph)

    def check_output(self, graph):
        """Raises EkgError unless a graph.calls.Graph has an output of a shape that the task knows.

        Unlike check_network(), it accepts a final softmax or sigmoid.
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
        """Raises EkgError if the last layer turns logits into probabilities."""
        number = self.tensor(graph)
        last = next((call.layer for call in graph.calls if number in call.outputs), None)
        if last is not None and logits.squashes(last):
            raise EkgError(
                f"`model` {graph.model.name!r} returns probabilities, by its last layer "
                f"{last.name!r}; take the network without it, which returns logits."
            )

    def metrics_of(self, shape):
        """Returns the names of the metrics that are meaningful for outputs of this shape.

        Args:
            shape: shape of the output for one example.
        """
        return self.metrics

    # ---------------------------------------------------------------- labels

    def prepare_labels(self, labels, shape, what="labels"):
        """Returns labels in the form that the losses take, an array [examples, ...].

        Args:
            labels: labels in the user's form, array [examples, ...].
            shape: shape of the output for one example.
            what: name of the labels in error messages.

        Raises:
            EkgError: the labels do not fit such an output.
        """
        raise NotImplementedError

    def check_labels(self, labels, shape, what="labels"):
        """Raises EkgError unless labels have the form that prepare_labels() returns."""
        prepared = self.prepare_labels(labels, shape, what)
        labels = np.asarray(labels)
        if prepared.shape != labels.shape or prepared.dtype.kind != labels.dtype.kind:
            raise EkgError(
                f"{what}: {prepared.dtype} of shape {prepared.shape} is needed; received "
                f"{labels.dtype} of shape {labels.shape}."
            )

    def strata(self, labels):
        """Returns the class or stratum of each example for balanced draws, int [examples].

        Without classes, the examples are cut into NUM_STRATA stretches of equal length.
        """
        return np.arange(len(labels)) * NUM_STRATA // max(len(labels), 1)

    def given(self, labels):
        """Returns the part of prepared labels that the user supplied, not the unpruned network."""
        return labels

    # ---------------------------------------------------------------- losses

    def scale(self, labels):
        """Returns the divisor of losses and divergences in training.

        It makes one learning rate fit labels of any scale.

        Args:
            labels: prepared labels of the training examples.
        """
        return 1.0

    def loss(self, labels, outputs, smoothing=0.0):
        """Returns the loss per example, [batch].

        Args:
            labels: prepared labels, [batch, ...].
            outputs: the network's outputs, [batch, ...].
            smoothing: share of a label that is spread over all classes, if there are classes.
        """
        raise NotImplementedError

    def label_loss(self, labels, outputs, smoothing=0.0):
        """Returns the loss like loss(), but of the outputs alone that the user labelled."""
        return self.loss(labels, outputs, smoothing)

    def distance(self, teacher, outputs):
        """Returns the distance to knowledge per example, [batch]: the second term of the reward.

        Args:
            teacher: outputs according to the knowledge, [batch, ...].
            outputs: the network's outputs, [batch, ...].
        """
        raise NotImplementedError

    def divergence(self, teacher, outputs, temperature):
        """Returns the distillation loss per example, [batch].

        Args:
            teacher: the teacher's outputs, [batch, ...].
            outputs: the network's outputs, [batch, ...], which broadcast with the teacher's.
            temperature: the temperature τ.
        """
        raise NotImplementedError

    def measure(self, labels, outputs):
        """Returns {name of a metric: value per example, [batch]}; a metric is the mean of these."""
        raise NotImplementedError
