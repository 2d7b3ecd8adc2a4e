"""Rejects layers whose second derivatives are not exact."""

import tensorflow as tf

from ekg.errors import EkgError
from ekg.graph.calls import layer_variables
from ekg.graph.execute import run_call
from ekg.graph.flow import describe
from ekg.graph.norms import uses_batch_statistics

# A value that backpropagation treats as constant may leave the first derivative right, but not the
# second one.
_BREAKS = ("StopGradient",)


def check_second_derivatives(graph, options, training):
    """Raises EkgError if a layer treats a part of its output as constant in backpropagation, as
    Keras' norms do.

    Args:
        graph: graph.calls.Graph.
        options: graph.execute.ExecutionOptions that the second derivatives are computed with.
        training: whether batch norms use the statistics of the batch.
    """
    inexact = []

    @tf.function
    def trace(*inputs):
        tensors = dict(zip(graph.inputs, inputs))
        for call in graph.calls:
            before = len(tf.compat.v1.get_default_graph().get_operations())
            variables = [
                tf.zeros(variable.shape, variable.dtype) for variable in layer_variables(call.layer)
            ]
            is_training = training and uses_batch_statistics(call.layer)
            outputs, _ = run_call(call, variables, tensors, is_training, options)
            tensors.update(zip(call.outputs, outputs))
            added = tf.compat.v1.get_default_graph().get_operations()[before:]
            if any(operation.type in _BREAKS for operation in added):
                inexact.append(describe(call))
        return tensors[graph.output]

    traced = trace.get_concrete_function(
        *(tf.TensorSpec(graph.shapes[number], graph.dtype(number)) for number in graph.inputs)
    )
    # A layer's own tf.function, or the body of a loop.
    for function in traced.graph.as_graph_def().library.function:
        if any(node.op in _BREAKS for node in function.node_def):
            inexact.append(f"the function {function.signature.name!r}")
    if inexact:
        raise EkgError(
            f"the second derivatives of {', '.join(dict.fromkeys(inexact))} in `model` "
            f"{graph.model.name!r} are not exact, so its Hessian cannot be computed; take a "
            "network without these layers."
        )
