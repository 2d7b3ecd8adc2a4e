"""Exact evaluation over a whole split, and the moving statistics of batch norms over given images."""

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from ekg import stopping, tasks
from ekg.devices.compute import Compiled, Compute, compiled, split_batch
from ekg.graph.execute import pure_forward, read_variables


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Mean loss (cross-entropy, nats) and shares of right answers in [0, 1] over a whole split."""
    loss: float
    top1: float
    top5: float


def evaluate(model, batches, compute=None, progress=None):
    """Returns exact Metrics of a model over a split, with moving statistics.

    Losses and hits are summed; the last short batch is filled up with images that count nothing, so one compilation
    serves all and no mean of means is taken.

    Args:
        model: functional keras.Model from normalised images to logits, created under the team's strategy.
        batches: data.Batches of the split; batch_size is the global batch, a multiple of the number of replicas.
        compute: Compute; each process of its team reads its own part of every batch.
        progress: progress bar that gets update(number of images), or None.
    """
    compute, forward = compute or Compute(), pure_forward(model)
    strategy, (worker, num_workers) = compute.team.strategy, compute.team.shard
    split, batch_size = batches.split, batches.batch_size

    def replica_sums(trainable, non_trainable, batch):
        logits = tf.cast(forward(trainable, non_trainable, batches.normalise(batch["images"]), False)[0], tf.float32)
        labels = batch["labels"]
        values = tf.stack([tasks.cross_entropy(labels, logits), tasks.top_k_hits(labels, logits, 1),
                           tasks.top_k_hits(labels, logits, 5)])
        return tf.reduce_sum(tf.cast(values * batch["weight"], tf.float64), axis=1)

    def make_step(use_xla):
        sums = tf.function(replica_sums, jit_compile=use_xla)

        def step(batch):
            result = strategy.run(lambda part: sums(*read_variables(model), part), args=(batch,))
            return strategy.reduce(tf.distribute.ReduceOp.SUM, result, axis=None)
        return tf.function(step)

    step, total = Compiled(make_step, "evaluation step", compute.use_xla), np.zeros(3)
    index_batches = [np.arange(start, start + batch_size) for start in range(0, len(split), batch_size)]
    index_batches = [np.array_split(indices, num_workers)[worker] for indices in index_batches]
    padded = [np.minimum(indices, len(split) - 1) for indices in index_batches]
    for indices, read, images in zip(index_batches, padded, split.stream(padded)):
        batch = {"weight": (indices < len(split)).astype(np.float32), "images": images, "labels": split.labels[read]}
        total += step(split_batch(strategy, batch)).numpy()
        stopping.check()
        if progress is not None:
            progress.update(int(batch["weight"].sum()) * num_workers)
    return Metrics(*(float(value) for value in total / len(split)))


def estimate_statistics_(model, batches, use_xla=False):
    """Sets the moving mean and variance of every batch norm to those of the images in `batches`, exactly.

    Each batch passes with batch statistics; mean and mean square are averaged over all images.

    Args:
        model: functional keras.Model, changed in place.
        batches: data.Batches; images of one share batch statistics.
        use_xla: whether to compile with XLA.
    """
    forward = pure_forward(model)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    position = {id(variable): i for i, variable in enumerate(model.non_trainable_variables)}
    zeros = [tf.zeros_like(value) for value in read_variables(model)[1]]

    def moments(trainable, images):
        # From statistics of zero the moving average returns (1 - momentum) times those of the batch.
        new = forward(trainable, zeros, images, True)[1]
        result = []
        for layer in norms:
            mean = new[position[id(layer.moving_mean)]] / (1 - layer.momentum)
            variance = new[position[id(layer.moving_variance)]] / (1 - layer.momentum)
            result.append((mean, variance + mean**2))
        return result

    moments = compiled(moments, "pass for batch norm statistics", use_xla)
    trainable, total = read_variables(model)[0], None
    for images in batches.images():
        stopping.check()
        size = len(images)
        batch_moments = moments(trainable, batches.normalise(images))
        values = [[value.numpy().astype(np.float64) * size for value in pair] for pair in batch_moments]
        total = values if total is None else tf.nest.map_structure(np.add, total, values)
    count = batches.num_images
    for layer, (mean, square) in zip(norms, total):
        layer.moving_mean.assign(mean / count)
        layer.moving_variance.assign(square / count - (mean / count) ** 2)
