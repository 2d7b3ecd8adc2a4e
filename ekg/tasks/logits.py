"""Losses of class logits, with labels and with knowledge, and what counts as a right answer."""

import keras
import tensorflow as tf


def cross_entropy(labels, logits):
    """Returns the cross-entropy with the labels, [batch, ...], nats.

    Args:
        labels: class numbers [batch, ...], int, or shares of the classes [batch, ..., classes].
        logits: [batch, ..., classes].
    """
    labels = tf.convert_to_tensor(labels)
    if len(labels.shape) == len(logits.shape):
        return tf.nn.softmax_cross_entropy_with_logits(labels, logits)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int32), logits)


def soft_cross_entropy(teacher, logits):
    """Returns CE(softmax(t), z) = −Σ softmax(t)·log softmax(z), [batch, ...], nats.

    Args:
        teacher: t, logits [batch, ..., classes].
        logits: z, [batch, ..., classes].
    """
    return tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(teacher), logits)


def kl_divergence(teacher, logits, temperature):
    """Returns the distillation loss of every example, KL(p‖q) = τ·Σ softmax(p/τ)·(log softmax(p/τ)
    − log softmax(q/τ)).

    Args:
        teacher: p, logits [..., classes].
        logits: q, [..., classes], of a shape that broadcasts with the teacher's.
        temperature: τ; the factor τ in front is the method's.
    """
    log_p = tf.nn.log_softmax(teacher / temperature)
    log_q = tf.nn.log_softmax(logits / temperature)
    return temperature * tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def most_likely(labels, logits):
    """Returns class numbers of labels as cross_entropy() takes them: of shares the largest, the
    first of equal ones.
    """
    labels = tf.convert_to_tensor(labels)
    is_soft = len(labels.shape) == len(logits.shape)
    return (
        tf.argmax(labels, axis=-1, output_type=tf.int32) if is_soft else tf.cast(labels, tf.int32)
    )


def top_k_hits(labels, logits, k):
    """Returns whether the label is among the k highest logits, [batch], float32; of equal ones the
    first is the highest.
    """
    labels = most_likely(labels, logits)[:, None]
    label_logit = tf.gather(logits, labels, axis=1, batch_dims=1)
    is_before = (logits == label_logit) & (tf.range(tf.shape(logits)[1])[None] < labels)
    rank = tf.reduce_sum(
        tf.cast(~(logits <= label_logit) | is_before, tf.int32), axis=1
    )  # a NaN hits nothing
    return tf.cast(rank < k, tf.float32)


def mean_of_example(values):
    """Returns the mean of every example, [batch], of values [batch, ...]."""
    return tf.reduce_mean(values, axis=list(range(1, len(values.shape))))


def squash_of(graph, number):
    """Returns "sigmoid", "softmax" or None: what the layer does to logits that writes a tensor of a
    calls.Graph.
    """
    last = next((call.layer for call in graph.calls if number in call.outputs), None)
    if last is None or not squashes(last):
        return None
    is_sigmoid = (
        getattr(last, "activation", None) is keras.activations.sigmoid
        or type(last).__name__ == "Sigmoid"
    )
    return "sigmoid" if is_sigmoid else "softmax"


def squashes(operation):
    """Returns whether a layer or function turns logits into probabilities: softmax or sigmoid, also
    as an activation.
    """
    functions = (
        keras.activations.softmax,
        keras.activations.sigmoid,
        keras.ops.softmax,
        keras.ops.sigmoid,
    )
    return (
        type(operation) is keras.layers.Softmax
        or type(operation).__name__ in ("Softmax", "Sigmoid")
        or any(getattr(operation, "activation", None) is function for function in functions)
    )
