import keras
import numpy as np
import pytest

from ekg.data.dataset import Batches
from ekg.devices.compute import Compute
from ekg.devices.team import Team
from ekg.train.batch_norm_statistics import estimate_statistics_
from ekg.train.evaluate import evaluate
from tests.helpers.comparisons import mirrored
from tests.helpers.models import make_tiny_resnet


class Bar:
    """A progress bar that counts."""

    count = 0

    def update(self, count):
        self.count += count


@pytest.mark.parametrize(("batch_size", "replicas"), [(22, 1), (8, 1), (5, 1), (64, 1), (8, 2)])
def test_evaluation_is_exact_for_any_batch_size(tiny_resnet, tiny_data, batch_size, replicas):
    strategy, progress = mirrored(replicas), Bar()
    with strategy.scope():
        model = make_tiny_resnet()
    metrics = evaluate(
        model,
        Batches(tiny_data.test, tiny_data.normalise, batch_size),
        Compute(Team(strategy), use_xla=batch_size == 22),
        progress,
    )
    logits = tiny_resnet(tiny_data.normalise(tiny_data.test.images)).numpy().astype(np.float64)
    labels = tiny_data.test.labels
    loss = (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(22), labels]).mean()
    assert metrics.loss == pytest.approx(loss, rel=1e-5)
    assert (metrics.top1, metrics.top5) == ((logits.argmax(axis=1) == labels).mean(), 1.0)
    assert progress.count == 22


def test_parts_of_an_evaluation_add_up(tiny_resnet, tiny_data):
    """Two processes that read a part of each batch measure together what one measures."""
    batches, parts = Batches(tiny_data.test, tiny_data.normalise, 8), []
    whole = evaluate(tiny_resnet, batches)
    for worker in range(2):
        team = Team()
        team.worker, team.num_workers = worker, 2
        parts.append(evaluate(tiny_resnet, batches, Compute(team)))
    assert 0 < parts[0].top1 < whole.top1 and parts[0].top1 + parts[1].top1 == pytest.approx(
        whole.top1
    )
    assert parts[0].loss + parts[1].loss == pytest.approx(whole.loss, rel=1e-5)


class UnevenBatches(Batches):
    """Batches of 40, 12 and 44 of 96 images."""

    indices = [np.arange(0, 40), np.arange(40, 52), np.arange(52, 96)]


@pytest.mark.parametrize("use_xla", [False, True])
def test_statistics_are_over_all_images(tiny_resnet, tiny_data, use_xla):
    """Of uneven batches: the first layer's are those of one pass over all images, up to the last
    bit or two.
    """
    estimate_statistics_(
        tiny_resnet, UnevenBatches(tiny_data.train, tiny_data.normalise, 44), use_xla
    )
    stem = (
        tiny_resnet.get_layer("stem")(tiny_data.normalise(tiny_data.train.images))
        .numpy()
        .astype(np.float64)
    )
    norm = tiny_resnet.get_layer("stem_bn")
    np.testing.assert_allclose(norm.moving_mean, stem.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, stem.var(axis=(0, 1, 2)), rtol=1e-4)


def test_statistics_of_a_final_norm_are_over_all_images(tiny_data):
    inputs = keras.Input((8, 8, 3))
    norm = keras.layers.BatchNormalization()
    model = keras.Model(inputs, norm(keras.layers.Conv2D(4, 3, name="conv")(inputs)))
    estimate_statistics_(model, Batches(tiny_data.train, tiny_data.normalise, 20))
    read = (
        model.get_layer("conv")(tiny_data.normalise(tiny_data.train.images))
        .numpy()
        .astype(np.float64)
    )
    np.testing.assert_allclose(norm.moving_mean, read.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, read.var(axis=(0, 1, 2)), rtol=1e-4)
