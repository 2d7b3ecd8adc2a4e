"""Estimates the moving statistics of batch norms from given images."""

import keras
import numpy as np
import tensorflow as tf

from ekg.devices.compute import compiled
from ekg.graph import norms
from ekg.graph.calls import Graph
from ekg.graph.execute import ExecutionOptions, pure_forward, read_variables
from ekg.process import stopping

NUM_STATISTICS_IMAGES = 10_000  # training images that moving statistics are estimated from


class StatisticsEstimation:
    """Sets the moving mean and variance of every trainable batch norm of one model to those of
    given images, exactly.

    It may be called again where the weights have changed, with one compilation. Each batch passes
    with batch statistics; mean and mean square are averaged over all images, and over all calls of
    a norm that is called several times. Frozen batch norms keep theirs, and so does everything else
    that is not trained.

    Attributes:
        model: functional keras.Model, changed in place.
    """

    def __init__(self, model, use_xla=False):
        """
        Args:
            model: functional keras.Model, changed in place.
            use_xla: whether to compile with XLA.
        """
        self.model = model
        self._seen = []  # (layer, mean, variance) of every norm's call, as the pass is traced
        self._calls = [call for call in Graph(model).calls if _is_estimated(call)]
        self._forward = pure_forward(
            model, ExecutionOptions(collect_moments=True, norms_alone=True), self._collect
        )
        self._moments = compiled(self._batch_moments, "pass for batch norm statistics", use_xla)

    def __call__(self, batches):
        """Estimates the statistics.

        Args:
            batches: data.Batches; images of one share batch statistics.
        """
        trainable, non_trainable = self._variables()
        totals = [[0.0, 0.0] for _ in self._calls]
        for images in batches.images() if self._calls else ():
            stopping.check()
            for total, pair in zip(
                totals, self._moments(trainable, non_trainable, batches.normalise(images))
            ):
                mean, variance = (value.numpy().astype(np.float64) for value in pair)
                count = len(keras.tree.flatten(images)[0])
                total[0] += count * mean
                # in float64: the square of a large mean hides a small variance
                total[1] += count * (variance + mean**2)
        for layer in dict.fromkeys(call.layer for call in self._calls):
            own = [total for call, total in zip(self._calls, totals) if call.layer is layer]
            mean, square = (sum(sums) / (len(own) * batches.num_images) for sums in zip(*own))
            layer.moving_mean.assign(mean)
            layer.moving_variance.assign(np.maximum(square - mean**2, 0))

    def _variables(self):
        """Returns (trainable, non-trainable) values, with moving statistics of zero.

        A norm that Keras computes moves its statistics: from zero to (1 - momentum) times those of
            the batch.
        """
        trainable, non_trainable = read_variables(self.model)
        position = {
            id(variable): i for i, variable in enumerate(self.model.non_trainable_variables)
        }
        for call in self._calls:
            for variable in (call.layer.moving_mean, call.layer.moving_variance):
                non_trainable[position[id(variable)]] = tf.zeros_like(variable.value)
        return trainable, non_trainable

    def _collect(self, call, _, new):
        if _is_estimated(call):
            self._seen.append((call.layer, *new[-2:]))

    def _batch_moments(self, trainable, non_trainable, images):
        """Returns (mean, variance) of what every call of a batch norm reads."""
        self._seen.clear()
        self._forward(trainable, non_trainable, images, True)
        shares = [1.0 if norms.supports(layer) else 1 - layer.momentum for layer, *_ in self._seen]
        return [
            (mean / share, variance / share)
            for (_, mean, variance), share in zip(self._seen, shares)
        ]


def estimate_statistics_(model, batches, use_xla=False):
    """Sets the moving statistics of a model to those of the images in `batches`, once; see
    StatisticsEstimation.
    """
    StatisticsEstimation(model, use_xla)(batches)


def fit_statistics_(model, batches, use_xla=False):
    """Sets the moving statistics to those that fit the weights, however short the training was.

    With a momentum of .999 the moving statistics of a short training are still those before it.

    Args:
        model: functional keras.Model, changed in place.
        batches: data.Batches of the training split; the first NUM_STATISTICS_IMAGES are taken.
        use_xla: whether to compile with XLA.
    """
    estimate_statistics_(model, batches.head(NUM_STATISTICS_IMAGES), use_xla)


def _is_estimated(call):
    """Returns whether a call is one of a batch norm whose moving statistics are estimated."""
    return norms.uses_batch_statistics(call.layer) and call.layer.trainable
