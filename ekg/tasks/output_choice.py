"""Chooses the outputs of a network that count, and the task of each."""

import dataclasses
import logging

from ekg.errors import EkgError
from ekg.tasks import compiled_loss
from ekg.tasks.choice import AUTO, choose_task, task_named
from ekg.tasks.compiled_loss import CLASSES, LABELS
from ekg.tasks.imitation import Imitation
from ekg.tasks.kinds import (
    Classification,
    DenseClassification,
    DenseMultiLabel,
    MultiLabel,
    Regression,
    Task,
)
from ekg.tasks.logits import squash_of
from ekg.tasks.output_names import Names

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """One output that counts.

    Attributes:
        name: name of the output.
        task: its Task, whose `output` is the number of this output.
    """

    name: str
    task: Task


def choose_outputs(model, graph, task, labels, may_lose=()):
    """Returns (list with the Choice of every output that counts, labels by output).

    Args:
        model: keras.Model.
        graph: graph.calls.Graph of the model.
        task: "auto", a name of tasks.TASKS or a Task; or a list or dict of these, by output.
        labels: labels of one output, array [examples, ...]; or a list or dict of such arrays; or
            None.
        may_lose: names or numbers of outputs that do not count.

    Returns:
        The labels are {number of an output: array [examples, ...]} for the outputs that count.

    Raises:
        EkgError: the arguments do not fit the network's outputs, or are ambiguous.
    """
    names = Names(model)
    lost = _places(may_lose, names)
    counted = [number for number in range(len(names.all)) if number not in lost]
    if not counted:
        raise EkgError(
            f"`may_lose` names all outputs of `model` {model.name!r}; at least one must count."
        )
    given = _given_tasks(task, graph, names, counted)
    labels = _by_output(labels, names, counted, list(given), "data")
    choices = []
    for number in counted:
        output_task = given.get(number, AUTO)
        if number in labels:
            chosen = choose_task(output_task, graph, labels[number], number)
        else:
            chosen = _imitation(output_task, model, graph, number)
        choices.append(Choice(names.all[number], chosen))
    _log(choices, [names.all[number] for number in sorted(lost)])
    if len(choices) > 1 and compiled_loss.has_loss_weights(model):
        logger.warning(
            "the loss_weights that the network was compiled with are not read: each output counts "
            "by the scale of its labels; name outputs that do not count in `may_lose`"
        )
    return choices, {number: array for number, array in labels.items() if number in counted}


def _given_tasks(task, graph, names, counted):
    """Returns {number of an output: its entry in the argument `task`}."""
    if isinstance(task, (dict, list, tuple)):
        given = names.by_place(task, "task")
    elif isinstance(task, Task):
        task.tensor(graph)  # raises EkgError if the network has no such output
        given = {task.output: task}
    elif task == AUTO or len(counted) == 1:
        given = {counted[0]: task} if task != AUTO else {}
    else:
        raise EkgError(
            f"`task` {task!r} is one task, and `model` {graph.model.name!r} has the outputs "
            f"{names.all}; give a dict, as in {{{names.all[counted[0]]!r}: {task!r}}}."
        )
    for number, output_task in given.items():
        if number not in counted:
            raise EkgError(
                f"`task` names the output {names.all[number]!r}, which `may_lose` gives up; name "
                "it in one of them."
            )
        if isinstance(output_task, Task) and output_task.output not in (0, number):
            raise EkgError(
                f"`task`: the task of output {names.all[number]!r} is for output "
                f"{output_task.output}."
            )
    return given


def check_all_count(model, task, may_lose=()):
    """Raises EkgError unless a Task covers all outputs of a network except those in may_lose."""
    names = Names(model)
    missing = set(range(len(names.all))) - set(task.outputs) - _places(may_lose, names)
    if missing:
        raise EkgError(
            f"the data set's labels are those of one output, and `model` {model.name!r} has "
            f"others, {[names.all[number] for number in sorted(missing)]}, which would be lost; "
            "name them in `may_lose`, or give arrays in place of the data set."
        )


def _places(may_lose, names):
    """Returns the set of the numbers of the outputs in may_lose."""
    keys = [may_lose] if isinstance(may_lose, (str, int)) else may_lose
    return {names.place(key, "may_lose") for key in keys}


def labels_by_output(labels, model, choices, what):
    """Returns further labels, such as those of validation data, by output.

    Args:
        labels: labels in any form that choose_outputs() takes.
        model: keras.Model.
        choices: list of Choice.
        what: name of the argument, for error messages.

    Returns:
        {number of an output: array [examples, ...]} for the outputs that count.
    """
    counted = [choice.task.output for choice in choices]
    labelled = [choice.task.output for choice in choices if choice.task.has_labels]
    by_output = _by_output(labels, Names(model), counted, labelled, what)
    return {number: array for number, array in by_output.items() if number in counted}


def _by_output(labels, names, counted, candidates, what):
    """Returns {number of an output: array of its labels}.

    Args:
        labels: labels in any form that choose_outputs() takes.
        names: Names of the network's outputs.
        counted: numbers of the outputs that count.
        candidates: numbers of the outputs that a single array may belong to.
        what: name of the argument, for error messages.
    """
    if labels is None:
        return {}
    if isinstance(labels, (dict, list, tuple)):
        return names.by_place(labels, what)
    if len(counted) == 1:
        candidates = counted
    if len(candidates) != 1:
        raise EkgError(
            f"`{what}` has the labels of one output, and the network has the outputs {names.all}; "
            "say which one is meant: give the labels as a dict, as in "
            f"{{{names.all[counted[0]]!r}: labels}}."
        )
    return {candidates[0]: labels}


def _imitation(given, model, graph, number):
    """Returns the Imitation task of an output that has no labels."""
    if given != AUTO:
        return Imitation(number, dataclasses.replace(task_named(given), output=0))
    tensor = graph.outputs[number]
    shape = graph.shapes[tensor][1:]
    squash = squash_of(graph, tensor)
    if squash is not None and _must_stay(graph, tensor):
        return Imitation(number, Regression())
    loss = compiled_loss.read_loss(model, number)
    kind = {"softmax": CLASSES, "sigmoid": LABELS}.get(squash, loss.kind if loss else None)
    is_vector = len(shape) == 1
    if kind == CLASSES and shape[-1] > 1:
        return Imitation(number, Classification() if is_vector else DenseClassification())
    if kind == LABELS:
        return Imitation(number, MultiLabel() if is_vector else DenseMultiLabel())
    may_be_logits = kind is None and is_vector and shape[0] > 1
    return Imitation(number, Regression(), may_be_logits)


def _must_stay(graph, tensor):
    """Returns whether the softmax or sigmoid that computes a tensor cannot be removed.

    It stays if other layers read the tensor, if the layer is called more than once, or if it works
    along another axis than the last.
    """
    writer = next(call.layer for call in graph.calls if tensor in call.outputs)
    is_read = any(tensor in call.inputs for call in graph.calls)
    is_called_again = sum(call.layer is writer for call in graph.calls) > 1
    last_axes = (-1, len(graph.shapes[tensor]) - 1)
    return is_read or is_called_again or getattr(writer, "axis", -1) not in last_axes


def _log(choices, lost):
    without = [choice.name for choice in choices if not choice.task.has_labels]
    if without:
        logger.info(
            "no labels for %s: the pruned network will imitate the unpruned network's output%s",
            ", ".join(without),
            "; list outputs that you do not need in `may_lose`" if len(choices) > 1 else "",
        )
    if lost:
        logger.info("outputs that are dropped (`may_lose`): %s", ", ".join(lost))
