"""The base class of tasks that take their formulas from another task."""

import dataclasses

from ekg.tasks.kinds import Classification, Task


@dataclasses.dataclass(frozen=True)
class Wrapper(Task):
    """A task that changes labels or losses of another task and forwards the rest to it.

    Attributes:
        inner: Task whose formulas are used.
    """

    inner: Task = Classification()

    @property
    def has_class_logits(self):
        """Whether the inner task has class logits."""
        return self.inner.has_class_logits

    @property
    def takes_logits(self):
        """Whether the inner task takes logits."""
        return self.inner.takes_logits

    @property
    def unwrapped(self):
        return self.inner

    def scale(self, labels):
        return self.inner.scale(labels)

    def distance(self, teacher, outputs):
        return self.inner.distance(teacher, outputs)

    def divergence(self, teacher, outputs, temperature):
        return self.inner.divergence(teacher, outputs, temperature)
