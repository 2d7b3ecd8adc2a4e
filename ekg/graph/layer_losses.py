"""Losses that layers add to a training, as `model.losses` holds them in Keras' own fit."""

import logging

import keras
import tensorflow as tf

logger = logging.getLogger(__name__)


def activity_losses(layer, outputs):
    """Returns a list of the scalars that a layer's activity regularizer gives for its outputs.

    As in Keras each is divided by the number of examples.

    Args:
        layer: keras.layers.Layer.
        outputs: list of the tensors [batch, ...] that one call of it writes.
    """
    regularizer = getattr(layer, "activity_regularizer", None)
    if regularizer is None:
        return []
    losses = []
    for output in outputs:
        loss = regularizer(tf.cast(output, tf.float32))
        size = tf.cast(tf.shape(output)[0], tf.float32) if len(output.shape) else 1.0
        losses.append(tf.math.divide_no_nan(_scalar(loss), size))
    return losses


def call_with_losses(layer, trainable, non_trainable, args, kwargs):
    """Returns the results of layer.stateless_call(), and a list of the scalars that the call added
    with add_loss().

    They include the losses of layers inside. Regularizers of weights, which count once per weight
    and not per call, are not included, nor is the activity regularizer of the layer itself.
    """
    layer._clear_losses()  # the identities of an earlier trace's tensors, which new ones may have
    output, new, losses = layer.stateless_call(
        trainable, non_trainable, *args, **kwargs, return_losses=True
    )
    num_regularizers = len(regularized(layer.trainable_weights))
    return output, new, list(map(_scalar, losses[: len(losses) - num_regularizers]))


def weight_losses(variables, values):
    """Returns a list of the scalars of the weights' regularizers.

    Args:
        variables: the trainable keras.Variables of a model.
        values: list of their values, tensors.
    """
    return [
        _scalar(variable.regularizer(value))
        for variable, value in zip(variables, values)
        if variable.regularizer is not None
    ]


def regularized(variables):
    """Returns a list of the keras.Variables that have a regularizer."""
    return [variable for variable in variables if variable.regularizer is not None]


def warn_of_weight_decay(model, weight_decay):
    """Warns if a network that is trained with weight decay also has regularizers of its own."""
    weights = [variable.path for variable in regularized(model.trainable_variables)]
    if weights and weight_decay:
        more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
        logger.warning(
            "the regularizers of the network (of %s%s) count in training, as in fit; "
            "`weight_decay` %g is added to them: give 0 to keep only the regularizers.",
            weights[0],
            more,
            weight_decay,
        )


def _scalar(loss):
    return tf.cast(keras.ops.sum(loss), tf.float32)
