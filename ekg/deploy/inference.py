"""Networks as they compute when they are deployed: in inference, and in float32."""

import keras

from ekg.graph import cutting
from ekg.graph.calls import finish_layers_

MIXED = ("mixed_float16", "mixed_bfloat16")


class Inference(keras.Model):
    """A network whose layers all work as in inference, despite their calls and defaults.

    By default Keras' image augmentation layers work as in training, and a dropout may be called
    with training=True: an exported graph would be random.
    """

    def __init__(self, model):
        """
        Args:
            model: functional or sequential keras.Model.
        """
        super().__init__(name=model.name)
        self.model, self.built = model, True

    def call(self, inputs):
        return self.model(inputs, training=False)


def in_float32(model, input_shape=None):
    """Returns a float32 copy of a network with mixed dtype policies; the network itself if it has
    none.

    Its weights are float32 already, so they stay as they are.

    Args:
        model: functional or sequential keras.Model.
        input_shape: shape of an example, or a list of them, where the model takes any size.
    """
    if not any(layer.dtype_policy.name in MIXED for layer in model._flatten_layers()):
        return model
    copy = cutting.copy(model, input_shape)
    for layer in copy._flatten_layers():
        if layer.dtype_policy.name in MIXED:
            layer.dtype_policy = "float32"
    finish_layers_(copy)
    return cutting.copy(copy, input_shape)  # gives its tensors the new dtypes, too


def is_random(model, inputs):
    """Returns whether two passes of a network over the same inputs differ.

    Args:
        model: keras.Model.
        inputs: inputs as the model takes them.
    """
    first, second = (keras.tree.flatten(model(inputs, training=False)) for _ in range(2))
    return any(bool(keras.ops.any(one != other)) for one, other in zip(first, second))
