"""Which task a network and its labels are for."""

import dataclasses
import logging

import keras
import numpy as np

from ekg.errors import EkgError
from ekg.tasks import TASKS, Classification, DenseClassification, MultiLabel, Regression, Task, squashes

logger = logging.getLogger(__name__)


AUTO = "auto"


def task_named(task):
    """Returns the Task of a name of TASKS, or the Task that is given.

    Raises:
        EkgError: it is neither.
    """
    if isinstance(task, Task):
        return task
    if not isinstance(task, str) or task not in TASKS:
        raise EkgError(f"`task` must be \"auto\", one of {list(TASKS)}, or an ekg.tasks.Task; "
                       f"received {task!r}.")
    return TASKS[task]()


def choose_task(task, graph, labels, output=0):
    """Returns the Task of an output that was asked for, or that the network and the labels tell.

    Args:
        task: "auto", a name of TASKS, or a Task.
        graph: graph.calls.Graph of the keras.Model.
        labels: as the user has them, array [examples, ...].
        output: number of the output.

    Raises:
        EkgError: the task is none of these, or cannot be told.
    """
    if task != AUTO:
        return dataclasses.replace(task_named(task), output=output)
    number, labels = graph.outputs[output], np.asarray(labels)
    shape = graph.shapes[number]
    if labels.dtype.kind not in "biuf":
        raise EkgError(f"the labels of `data` must be numbers; received {labels.dtype}.")
    chosen = _told_by(tuple(shape[1:]), labels, squash_of(graph, number))
    if chosen is None:
        raise EkgError(f"`task`: an output of shape {shape} and labels of {labels.dtype} and shape {labels.shape} are those "
                       f"of no task known here; give one of {list(TASKS)}.")
    logger.info("task: %s, by an output of shape %s and labels of %s and shape %s; `task` chooses another", chosen.name,
                tuple(shape), labels.dtype, labels.shape)
    return dataclasses.replace(chosen, output=output)


def squash_of(graph, number):
    """Returns "sigmoid", "softmax" or None: what the layer does that writes this tensor."""
    last = next((call.layer for call in graph.calls if number in call.outputs), None)
    if last is None or not squashes(last):
        return None
    is_sigmoid = getattr(last, "activation", None) is keras.activations.sigmoid or type(last).__name__ == "Sigmoid"
    return "sigmoid" if is_sigmoid else "softmax"


def _told_by(shape, labels, squash):
    """Returns the Task of an output of this shape, for one example, and of such labels; None if it cannot be told."""
    own = labels.shape[1:]
    is_whole = labels.dtype.kind in "biu" or bool((labels == np.floor(labels)).all())
    is_binary = is_whole and labels.size and labels.min() >= 0 and labels.max() <= 1
    if len(shape) == 1:
        is_vector = own == shape and shape[0] > 1
        is_one_hot = is_vector and is_binary and bool((labels.sum(-1) == 1).all())
        if squash == "sigmoid" or (shape[0] == 1 and is_binary and labels.dtype.kind in "biu" and own in ((), (1,))):
            return MultiLabel()
        if shape[0] > 1 and (is_one_hot or (own in ((), (1,)) and is_whole)):
            return Classification()
        if is_vector and is_binary:
            return MultiLabel()
        return Regression() if squash is None and (own == shape or (shape[0] == 1 and own == ())) else None
    is_map = own in (shape[:-1], (*shape[:-1], 1)) or own == shape
    if shape[-1] > 1 and is_map and is_whole and (squash == "softmax" or own != shape or bool(
            is_binary and (labels.sum(-1) == 1).all())):
        return DenseClassification()
    return Regression() if squash is None and own == shape else None
