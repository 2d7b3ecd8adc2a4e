"""Tasks: what the method needs to know about what a network is for.

A task is a small object that holds no numbers of its own: the loss of outputs with labels, the
distance of outputs to knowledge, figures of merit, and which output of the network is meant.
The formulas of the method (Lee and Song 2022) are those of Classification; every other task states
what it uses in their place. A task of your own is a subclass of Task.
"""

from ekg.tasks.kinds import (
    TASKS,
    Classification,
    DenseClassification,
    DenseMultiLabel,
    MultiLabel,
    Regression,
)
from ekg.tasks.task import Task

__all__ = [
    "TASKS",
    "Classification",
    "DenseClassification",
    "DenseMultiLabel",
    "MultiLabel",
    "Regression",
    "Task",
]
