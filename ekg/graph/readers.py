"""Who reads what a call writes."""

import collections

import keras

# Each has one kernel; a batch norm after it cancels any factor of that kernel.
_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


def find_readers(graph):
    """Returns {tensor number: list of the Calls that read it} of a calls.Graph, of those that are
    read.
    """
    readers = {}
    for call in graph.calls:
        for number in call.inputs:
            readers.setdefault(number, []).append(call)
    return readers


def sole_readers(graph):
    """Returns {Call: the Call that alone sees what it writes}, where the layers of both are called
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


def normalised_convolutions(graph):
    """Returns {Call of a convolution: Call of the batch norm that alone reads its output}.

    Those alone where any factor of the convolution's weights cancels: both layers are called once,
    and the convolution has no activation of its own.
    """
    return {
        call: norm
        for call, norm in sole_readers(graph).items()
        if type(call.layer) in _CONVOLUTIONS
        and call.layer.activation is keras.activations.linear
        and type(norm.layer) is keras.layers.BatchNormalization
    }
