"""Tasks of outputs without labels: the pruned network imitates the unpruned one."""

import dataclasses

import numpy as np
import tensorflow as tf

from ekg.errors import EkgError
from ekg.tasks.kinds import Classification, MultiLabel, Regression
from ekg.tasks.logits import mean_of_example
from ekg.tasks.wrapper import Wrapper

RARE = 0.1  # share of the mean class size below which a class has no stratum of its own


@dataclasses.dataclass(frozen=True)
class Imitation(Wrapper):
    """The task of an output without labels, measured by its distance to the unpruned network.

    Its labels are the unpruned network's outputs, float32, which are logits if the inner task takes
    logits. The loss is the inner task's divergence from them at temperature 1, which is 0 for the
    unpruned network itself. Distance and divergence are the inner task's.

    Attributes:
        may_be_logits: whether the numbers of a regression may be class logits; if so, a further
            metric compares the largest.
    """

    may_be_logits: bool = False
    has_labels = False
    takes_smoothing = False

    @property
    def name(self):
        """The inner task's name, and that there are no labels."""
        return f"{self.inner.name} without labels"

    @property
    def metrics(self):
        """Names of the metrics: the share of equal answers, or the mean difference."""
        if isinstance(self.inner, Regression):
            return ("difference", "agreement") if self.may_be_logits else ("difference",)
        return ("agreement",)

    @property
    def needs_teacher_of_views(self):
        """Whether the inner task is anything but classification of whole images."""
        return not isinstance(self.inner, Classification)

    def places(self, output):
        return ()  # the unpruned network sees each view itself

    def seen_parts(self, output):
        return []

    def check_network(self, graph):
        self._inner_at_output().check_network(graph)

    def check_output(self, graph):
        dtype = graph.dtype(self.tensor(graph))
        if not dtype.startswith(("float", "bfloat")):
            raise EkgError(
                f"`model` {graph.model.name!r}: output {self.output} has no labels and holds "
                f"{dtype}, which nothing can be trained by; name it in `may_lose`."
            )
        self._inner_at_output().check_output(graph)

    def _inner_at_output(self):
        return dataclasses.replace(self.inner, output=self.output)

    def prepare_labels(self, labels, shape, what="labels"):
        labels = np.asarray(labels)
        if labels.shape[1:] != tuple(shape) or labels.dtype.kind != "f":
            raise EkgError(
                f"{what}: outputs of the unpruned network, {tuple(shape)} each, are needed; "
                f"received {labels.dtype} of shape {labels.shape[1:]}."
            )
        return labels.astype(np.float32, copy=False)

    def strata(self, labels):
        """The classes according to the unpruned network; rare ones join the most frequent one."""
        if isinstance(self.inner, Regression):
            return self.inner.strata(labels)
        if not isinstance(self.inner, Classification):
            return super().strata(labels)
        classes = np.asarray(labels).argmax(axis=-1)
        counts = np.bincount(classes)
        is_rare = counts < RARE * len(classes) / max(np.count_nonzero(counts), 1)
        return np.where(is_rare[classes], counts.argmax(), classes)

    def given(self, labels):
        return labels[:0]

    def loss(self, labels, outputs, smoothing=0.0):
        return self.inner.divergence(labels, outputs, 1.0)

    def label_loss(self, labels, outputs, smoothing=0.0):
        return tf.zeros_like(self.loss(labels, outputs))

    def measure(self, labels, outputs):
        if isinstance(self.inner, Regression):
            values = {"difference": mean_of_example(tf.abs(labels - outputs))}
            if self.may_be_logits:
                values["agreement"] = _share(tf.argmax(labels, -1) == tf.argmax(outputs, -1))
            return values
        if isinstance(self.inner, MultiLabel):
            return {"agreement": _share((labels > 0) == (outputs > 0))}
        return {"agreement": _share(tf.argmax(labels, -1) == tf.argmax(outputs, -1))}


def _share(is_same):
    """Returns the share of true values per example, [batch]."""
    return mean_of_example(tf.cast(is_same, tf.float32))
