"""Who reads what a call writes."""

import collections


def find_readers(graph):
    """Returns {tensor number: list of the Calls that read it} of a calls.Graph, of those that are read."""
    readers = {}
    for call in graph.calls:
        for number in call.inputs:
            readers.setdefault(number, []).append(call)
    return readers


def sole_readers(graph):
    """Returns {Call: the Call that alone sees what it writes}, where the layers of both are called once."""
    readers, times = find_readers(graph), collections.Counter(call.key for call in graph.calls)
    return {call: readers[call.output][0] for call in graph.calls
            if len(readers.get(call.output, ())) == 1 and call.output not in graph.outputs
            and times[call.key] == times[readers[call.output][0].key] == 1}
