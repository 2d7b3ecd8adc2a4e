"""Which outputs of a network count, and what each is for."""

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
        name: of the output.
        task: its Task, which means this output.
    """

    name: str
    task: Task


def choose_outputs(model, graph, task, labels, may_lose=()):
    """Returns (list of the Choice of every output that counts, labels).

    Args:
        model: keras.Model.
        graph: graph.calls.Graph of it.
        task: "auto", a name of tasks.TASKS or a Task; or a list or dict of these, by output.
        labels: array [examples, ...] of one output; or a list or dict of them; or None.
        may_lose: names or numbers of outputs that do not count.

    Returns:
        The labels as {number of an output: array [examples, ...]}, without those of outputs that
        may be lost.

    Raises:
        EkgError: what is given does not fit the network's outputs, or leaves open what is meant.
    """
    names = Names(model)
    lost = _places(may_lose, names)
    counted = [number for number in range(len(names.all)) if number not in lost]
    if not counted:
        raise EkgError(
            f"`may_lose` names all outputs of `model` {model.name!r}; one at least must count."
        )
    given = _given_tasks(task, graph, names, counted)
    labels = _by_output(labels, names, counted, list(given), "data")
    choices = []
    for number in counted:
        own = labels.get(number)
        chosen = (
            _imitation(given.get(number, AUTO), model, graph, number)
            if own is None
            else choose_task(given.get(number, AUTO), graph, own, number)
        )
        choices.append(Choice(names.all[number], chosen))
    _log(choices, [names.all[number] for number in sorted(lost)])
    return choices, {number: own for number, own in labels.items() if number in counted}


def _given_tasks(task, graph, names, counted):
    """Returns {number of an output: what was given as its task}."""
    if isinstance(task, (dict, list, tuple)):
        given = names.by_place(task, "task")
    elif isinstance(task, Task):
        task.tensor(graph)  # the network has this output
        given = {task.output: task}
    elif task == AUTO or len(counted) == 1:
        given = {counted[0]: task} if task != AUTO else {}
    else:
        raise EkgError(
            f"`task` {task!r} is one task, and `model` {graph.model.name!r} has the outputs "
            f"{names.all}; give a dict, as in {{{names.all[counted[0]]!r}: {task!r}}}."
        )
    for number, own in given.items():
        if number not in counted:
            raise EkgError(
                f"`task` names the output {names.all[number]!r}, which `may_lose` gives up; name "
                "it in one of them."
            )
        if isinstance(own, Task) and own.output not in (0, number):
            raise EkgError(
                f"`task`: that of output {names.all[number]!r} means output {own.output}."
            )
    return given


def check_all_count(model, task, may_lose=()):
    """Raises EkgError unless a Task means all outputs of a network but those that may be lost."""
    names = Names(model)
    missing = set(range(len(names.all))) - set(task.outputs) - _places(may_lose, names)
    if missing:
        raise EkgError(
            f"the data set's labels are those of one output, and `model` {model.name!r} has "
            f"others, {[names.all[number] for number in sorted(missing)]}, which would be lost; "
            "name them in `may_lose`, or give arrays in place of the data set."
        )


def _places(may_lose, names):
    """Returns the set of the numbers of outputs that may be lost."""
    return {
        names.place(key, "may_lose")
        for key in ([may_lose] if isinstance(may_lose, (str, int)) else may_lose)
    }


def labels_by_output(labels, model, choices, what):
    """Returns {number of an output: array [examples, ...]} of further labels.

    Args:
        labels: see choose_outputs().
        model: keras.Model.
        choices: list of Choice.
        what: the argument's name.
    """
    counted = [choice.task.output for choice in choices]
    labelled = [choice.task.output for choice in choices if choice.task.has_labels]
    by_output = _by_output(labels, Names(model), counted, labelled, what)
    return {number: own for number, own in by_output.items() if number in counted}


def _by_output(labels, names, counted, meant, what):
    """Returns {number of an output: its labels, array}.

    Args:
        labels: see choose_outputs().
        names: Names.
        counted: numbers of the outputs that count.
        meant: numbers of those that a single array may be for.
        what: the argument's name.
    """
    if labels is None:
        return {}
    if isinstance(labels, (dict, list, tuple)):
        return names.by_place(labels, what)
    meant = counted if len(counted) == 1 else meant
    if len(meant) != 1:
        raise EkgError(
            f"`{what}` has the labels of one output, and the network has the outputs {names.all}; "
            "say which one is meant: give the labels as a dict, as in "
            f"{{{names.all[counted[0]]!r}: labels}}."
        )
    return {meant[0]: labels}


def _imitation(given, model, graph, number):
    """Returns the Imitation of an output that has no labels."""
    if given != AUTO:
        kind = task_named(given)
        return Imitation(number, dataclasses.replace(kind, output=0))
    shape, squash = graph.shapes[graph.outputs[number]][1:], squash_of(graph, graph.outputs[number])
    if squash is not None and _must_stay(graph, graph.outputs[number]):
        return Imitation(number, Regression())
    loss, is_vector = compiled_loss.read_loss(model, number), len(shape) == 1
    told = {"softmax": CLASSES, "sigmoid": LABELS}.get(squash, loss.kind if loss else None)
    if told == CLASSES and shape[-1] > 1:
        return Imitation(number, Classification() if is_vector else DenseClassification())
    if told == LABELS:
        return Imitation(number, MultiLabel() if is_vector else DenseMultiLabel())
    may_be_logits = told is None and is_vector and shape[0] > 1
    return Imitation(number, Regression(), may_be_logits)


def _must_stay(graph, tensor):
    """Returns whether the softmax or sigmoid that writes a tensor cannot be taken off.

    Other layers read the tensor, or the layer is called again, or works along another axis than the
    last.
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
            "no labels of %s: the unpruned network's output is what is aimed at there%s",
            ", ".join(without),
            "; `may_lose` gives outputs up" if len(choices) > 1 else "",
        )
    if lost:
        logger.info("given up: %s", ", ".join(lost))
