"""Which task a network and its labels are for."""

import dataclasses
import logging

import numpy as np

from ekg.errors import EkgError
from ekg.tasks import compiled_loss
from ekg.tasks.kinds import (
    TASKS,
    Classification,
    DenseClassification,
    DenseMultiLabel,
    MultiLabel,
    Regression,
    Task,
)
from ekg.tasks.labels import SUM_TOLERANCE
from ekg.tasks.logits import squash_of

logger = logging.getLogger(__name__)

READINGS = {
    "classification": "shares of classes",
    "dense_classification": "shares of classes at each place",
    "multi_label": "labels that hold or not",
    "regression": "numbers",
    "dense_multi_label": "labels that hold or not at each place",
}


AUTO = "auto"


def task_named(task):
    """Returns the Task of a name of TASKS, or the Task that is given.

    Raises:
        EkgError: it is neither.
    """
    if isinstance(task, Task):
        return task
    if not isinstance(task, str) or task not in TASKS:
        raise EkgError(
            f'`task` must be "auto", one of {list(TASKS)}, or an ekg.tasks.Task; received {task!r}.'
        )
    return TASKS[task]()


def choose_task(task, graph, labels, output=0):
    """Returns the Task of an output: as asked for, or as the compiled loss, or output and labels
    tell.

    Args:
        task: "auto", a name of TASKS, or a Task.
        graph: graph.calls.Graph of the keras.Model.
        labels: as the user has them, array [examples, ...].
        output: number of the output.

    Raises:
        EkgError: the task is none of these, cannot be told, or may be one or another.
    """
    if isinstance(task, Task):
        return dataclasses.replace(task, output=output)
    if task != AUTO:
        return dataclasses.replace(task_named(task), output=output)
    loss, number = compiled_loss.read_loss(graph.model, output), graph.outputs[output]
    shape, labels, squash = graph.shapes[number], np.asarray(labels), squash_of(graph, number)
    if labels.dtype.kind not in "biuf":
        raise EkgError(
            f"the labels of `data` must be numbers; received {labels.dtype}. Of names take "
            "numpy.unique(labels, return_inverse=True)[1]."
        )
    if loss is None:
        chosen = TASKS[_told_by_labels(tuple(shape[1:]), labels, squash)]()
        reason = (
            f"an output of shape {tuple(shape)} and labels of {labels.dtype} and shape "
            f"{labels.shape}"
        )
    else:
        chosen = _told_by_loss(tuple(shape[1:]), loss, squash)()
        reason = f"the loss {loss.name} that the network was compiled with"
    logger.info("task: %s, by %s; `task` chooses another", chosen.name, reason)
    return dataclasses.replace(chosen, output=output)


# ---------------------------------------------------------------- by the compiled loss


def _told_by_loss(shape, loss, squash):
    """Returns the class of the Task of an output of this shape, for one example, and of its
    CompiledLoss.
    """
    if loss.kind == compiled_loss.NUMBERS:
        task = Regression
    elif loss.kind == compiled_loss.LABELS:
        task = MultiLabel if len(shape) == 1 else DenseMultiLabel
    else:
        task = Classification if len(shape) == 1 else DenseClassification
    expected = {
        Classification: "softmax",
        DenseClassification: "softmax",
        MultiLabel: "sigmoid",
        DenseMultiLabel: "sigmoid",
    }.get(task)
    if expected and squash not in (None, expected):
        raise EkgError(
            f"`model` ends with a {squash} and was compiled with {loss.name}, which is for a "
            f"{expected}; say by `task` what it returns, one of {list(TASKS)}."
        )
    if expected and squash is None and not loss.takes_logits:
        raise EkgError(
            f"`model` was compiled with {loss.name} of probabilities, and its last layer is no "
            f"{expected}; end it with one, or compile it with from_logits=True, or say by `task` "
            f"what it returns, one of {list(TASKS)}."
        )
    if not loss.is_plain:
        smooths = f" and label_smoothing {loss.label_smoothing:g}" if loss.label_smoothing else ""
        logger.warning(
            "the network was compiled with %s%s; search and training take the loss of a %s%s",
            loss.name,
            smooths,
            task.name,
            " without, unless `fine_tune` has a label_smoothing" if smooths else "",
        )
    return task


# ---------------------------------------------------------------- by the labels


def _told_by_labels(shape, labels, squash):
    """Returns the name of the task of an output of this shape, for one example, and of such labels.

    Raises:
        EkgError: there is none, or there are two.
    """
    names = _readings(shape, labels, squash)
    described = f"labels of {labels.dtype} and shape {labels.shape}"
    if not names:
        raise EkgError(
            f"`task`: an output of shape {(None, *shape)} and {described} are those of no task "
            f"known here; give one of {list(TASKS)}."
        )
    if len(names) > 1:
        ways = " or ".join(f'{READINGS[name]} (`task`="{name}")' for name in names)
        raise EkgError(
            f"`task`: {described}, from {labels.min():g} to {labels.max():g}, may be {ways}; say "
            "which, or compile `model` with its loss."
        )
    return names[0]


def _readings(shape, labels, squash):
    """Returns the names of the tasks that labels of an output may be meant for."""
    if not labels.size or not np.isfinite(labels).all():
        return []
    is_map, own = len(shape) > 1, labels.shape[1:]
    classes, separate = (
        ("dense_classification", "dense_multi_label")
        if is_map
        else ("classification", "multi_label")
    )
    is_integer = labels.dtype.kind in "biu"
    is_whole = is_integer or bool((labels == np.floor(labels)).all())
    is_share = bool(labels.min() >= 0 and labels.max() <= 1)
    if own == shape or (shape[-1] == 1 and own == shape[:-1]):
        is_vector = shape[-1] > 1 and own == shape
        sums_to_one = (
            is_vector and is_share and bool(np.allclose(labels.sum(-1), 1, atol=SUM_TOLERANCE))
        )
        if sums_to_one and squash != "sigmoid":
            return [classes] if is_whole or squash == "softmax" else [classes, "regression"]
        if squash == "softmax" or (squash == "sigmoid" and not is_share):
            return []
        if squash == "sigmoid":
            return [separate] if is_whole else [separate, "regression"]
        if is_share and is_integer:
            return [separate]
        low, high = labels.min(), labels.max()
        has_two_values = (
            is_share and low < high and bool(((labels == low) | (labels == high)).all())
        )
        return [separate, "regression"] if has_two_values else ["regression"]
    is_number = own in (shape[:-1], (*shape[:-1], 1)) and shape[-1] > 1 and is_whole
    return [classes] if is_number and squash != "sigmoid" else []
