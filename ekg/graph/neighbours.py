"""Which call follows which: readers of a tensor, batch norms, and the classifier at the end."""

import collections

import keras

from ekg.graph.activations import is_linear
from ekg.graph.registry import is_mixing, record_of, states, takes_norm
from ekg.graph.steps import Entry


def find_readers(graph):
    """Returns {tensor number: list of the Calls that read it} of a calls.Graph."""
    readers = {}
    for call in graph.calls:
        for number in call.inputs:
            readers.setdefault(number, []).append(call)
    return readers


def sole_readers(graph):
    """Returns {Call: the only Call that reads its output}, where the layers of both are called
    once.
    """
    readers, times = find_readers(graph), collections.Counter(call.key for call in graph.calls)
    return {
        call: readers[call.output][0]
        for call in graph.calls
        if len(readers.get(call.output, ())) == 1
        and call.output not in graph.outputs
        and times[call.key] == times[readers[call.output][0].key] == 1
    }


def matching_calls(graph, cut_graph, removed=None):
    """Returns [(Call, the same Call of a network that was cut out, or None where it is gone)] in
    the order of the whole network.

    Args:
        graph, cut_graph: Graphs of the two networks.
        removed: removal.Removal of the cut, or None.
    """
    by_key = {}
    for call in cut_graph.calls:
        by_key.setdefault(call.key, []).append(call)
    keys = [call.key for call in graph.calls]
    if removed is None:
        if sorted(keys) == sorted(call.key for call in cut_graph.calls):
            # The order may differ if a nested model gets its inputs by name.
            return [(call, by_key[call.key].pop(0)) for call in graph.calls]
        # A layer was copied under several names.
        return list(zip(graph.calls, cut_graph.calls, strict=True))
    pairs = {}
    for call in graph.calls:
        if call in removed.gone and not isinstance(call.layer, Entry):
            continue
        # A layer that stands as its parts becomes one constant.
        is_part = call in removed.constants and call.key not in by_key
        found = by_key.get(call.key.rpartition("/")[0] if is_part else call.key)
        if found:
            pairs[call] = found.pop(0)
    left = [call for call in graph.calls if call not in removed.gone and call not in pairs]
    others = {id(call) for calls in by_key.values() for call in calls}
    pairs |= zip(left, [call for call in cut_graph.calls if id(call) in others], strict=True)
    return [(call, pairs.get(call)) for call in graph.calls]


def normalised_convolutions(graph):
    """Returns {Call of a convolution: Call of the batch norm that alone reads its output}.

    The batch norm makes up for any factor of the convolution's weights: both layers are called
    once, and the convolution has no activation of its own.
    """
    return {
        call: norm
        for call, norm in sole_readers(graph).items()
        if states(call.layer, "keeps_norm")
        and takes_norm(call.layer)
        and type(norm.layer) is keras.layers.BatchNormalization
    }


def classifier_of(graph):
    """Returns the call that writes class logits, whose kernel is rescaled to its old norm when rows
    of it are removed; None if none does.

    It is a mixing layer of one position and several units, called once, whose output the network
    returns, possibly after a softmax. A network that returns images, maps or a single number has no
    class logits, and neither has a network of several outputs.

    Args:
        graph: graph.calls.Graph.
    """
    producer = {number: call for call in graph.calls for number in call.outputs}
    call = producer.get(graph.output) if len(graph.outputs) == 1 else None
    while call is not None and (_is_softmax(call.layer) or is_linear(call.layer)):
        call = producer.get(call.inputs[0])
    if call is None or not is_mixing(call.layer) or record_of(call.layer).recurrent:
        return None
    if len(graph.shapes[call.output]) != 2 or graph.shapes[call.output][-1] < 2:
        return None
    return call if sum(other.layer is call.layer for other in graph.calls) == 1 else None


def _is_softmax(layer):
    return type(layer) is keras.layers.Softmax or (
        type(layer) is keras.layers.Activation and layer.activation is keras.activations.softmax
    )
