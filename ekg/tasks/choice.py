"""Chooses the task that a network and its labels are for."""

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

# How each task reads its labels, for the error that says that labels are ambiguous
READINGS = {
    "classification": "class probabilities",
    "dense_classification": "class probabilities at each position",
    "multi_label": "independent yes-or-no labels",
    "regression": "numbers",
    "dense_multi_label": "independent yes-or-no labels at each position",
}


AUTO = "auto"


def task_named(task):
    """Returns the Task with a name of TASKS; a Task is returned as it is.

    Raises:
        EkgError: the argument is neither.
    """
    if isinstance(task, Task):
        return task
    if not isinstance(task, str) or task not in TASKS:
        raise EkgError(
            f'`task` must be "auto", one of {list(TASKS)}, or an ekg.tasks.Task; received {task!r}.'
        )
    return TASKS[task]()


def choose_task(task, graph, labels, output=0):
    """Returns the Task of an output.

    With "auto" the compiled loss decides, or else the shapes and values of the labels.

    Args:
        task: "auto", a name of TASKS, or a Task.
        graph: graph.calls.Graph of the keras.Model.
        labels: labels in the user's form, array [examples, ...].
        output: number of the output.

    Raises:
        EkgError: the argument is invalid, or the task is unknown or ambiguous.
    """
    if isinstance(task, Task):
        return dataclasses.replace(task, output=output)
    if task != AUTO:
        return dataclasses.replace(task_named(task), output=output)
    loss = compiled_loss.read_loss(graph.model, output)
    tensor = graph.outputs[output]
    shape = graph.shapes[tensor]
    squash = squash_of(graph, tensor)
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biuf":
        raise EkgError(
            f"the labels of `data` must be numbers; received {labels.dtype}. Turn names into "
            "numbers with numpy.unique(labels, return_inverse=True)[1]."
        )
    if loss is None:
        chosen = TASKS[_name_by_labels(tuple(shape[1:]), labels, squash)]()
        reason = (
            f"an output of shape {tuple(shape)} and labels of {labels.dtype} and shape "
            f"{labels.shape}"
        )
        unread = compiled_loss.name_of_unread(graph.model, output)
        if unread is not None:
            logger.warning(
                "the network was compiled with the loss %r, which is unknown here; search and "
                "training use the loss of a %s",
                unread,
                chosen.name,
            )
    else:
        chosen = _class_by_loss(tuple(shape[1:]), loss, squash)()
        reason = f"the loss {loss.name} that the network was compiled with"
    logger.info("task: %s, inferred from %s; `task` overrides it", chosen.name, reason)
    return dataclasses.replace(chosen, output=output)


# ---------------------------------------------------------------- by the compiled loss


def _class_by_loss(shape, loss, squash):
    """Returns the Task subclass for a CompiledLoss.

    Args:
        shape: shape of the output for one example.
        loss: CompiledLoss of the output.
        squash: "softmax", "sigmoid" or None: what the output ends with.
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
    if loss.axis not in (-1, len(shape)):
        raise EkgError(
            f"`model` was compiled with {loss.name} of axis {loss.axis}, and a search needs the "
            "classes along the last axis; put a Permute at the end of the network, and permute "
            "the labels alike."
        )
    if expected and squash not in (None, expected):
        raise EkgError(
            f"`model` ends with a {squash} and was compiled with {loss.name}, which is for a "
            f"{expected}; say by `task` what it returns, one of {list(TASKS)}."
        )
    if expected and squash is None and not loss.takes_logits:
        raise EkgError(
            f"`model` was compiled with {loss.name} on probabilities, and its last layer is no "
            f"{expected}; end it with one, or compile it with from_logits=True, or say by `task` "
            f"what it returns, one of {list(TASKS)}."
        )
    if not loss.is_plain:
        smoothing = hint = ""
        changed = " as changed by a class of your own" if loss.is_changed else ""
        if loss.label_smoothing:
            smoothing = f" and label_smoothing {loss.label_smoothing:g}"
            hint = " without smoothing, unless `fine_tune` has a label_smoothing"
        logger.warning(
            "the network was compiled with %s%s%s; search and training use the loss of a %s%s",
            loss.name,
            changed,
            smoothing,
            task.name,
            hint,
        )
    return task


# ---------------------------------------------------------------- by the labels


def _name_by_labels(shape, labels, squash):
    """Returns the name of the only task that fits labels and output; see _readings().

    Raises:
        EkgError: no task fits, or more than one.
    """
    names = _readings(shape, labels, squash)
    described = f"labels of {labels.dtype} and shape {labels.shape}"
    if not names:
        raise EkgError(
            f"`task`: an output of shape {(None, *shape)} and {described} fit no task known here; "
            f"give one of {list(TASKS)}."
        )
    if len(names) > 1:
        ways = " or ".join(f'{READINGS[name]} (`task`="{name}")' for name in names)
        raise EkgError(
            f"`task`: {described}, from {labels.min():g} to {labels.max():g}, may be {ways}; say "
            "which, or compile `model` with its loss."
        )
    return names[0]


def _readings(shape, labels, squash):
    """Returns the names of the tasks that fit labels and output.

    Args:
        shape: shape of the output for one example.
        labels: array [examples, ...] of numbers.
        squash: "softmax", "sigmoid" or None: what the output ends with.
    """
    if not labels.size or not np.isfinite(labels).all():
        return []
    label_shape = labels.shape[1:]
    classes, separate = "classification", "multi_label"
    if len(shape) > 1:
        classes, separate = "dense_classification", "dense_multi_label"
    is_integer = labels.dtype.kind in "biu"
    is_whole = is_integer or bool((labels == np.floor(labels)).all())
    is_share = bool(labels.min() >= 0 and labels.max() <= 1)

    if label_shape == shape or (shape[-1] == 1 and label_shape == shape[:-1]):
        sums_to_one = False
        if shape[-1] > 1 and label_shape == shape and is_share:
            sums_to_one = bool(np.allclose(labels.sum(-1), 1, atol=SUM_TOLERANCE))
        if sums_to_one and squash != "sigmoid":
            return [classes] if is_whole or squash == "softmax" else [classes, "regression"]
        if squash == "softmax" or (squash == "sigmoid" and not is_share):
            return []
        if squash == "sigmoid":
            return [separate] if is_whole else [separate, "regression"]
        if is_share and is_integer:
            return [separate]
        low, high = labels.min(), labels.max()
        has_two_values = is_share and low < high
        has_two_values = has_two_values and bool(((labels == low) | (labels == high)).all())
        return [separate, "regression"] if has_two_values else ["regression"]

    has_class_numbers = label_shape in (shape[:-1], (*shape[:-1], 1)) and shape[-1] > 1 and is_whole
    return [classes] if has_class_numbers and squash != "sigmoid" else []
