"""What takes the place of a layer that reads no channels any more: its bias, for every example."""

import keras

from ekg.graph.records import OUT, LayerRecord, Weight


@keras.saving.register_keras_serializable("ekg")
class Constant(keras.layers.Layer):
    """Returns the same for every example: an activation of its bias at all positions.

    Args:
        shape: shape of what it returns, without the batch.
        axis: axis of the channels, counted with the batch.
        activation: treats each number by itself.
        use_bias: whether it has a bias; else it returns the activation of zeros.
        bias_regularizer, bias_constraint: of the bias.
        options: arguments of keras.layers.Layer.
    """

    def __init__(
        self,
        shape,
        axis=-1,
        activation=None,
        use_bias=True,
        bias_regularizer=None,
        bias_constraint=None,
        **options,
    ):
        super().__init__(**options)
        self.shape, self.axis, self.use_bias = tuple(shape), axis % (len(shape) + 1), use_bias
        self.activation = keras.activations.get(activation)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.supports_masking = True  # it reads no values, masked or not

    @classmethod
    def of(cls, layer, name, shape, axis, bias):
        """Returns what a layer computes of zeros.

        Args:
            layer: layer whose record is `silent`.
            name: name of the new layer.
            shape, axis: of its output, as in the class.
            bias: array [channels], or None.
        """
        constant = cls(
            shape,
            axis,
            getattr(layer, "activation", None),
            bias is not None,
            getattr(layer, "bias_regularizer", None),
            getattr(layer, "bias_constraint", None),
            name=name,
            trainable=layer.trainable,
            dtype=layer.dtype_policy,
        )
        constant.build((None,))
        if bias is not None:
            constant.bias.assign(bias)
        return constant

    def build(self, _):
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                shape=(self.shape[self.axis - 1],),
                initializer="zeros",
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
                name="bias",
            )
        self.built = True

    def call(self, x):
        size = self.shape[self.axis - 1]
        values = self.bias if self.use_bias else keras.ops.zeros((size,), self.compute_dtype)
        values = self.activation(keras.ops.cast(values, self.compute_dtype))
        along = [1] * (len(self.shape) + 1)
        along[self.axis] = size
        values = keras.ops.reshape(values, along)
        return keras.ops.broadcast_to(values, (keras.ops.shape(x)[0], *self.shape))

    def compute_mask(self, _, __=None):
        return None

    def compute_output_spec(self, x):
        return keras.KerasTensor((x.shape[0], *self.shape), self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "shape": self.shape,
            "axis": self.axis,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "bias_constraint": keras.constraints.serialize(self.bias_constraint),
        }


def _resize(layer, kept):
    place = layer.axis - 1
    return {"shape": (*layer.shape[:place], len(kept.output), *layer.shape[place + 1 :])}


# Its channels are pruned with the channels of mixing layers that they are added to.
CONSTANT = LayerRecord(
    lambda channel_flow, call: channel_flow.hold(call, call.layer.axis),
    {"bias": Weight((OUT,))},
    begins=True,
    resize=_resize,
)
