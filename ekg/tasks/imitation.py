"""An output without labels: the unpruned network says what is right."""

import dataclasses

import numpy as np
import tensorflow as tf

from ekg.errors import EkgError
from ekg.tasks.kinds import Classification, MultiLabel, Regression, Task
from ekg.tasks.logits import mean_of_example

RARE = 0.1  # share of an equal part of the examples below which a class has no stratum of its own


@dataclasses.dataclass(frozen=True)
class Imitation(Task):
    """An output without labels: what counts is how far it is from the unpruned network's.

    Its labels are the unpruned network's outputs, float32, logits where the kind has classes. Loss:
    the kind's divergence from them at a temperature of 1, which is 0 for the unpruned network
    itself. Distance and divergence are the kind's.

    Attributes:
        kind: Task whose distance and divergence count.
        may_be_logits: whether numbers may be class logits: then it is shown whether the largest is
            the same.
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

    @property
    def needs_teacher_of_views(self):
        """Whether the kind is anything but classes of the whole image."""
        return not isinstance(self.kind, Classification)

    def places(self, output):
        return ()  # the unpruned network sees each view itself

    def seen_parts(self, output):
        return []

    def check_network(self, graph):
        self._own_kind().check_network(graph)

    def check_output(self, graph):
        dtype = graph.dtype(self.tensor(graph))
        if not dtype.startswith(("float", "bfloat")):
            raise EkgError(
                f"`model` {graph.model.name!r}: output {self.output} has no labels and holds "
                f"{dtype}, which nothing can be trained by; name it in `may_lose`."
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

    def scale(self, labels):
        return self.kind.scale(labels)

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
            values = {"difference": mean_of_example(tf.abs(labels - outputs))}
            if self.may_be_logits:
                values["agreement"] = _agrees(tf.argmax(labels, -1) == tf.argmax(outputs, -1))
            return values
        if isinstance(self.kind, MultiLabel):
            return {"agreement": _agrees((labels > 0) == (outputs > 0))}
        return {"agreement": _agrees(tf.argmax(labels, -1) == tf.argmax(outputs, -1))}


def _agrees(is_same):
    return mean_of_example(tf.cast(is_same, tf.float32))
