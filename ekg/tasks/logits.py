"""Losses of class logits, with labels and with knowledge; and which answers count as right."""

import keras
import numpy as np
import tensorflow as tf

# What unknown activations are tried on
PROBE = np.array([[-2.0, 0.5, 3.0], [1.0, -1.0, 0.0]], np.float32)


def cross_entropy(labels, logits):
    """Returns the cross-entropy with labels, [batch, ...], in nats.

    Args:
        labels: class numbers, int [batch, ...], or class probabilities [batch, ..., classes].
        logits: array [batch, ..., classes].
    """
    labels = tf.convert_to_tensor(labels)
    if len(labels.shape) == len(logits.shape):
        return tf.nn.softmax_cross_entropy_with_logits(labels, logits)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int32), logits)


def soft_cross_entropy(teacher, logits):
    """Returns CE(softmax(t), z) = −Σ softmax(t)·log softmax(z), [batch, ...], in nats.

    Args:
        teacher: the teacher's logits t, [batch, ..., classes].
        logits: the network's logits z, [batch, ..., classes].
    """
    return tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(teacher), logits)


def kl_divergence(teacher, logits, temperature):
    """Returns the distillation loss per example, with a temperature.

    KL(p‖q) = τ·Σ softmax(p/τ)·(log softmax(p/τ) − log softmax(q/τ))

    Args:
        teacher: the teacher's logits p, [..., classes].
        logits: the network's logits q, [..., classes], with a shape that broadcasts with p.
        temperature: τ; the factor τ in front is the method's.
    """
    log_p = tf.nn.log_softmax(teacher / temperature)
    log_q = tf.nn.log_softmax(logits / temperature)
    return temperature * tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def most_likely(labels, logits):
    """Returns class numbers, int32, for labels in either form that cross_entropy() takes.

    Class probabilities give the most likely class, the first one in a tie.
    """
    labels = tf.convert_to_tensor(labels)
    if len(labels.shape) == len(logits.shape):
        return tf.argmax(labels, axis=-1, output_type=tf.int32)
    return tf.cast(labels, tf.int32)


def top_k_hits(labels, logits, k):
    """Returns 1 where the label is among the k highest logits, else 0, float32 [batch].

    In a tie, the class with the lower number ranks higher.
    """
    labels = most_likely(labels, logits)[:, None]
    label_logit = tf.gather(logits, labels, axis=1, batch_dims=1)
    wins_tie = (logits == label_logit) & (tf.range(tf.shape(logits)[1])[None] < labels)
    is_higher = ~(logits <= label_logit)  # true for NaN, so that a NaN is never a hit
    rank = tf.reduce_sum(tf.cast(is_higher | wins_tie, tf.int32), axis=1)
    return tf.cast(rank < k, tf.float32)


def mean_of_example(values):
    """Averages values [batch, ...] over all axes but the first, to [batch]."""
    return tf.reduce_mean(values, axis=list(range(1, len(values.shape))))


def squash_of(graph, number):
    """Returns "sigmoid" or "softmax" if the layer that computes a tensor ends with it, else None.

    Args:
        graph: graph.calls.Graph.
        number: number of the tensor in the graph.
    """
    last = next((call.layer for call in graph.calls if number in call.outputs), None)
    return None if last is None else squash_by(last)


def squashes(operation):
    """Returns whether a layer or function ends with a softmax or sigmoid, also as activation."""
    return squash_by(operation) is not None


def squash_by(operation):
    """Returns "sigmoid" or "softmax" if a layer or function ends with it, else None."""
    name = type(operation).__name__
    if name in ("Softmax", "Sigmoid"):
        return name.lower()
    if isinstance(operation, keras.layers.Lambda):
        return _squash_of_function(operation.function)
    if isinstance(operation, keras.layers.RNN):  # it applies its activation in every step
        return None
    return _squash_of_function(getattr(operation, "activation", None))


def _squash_of_function(function):
    """Returns "sigmoid" or "softmax" if a function of any name computes it, else None."""
    if function in (keras.activations.softmax, keras.ops.softmax):
        return "softmax"
    if function in (keras.activations.sigmoid, keras.ops.sigmoid):
        return "sigmoid"
    if not callable(function) or isinstance(function, keras.layers.Layer):
        return None
    try:
        values = function(tf.constant(PROBE))
    except Exception:  # a function of the user's own may need other numbers
        return None
    for name, squash in (("softmax", tf.nn.softmax), ("sigmoid", tf.sigmoid)):
        expected = squash(PROBE)
        if getattr(values, "shape", None) == expected.shape and np.allclose(
            values, expected, atol=1e-6
        ):
            return name
    return None
