"""Runs the calls of a graph as pure functions of weights; no variable is updated."""

import dataclasses
import inspect

import keras
import tensorflow as tf

from ekg.graph import layer_losses, norms, resizing
from ekg.graph.calls import Graph, layer_variables
from ekg.graph.records import Context
from ekg.graph.registry import record_of


@dataclasses.dataclass(frozen=True)
class ExecutionOptions:
    """How calls are computed.

    Attributes:
        dtype: "float32", "bfloat16" or "float16", for convolutions and activations. Weights,
            statistics of batch norms and logits are always float32.
        sync_norms: whether batch norms in training take the statistics of all replicas' parts
            together.
        fuse_norms: whether batch norms run as one operation, which is fast but for second
            derivatives.
        collect_moments: whether batch norms in training return the mean and variance of the batch
            in place of new moving statistics.
        norms_alone: whether in training it is the batch norms alone that work so; dropout and its
            like stay off.
        tile_norms: whether fused batch norms may take several positions as one; see narrow_norms.
            Off for graphs that other programs run.
    """

    dtype: str = "float32"
    sync_norms: bool = False
    fuse_norms: bool = True
    collect_moments: bool = False
    norms_alone: bool = False
    tile_norms: bool = True

    def of(self, is_last):
        """Returns the options of a call; the last call of a network computes in float32."""
        return dataclasses.replace(self, dtype="float32") if is_last else self


FLOAT32 = ExecutionOptions()


def run_call(call, variables, tensors, training, options=FLOAT32, kept=None, losses=None):
    """Returns (list of outputs, new non-trainable values) of one call. Pure, except for sums over
    replicas if asked.

    Args:
        call: Call.
        variables: values of layer_variables(call.layer).
        tensors: {tensor number: value}.
        training: whether batch norms use the statistics of the batch; as in Keras, it overrides the
            call's own argument.
        options: ExecutionOptions.
        kept: mask of the channels that the call reads, float32 [channels]; None keeps all.
        losses: list that gets the scalars that the call adds to the loss; None leaves them out.
    """
    args, kwargs = call.arguments(tensors)
    layer, result = call.layer, None
    if args and resizing.needs_own_gradient(layer, args):
        outputs = [resizing.resize(lambda x: layer(x, *args[1:], **kwargs), args[0])]
        if losses is not None and isinstance(layer, keras.layers.Layer):
            losses.extend(layer_losses.activity_losses(layer, outputs))
        return outputs, []
    if not isinstance(layer, keras.layers.Layer):
        return keras.tree.flatten(layer(*args, **kwargs)), []
    record = record_of(layer)
    if record is not None and record.run is not None:
        result = record.run(layer, variables, args, Context(training, options, kept))
    if result is None:
        outputs, new = _call_layer(layer, variables, args, kwargs, training, losses)
    else:
        outputs, new = [result[0]], result[1]
        if losses is not None and not type(layer).__module__.startswith("keras."):
            # Its own call is asked as well: it may add losses there, of which the record knows
            # nothing.
            _call_layer(layer, variables, args, kwargs, training, losses)
    if losses is not None:
        losses.extend(layer_losses.activity_losses(layer, outputs))
    return outputs, new


def _call_layer(layer, variables, args, kwargs, training, losses):
    """Returns (list of outputs, new non-trainable values) of Keras' own call of a layer; see
    run_call().
    """
    if layer.variables:  # other layers compute in the dtype of their weights
        args, kwargs = keras.tree.map_structure(_to_float32, (args, kwargs))
    if takes_training(layer):
        kwargs = {**kwargs, "training": training}
    num_trainable = len(layer.trainable_variables)
    values = variables[:num_trainable], variables[num_trainable:]
    if losses is None:
        output, new = layer.stateless_call(*values, *args, **kwargs)
    else:
        output, new, added = layer_losses.call_with_losses(layer, *values, args, kwargs)
        losses.extend(added)
    return keras.tree.flatten(output), new


def is_in_training(call, training, options):
    """Returns whether a call works as in training: with `norms_alone` of the options only batch
    norms do.
    """
    return training and (not options.norms_alone or norms.uses_batch_statistics(call.layer))


def takes_training(layer):
    """Returns whether the layer behaves otherwise in training than in inference."""
    return "training" in inspect.signature(layer.call).parameters


def _to_float32(value):
    return tf.cast(value, tf.float32) if tf.is_tensor(value) and value.dtype.is_floating else value


def pure_forward(model, options=FLOAT32, on_call=None):
    """Returns a model's forward pass as a pure function, like model.stateless_call with fused batch
    norms.

    The function is (trainable, non_trainable, images, training) -> (output, new non-trainable
    values), with the values of model.trainable_variables and model.non_trainable_variables as lists
    of tensors. A list as a further argument, `losses`, gets the scalars that Keras' fit adds to the
    loss, `model.losses`: regularizers of weights and activities, add_loss().

    Args:
        model: functional keras.Model.
        options: ExecutionOptions; the output itself is float32 always, unless the model says
            otherwise.
        on_call: function that gets every Call with the list of its outputs and its new
            non-trainable values, or None.
    """
    graph = Graph(model)
    places = [
        id(variable) for variable in (*model.trainable_variables, *model.non_trainable_variables)
    ]

    def forward(trainable, non_trainable, images, training, losses=None):
        values = dict(zip(places, [*trainable, *non_trainable]))
        tensors = graph.tensors_of(images)
        for call in graph.calls:
            variables = layer_variables(call.layer)
            outputs, new = run_call(
                call,
                [values[id(variable)] for variable in variables],
                tensors,
                is_in_training(call, training, options),
                options.of(graph.is_last(call)),
                losses=losses,
            )
            tensors.update(zip(call.outputs, outputs))
            values.update(
                zip([id(variable) for variable in variables[len(variables) - len(new) :]], new)
            )
            if on_call is not None:
                on_call(call, outputs, new)
        if losses is not None:
            losses.extend(layer_losses.weight_losses(model.trainable_variables, trainable))
        return graph.structured(tensors), [values[place] for place in places[len(trainable) :]]

    return forward


def read_variables(model):
    """Returns (trainable, non-trainable) of a model as two lists of tensors."""
    return (
        [tf.convert_to_tensor(variable.value) for variable in model.trainable_variables],
        [tf.convert_to_tensor(variable.value) for variable in model.non_trainable_variables],
    )
