"""Tasks: what the method needs to know about what a network is for.

A task is a small stateless object: it names the network output that it is for, and defines the loss
with labels, the distance to knowledge and the metrics. Classification uses the formulas of the
method (Lee and Song 2022); every other task states what it uses instead. Subclass Task to add your
own.
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
