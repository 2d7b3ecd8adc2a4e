"""Evaluates a network exactly over a whole split."""

import dataclasses

import numpy as np
import tensorflow as tf

from ekg.devices.compute import Compiled, Compute, full_float32, in_graph, split_batch
from ekg.graph.calls import Graph
from ekg.graph.execute import pure_forward, read_variables
from ekg.process import stopping


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Means over a whole split, and how far chance may have moved them.

    Attributes:
        loss: the task's loss, of a classification the cross-entropy in nats.
        values: {metric: its value}.
        examples: number of them.
        errors: {"loss" or metric: standard error of the mean}; NaN of a single example.
    """

    loss: float
    values: dict[str, float]
    examples: int = 0
    errors: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def top1(self):
        """Share of right answers of a classification, in [0, 1]."""
        return self.values["top1"]

    @property
    def top5(self):
        """Share of labels among the five highest logits, in [0, 1]."""
        return self.values["top5"]


def evaluate(model, batches, compute=None, progress=None):
    """Returns exact Metrics of a model over a split, with moving statistics; see Evaluation.

    Args:
        model: functional keras.Model from normalised images to what the task takes, created under
            the team's strategy.
        batches: data.Batches of the split; batch_size is the global batch, a multiple of the number
            of replicas.
        compute: Compute; each process of its team reads its own part of every batch.
        progress: progress bar that gets update(number of images), or None.
    """
    return Evaluation(model, batches, compute)(progress)


class Evaluation:
    """Evaluates one model on one split, as often as it is called, with one compilation.

    Losses and hits are summed; the last short batch is filled up with images that count nothing, so
    all batches have one shape and no mean of means is taken.

    Attributes:
        model: the keras.Model; its weights may change between calls.
        batches: data.Batches of the split.
    """

    def __init__(self, model, batches, compute=None):
        """See evaluate()."""
        self.model, self.batches, self._team = model, batches, (compute or Compute()).team
        graph, self._task = Graph(model), batches.task
        self._task.check_network(graph)
        self._task.check_labels(
            batches.split.labels, self._task.shape(graph), f"labels for {model.name!r}"
        )
        self._forward = pure_forward(model)
        self._step = Compiled(
            self._make_step, "evaluation step", compute is not None and compute.use_xla
        )

    def __call__(self, progress=None, batches=None):
        """Returns the Metrics of the model as it is now.

        Args:
            progress: see evaluate().
            batches: data.Batches of some of the images, of the same batch size; None means
                all.
        """
        batches = self.batches if batches is None else batches
        split, batch_size, (worker, num_workers) = (
            batches.split,
            batches.batch_size,
            self._team.shard,
        )
        index_batches = [
            np.arange(start, start + batch_size) for start in range(0, len(split), batch_size)
        ]
        index_batches = [np.array_split(indices, num_workers)[worker] for indices in index_batches]
        padded = [np.minimum(indices, len(split) - 1) for indices in index_batches]
        total = np.zeros((2, 1 + len(self._task.metrics)))
        for indices, read, images in zip(index_batches, padded, split.stream(padded)):
            batch = {
                "weight": (indices < len(split)).astype(np.float32),
                "images": images,
                "labels": split.labels[read],
            }
            with full_float32():
                total += self._step(split_batch(self._team.strategy, batch)).numpy()
            if num_workers == 1:  # one that left the others would let them wait
                stopping.check()
            if progress is not None:
                progress.update(int(batch["weight"].sum()) * num_workers)
        means, squares = total / len(split)
        with np.errstate(invalid="ignore", divide="ignore"):
            errors = np.sqrt(np.maximum(squares - means**2, 0) / np.float64(len(split) - 1))
        names = ("loss", *self._task.metrics)
        loss, *values = map(float, means)
        return Metrics(
            loss,
            dict(zip(self._task.metrics, values)),
            len(split),
            dict(zip(names, map(float, errors))),
        )

    def _make_step(self, use_xla):
        strategy, sums = self._team.strategy, in_graph(self._replica_sums, use_xla)

        def step(batch):
            result = strategy.run(
                lambda part: sums(*read_variables(self.model), part), args=(batch,)
            )
            return strategy.reduce(tf.distribute.ReduceOp.SUM, result, axis=None)

        return in_graph(step)

    def _replica_sums(self, trainable, non_trainable, batch):
        """Returns [loss, metric, ...] summed over the images that count, and the same of the
        squares, [2, ...]. Pure.
        """
        outputs = self._forward(
            trainable, non_trainable, self.batches.normalise(batch["images"]), False
        )[0]
        outputs, labels = tf.cast(self._task.of(outputs), tf.float32), batch["labels"]
        measured = self._task.measure(labels, outputs)
        values = tf.stack(
            [self._task.loss(labels, outputs), *(measured[name] for name in self._task.metrics)]
        )
        values = tf.cast(values * batch["weight"], tf.float64)
        return tf.stack([tf.reduce_sum(values, axis=1), tf.reduce_sum(values**2, axis=1)])
