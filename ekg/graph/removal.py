"""What goes besides channels where a group keeps none of them: layers, and branches of blocks.

A tensor without channels is not there, nor is the layer that writes it. A layer that reads one, and
whose record is `silent`, writes an activation of its bias, the same for every example: a
constants.Constant takes its place. Norms after it stay, as with the statistics of a batch they
compute something else. Where the constant is zero and is added to something, the sum goes, too.
"""

import dataclasses

import keras

from ekg.graph import flow, registry
from ekg.graph.activations import keeps_zero
from ekg.graph.constants import Constant
from ekg.graph.steps import Entry, ModelCall, PartsCall, refs_in


@dataclasses.dataclass(frozen=True, eq=False)
class Removal:
    """What a cut does where tensors have no channels.

    Attributes:
        empty: numbers of the tensors without channels.
        gone: the Calls, ModelCalls and PartsCalls that are left out.
        constants: the Calls in whose place a constant comes.
        dropped: {Call: numbers of the tensors that it no longer reads}.
        same: {number of a tensor that nothing writes any more: the tensor that takes its place}.
        problem: why a network cannot do without these channels, or None.
    """

    empty: frozenset
    gone: frozenset
    constants: frozenset
    dropped: dict
    same: dict
    problem: str | None


def of(graph, layout, mask):
    """Returns the Removal of a network in which a mask over all channels leaves groups without any,
    or None where each has some.
    """
    without = layout.groups_without(mask)
    return find(graph, layout.empty(without)) if without else None


def find(graph, empty):
    """Returns the Removal of a graph, calls.Graph, in which these tensors have no channels.

    Args:
        graph: calls.Graph.
        empty: set of numbers of tensors, all of groups for which Obstacles.find() finds nothing.
    """
    gone, constants, dropped, same = set(), set(), {}, {}
    zeros = set()  # tensors of nothing but zeros
    for call in graph.calls:
        if empty.issuperset(call.outputs):
            gone.add(call)
            continue
        absent = empty.intersection(call.inputs)
        if absent and _is_silent(call.layer):
            constants.add(call)
            if getattr(call.layer, "bias", None) is None and keeps_zero(_activation(call.layer)):
                zeros.add(call.output)
            continue
        still = [number for number in call.inputs if number in zeros]
        if not absent and still and _is_plain_sum(graph, call):
            absent = set(still) if len(still) < len(call.inputs) else set()
        elif still and len(call.inputs) == 1 and registry.keeps_zeros(call.layer):
            zeros.update(call.outputs)
        if absent:
            rest = [number for number in call.inputs if number not in absent]
            dropped[call] = absent
            if len(rest) == 1:
                same[call.output] = rest[0]
                gone.add(call)
                zeros |= {call.output} if rest[0] in zeros else set()
    needed = set(graph.outputs)
    _leave_out(graph.steps, needed, (empty, gone, constants, dropped, same))
    alive = {id(call) for call in _calls_of(graph.steps, gone)}
    for call in graph.calls:  # what a nested model takes is no step of its own
        is_entry = isinstance(call.layer, Entry)
        is_left = call.output in needed if is_entry else id(call) in alive
        gone |= set() if is_left else {call}
    same = {number: other for number, other in same.items() if number in needed}
    left = frozenset(constants - gone)
    found = Removal(frozenset(empty), frozenset(gone), left, dropped, same, None)
    return dataclasses.replace(found, problem=_problem(graph, found))


def _leave_out(steps, needed, found):
    """Adds the tensors that steps read to the needed ones, and the steps that write no needed one
    to those that are gone, from the last on.
    """
    empty, gone, constants, dropped, same = found
    for step in reversed(steps):
        if step in gone:
            if step.output in same and step.output in needed:
                needed.add(same[step.output])
        elif needed.isdisjoint(step.outputs) or empty.issuperset(step.outputs):
            gone.add(step)
        elif isinstance(step, ModelCall):
            needed.update(step.outputs, step.entries)
            _leave_out(step.steps, needed, found)
            needed.update(set(refs_in((step.args, step.kwargs))) - empty)
        elif isinstance(step, PartsCall):
            _leave_out(step.steps, needed, found)
        elif step not in constants:
            needed.update(set(step.inputs) - empty - dropped.get(step, set()))


def _calls_of(steps, gone):
    """Yields the calls among steps, and among the steps inside, that are not gone."""
    for step in steps:
        if step in gone:
            continue
        if isinstance(step, (ModelCall, PartsCall)):
            yield from _calls_of(step.steps, gone)
        else:
            yield step


def _is_plain_sum(graph, call):
    """Returns whether a call adds tensors of one shape and dtype, and nothing else."""
    is_sum = type(call.layer) is keras.layers.Add or (
        registry.published_name(type(call.layer)) == "keras.ops.Add"
    )
    kinds = {(graph.shapes[n], graph.dtype(n)) for n in (*call.inputs, call.output)}
    return is_sum and len(call.inputs) > 1 and len(kinds) == 1


def _is_silent(layer):
    return registry.states(layer, "silent")


def _activation(layer):
    return getattr(layer, "activation", None)


def _problem(graph, found):
    """Returns why the network cannot do without what is gone, or None."""
    live, read = set(graph.inputs), set()
    for call in graph.calls:
        if call in found.gone:
            if call.output in found.same:
                read.add(found.same[call.output])
                live |= {call.output} if found.same[call.output] in live else set()
            continue
        if call in found.constants or isinstance(call.layer, Constant):
            continue
        inputs = set(call.inputs) - found.empty - found.dropped.get(call, set())
        read |= inputs
        if inputs & live:
            live.update(call.outputs)
    if not live.issuperset(graph.outputs):
        return "then an output of the network would not depend on its input"
    before = {number for call in graph.calls for number in call.inputs}
    names = dict(zip(graph.inputs, graph.input_names))
    unread = [names[n] for n in graph.inputs if n in before and n not in read]
    return f"then nothing would read the input {unread[0]!r}" if unread else None


# ---------------------------------------------------------------- which channels can all go


class Obstacles:
    """Looks for what speaks against a cut of all channels of some groups."""

    def __init__(self, graph, layout):
        """
        Args:
            graph: calls.Graph.
            layout: groups.Layout of the graph.
        """
        self._graph, self._layout, self._groups_of = graph, layout, layout.groups_of
        self._entries = {call: graph.inputs for call in graph.calls}
        self._units = []  # (description, numbers of the tensors that a step writes)
        self._wholes = []  # PartsCalls
        self._visit(graph.steps)
        self._shapes = {}  # id of a layer -> shapes that it writes
        for call in graph.calls:
            self._shapes.setdefault(id(call.layer), set()).add(graph.shapes[call.output][1:])

    def _visit(self, steps, entries=None):
        for step in steps:
            if isinstance(step, ModelCall):
                self._units.append((f"model {step.key!r}", step.outputs))
                self._visit(step.steps, step.entries)
            elif isinstance(step, PartsCall):
                self._wholes.append(step)
                self._visit(step.steps, entries)
            else:
                self._units.append((flow.describe(step), step.outputs))
                self._entries[step] = entries or self._graph.inputs

    def find(self, groups):
        """Returns what hinders each subset of these groups, set, from losing all its channels, or
        None.
        """

        def is_gone(number, without):
            own = self._groups_of[number]
            return own is not None and own <= without

        problem = find(self._graph, self._layout.empty(groups)).problem
        if problem is not None:
            return problem
        for what, numbers in self._units:
            for number in numbers:
                own = self._groups_of[number]
                if is_gone(number, groups) and not all(is_gone(other, own) for other in numbers):
                    return f"{what} writes other channels, too"
        for whole in self._wholes:
            for call in whole.steps:
                for number in call.outputs:
                    own, last = self._groups_of[number], whole.steps[-1]
                    if not is_gone(number, groups) or is_gone(last.output, own):
                        continue
                    if not (_is_silent(last.layer) and is_gone(last.inputs[0], own)):
                        return f"{whole.key!r} is one layer, of which a part would stay"
        for call in self._graph.calls:
            for number in call.inputs:
                own = self._groups_of[number]
                if not is_gone(number, groups) or all(is_gone(n, own) for n in call.outputs):
                    continue
                problem = self._reading_nothing(call, number)
                if problem:
                    return f"read by {flow.describe(call)}, {problem}"
        return None

    def _reading_nothing(self, call, number):
        """Returns why a call cannot do without a tensor that it reads, or None."""
        graph, record = self._graph, registry.record_of(call.layer)
        if record is not None and record.flow is flow.stack and len(call.inputs) > 1:
            return None
        if not _is_silent(call.layer) or number != call.inputs[0]:
            return "which does not write a constant where it reads zeros"
        bias = getattr(call.layer, "bias", None)
        if bias is not None and len(bias.shape) != 1:
            return "whose bias has several axes"
        if getattr(call.layer, "activity_regularizer", None) is not None:
            return "which has an activity regularizer"
        if graph.masks.is_on((*call.inputs, *call.outputs)):
            return "which a mask of Keras passes"
        if graph.is_open(call.output):
            return "which writes maps of any size"
        if len(self._shapes[id(call.layer)]) > 1:
            return "which is called for several sizes"
        rows = graph.rows[call.output]
        if all(graph.rows[entry] != rows for entry in self._entries[call]):
            return "where positions are rows of the batch"
        return None
