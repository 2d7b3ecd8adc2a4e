"""Weights that a composite layer holds itself, as class tokens and position embeddings.

In the graph of the layer's parts each is written by a small layer, OwnWeight. Where the layer
repeats one for every example, AcrossBatch does that. The channels of both follow the
channels of the tensors that they are added to, or stacked with along the positions.
"""

from fractions import Fraction

import keras

from ekg.graph import flow
from ekg.graph.records import OUT, LayerRecord, Weight


@keras.saving.register_keras_serializable("ekg")
class OwnWeight(keras.layers.Layer):
    """Returns its weight, which has no axis of examples, for any input.

    Args:
        shape: shape of the weight.
        is_trained: whether the weight is trained where the layer is trainable.
        regularizer, constraint: of the weight.
        options: arguments of keras.layers.Layer.
    """

    def __init__(self, shape, is_trained=True, regularizer=None, constraint=None, **options):
        super().__init__(**options)
        self.shape, self.is_trained = tuple(shape), is_trained
        self.regularizer = keras.regularizers.get(regularizer)
        self.constraint = keras.constraints.get(constraint)

    @classmethod
    def holding(cls, variable, owner, name):
        """Returns a layer that holds a variable of another layer."""
        layer = cls(
            variable.shape,
            any(variable is other for other in owner._trainable_variables),
            variable.regularizer,
            variable.constraint,
            name=name,
            trainable=owner.trainable,
            dtype=owner.dtype_policy,
        )
        layer.weight, layer.built = variable, True
        return layer

    def build(self, _):
        self.weight = self.add_weight(
            shape=self.shape,
            initializer="zeros",
            trainable=self.is_trained,
            regularizer=self.regularizer,
            constraint=self.constraint,
            name="weight",
        )

    def call(self, _):
        return keras.ops.convert_to_tensor(self.weight)

    def compute_output_spec(self, _):
        return keras.KerasTensor(self.weight.shape, self.compute_dtype)

    def get_config(self):
        return super().get_config() | {
            "shape": self.shape,
            "is_trained": self.is_trained,
            "regularizer": keras.regularizers.serialize(self.regularizer),
            "constraint": keras.constraints.serialize(self.constraint),
        }


@keras.saving.register_keras_serializable("ekg")
class AcrossBatch(keras.layers.Layer):
    """Repeats a tensor of one row for each example of another tensor."""

    def call(self, x, like):
        return keras.ops.broadcast_to(x, (keras.ops.shape(like)[0], *x.shape[1:]))

    def compute_output_spec(self, x, like):
        return keras.KerasTensor((like.shape[0], *x.shape[1:]), x.dtype)


def _hold(channel_flow, call):
    """Holds channels along the last axis."""
    return channel_flow.hold(call, len(channel_flow.shapes[call.output]) - 1)


def _across(channel_flow, call):
    """Carries the channels of what is repeated, unless they are along the axis of examples."""
    channels = channel_flow.channels[call.inputs[0]]
    return flow.close(channel_flow, call) if channels.axis in (None, 0) else channels


def _own_weight(layer):
    """Returns the record of an OwnWeight, whose channels are along its last axis."""
    axes = (*[None] * (len(layer.shape) - 1), OUT) if layer.shape else ()
    return LayerRecord(
        _hold,
        {"weight": Weight(axes)},
        resize=lambda own, kept: (
            {"shape": (*own.shape[:-1], len(kept.output))} if own.shape else {}
        ),
        rows=lambda *_: Fraction(0),
        begins=True,
        is_free=True,
    )


RECORDS = {OwnWeight: _own_weight, AcrossBatch: LayerRecord(_across, keeps_zeros=True)}
