"""Which task a network and its labels are for."""

import logging

import keras
import numpy as np

from ekg.errors import EkgError
from ekg.tasks import TASKS, Classification, DenseClassification, MultiLabel, Regression, Task, squashes

logger = logging.getLogger(__name__)


def choose_task(task, graph, labels):
    """Returns the Task that was asked for, or that the network's output and the labels tell.

    Args:
        task: "auto", a name of TASKS, or a Task.
        graph: graph.calls.Graph of the keras.Model.
        labels: as the user has them, array [examples, ...].

    Raises:
        EkgError: the task is none of these, or cannot be told.
    """
    if isinstance(task, Task):
        return task
    if task != "auto":
        if not isinstance(task, str) or task not in TASKS:
            raise EkgError(f"`task` must be \"auto\", one of {list(TASKS)}, or an ekg.tasks.Task; received {task!r}.")
        return TASKS[task]()
    if len(graph.outputs) != 1:
        raise EkgError(f"`model` {graph.model.name!r} has {len(graph.outputs)} outputs; say which one is meant, as in "
                       "`task`=ekg.tasks.Classification(output=0).")
    shape, labels = graph.shapes[graph.output], np.asarray(labels)
    if labels.dtype.kind not in "biuf":
        raise EkgError(f"the labels of `data` must be numbers; received {labels.dtype}.")
    chosen = _told_by(tuple(shape[1:]), labels, _squash(graph))
    if chosen is None:
        raise EkgError(f"`task`: an output of shape {shape} and labels of {labels.dtype} and shape {labels.shape} are those "
                       f"of no task known here; give one of {list(TASKS)}.")
    logger.info("task: %s, by an output of shape %s and labels of %s and shape %s; `task` chooses another", chosen.name,
                tuple(shape), labels.dtype, labels.shape)
    return chosen


def _squash(graph):
    """Returns "sigmoid", "softmax" or None: what the network's last layer does."""
    last = next((call.layer for call in graph.calls if graph.output in call.outputs), None)
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
