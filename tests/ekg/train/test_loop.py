import signal

import numpy as np
import pytest
import tensorflow as tf

from ekg.data.dataset import TrainingBatches
from ekg.distil import losses
from ekg.io import files
from ekg.process import stopping
from ekg.run.folder import RunFolder
from ekg.train.loop import EpochMeter, fit, train_epoch
from ekg.train.step import Schedule, Trainer
from tests.helpers.comparisons import mirrored
from tests.helpers.models import make_tiny_resnet

SCHEDULE = Schedule(0.05, (0.5,), 0.2, 2)


class Bar:
    """A progress bar that nobody watches."""

    def update(self, _): ...

    def set_postfix(self, _): ...


class Steps:
    """Stands for a Trainer: each step gives the next of these losses."""

    def __init__(self, *values):
        self._values, self.rates = iter(values), []

    def step(self, _, learning_rate):
        self.rates.append(learning_rate)
        return {"loss": tf.constant(next(self._values))}


def batches(count):
    return [{"labels": np.zeros(8)}] * count


def test_means_of_an_epoch_cover_all_its_steps_even_after_resuming():
    means = train_epoch(Steps(1.0, 2.0, 6.0), batches(3), SCHEDULE, EpochMeter(0, 3, 1, Bar()))
    assert means["loss"] == 3 and means["images_per_second"] > 0
    gone_on = EpochMeter(0, 3, 1, Bar(), done=2, totals={"loss": 3.0})
    assert train_epoch(Steps(6.0), batches(1), SCHEDULE, gone_on)["loss"] == 3


def test_the_learning_rate_of_a_step_follows_its_place_in_the_epoch():
    steps, totals = Steps(*np.ones(4, np.float32)), []
    train_epoch(
        steps,
        batches(4),
        Schedule(1.0, (0.25,), 0.1, 2),
        EpochMeter(0, 4, 1, Bar()),
        lambda done, sums: totals.append((done, float(sums["loss"]))),
    )
    np.testing.assert_allclose(steps.rates, [1, 1, 0.1, 0.1])
    assert totals == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_a_non_finite_loss_stops_and_is_named():
    with pytest.raises(
        FloatingPointError,
        match="loss became non-finite in epoch 3, at or shortly before step 2 of 4",
    ):
        train_epoch(Steps(1.0, np.nan, 1.0, 1.0), batches(4), SCHEDULE, EpochMeter(2, 4, 1, Bar()))


@pytest.fixture
def make_trainer(tiny_data):
    def make():
        with mirrored(1).scope():
            model = make_tiny_resnet()
        return Trainer(mirrored(1), model, losses.baseline(tiny_data), weight_decay=1e-3)

    return make


@pytest.fixture
def stops_after(monkeypatch):
    """Returns a function: the process is asked to end when a Trainer has made so many steps."""

    def stop(count):
        original, steps = Trainer.step, iter(range(1, 10**9))

        def step(self, batch, learning_rate):
            metrics = original(self, batch, learning_rate)
            if next(steps) == count:
                stopping.request(signal.SIGTERM)
            return metrics

        monkeypatch.setattr(Trainer, "step", step)

    yield stop
    stopping.request(None)


@pytest.mark.parametrize("count", [2, 4, 5])
def test_a_training_that_is_asked_to_end_resumes_to_the_same_weights(
    tmp_path, tiny_data, make_trainer, stops_after, count
):
    """Within an epoch, at its end, and within the second one."""
    data = TrainingBatches(tiny_data, 24, seed=0, num_views=1)
    undisturbed, other = make_trainer(), make_trainer()
    folders = [RunFolder.create(tmp_path / name, {}) for name in ("undisturbed", "other")]
    fit("phase", undisturbed, data, SCHEDULE, folder=folders[0])
    stops_after(count)
    with pytest.raises(stopping.Stopped):
        fit("phase", make_trainer(), data, SCHEDULE, folder=folders[1])
    stopping.request(None)
    fit("phase", other, data, SCHEDULE, folder=folders[1])
    assert all(
        (a == b).all() for a, b in zip(undisturbed.model.get_weights(), other.model.get_weights())
    )
    curves = [
        [line | {"images_per_second": 0} for line in files.read_json_lines(folder / "curves.jsonl")]
        for folder in folders
    ]
    assert [line["step"] for line in curves[0]] == [1, 2] and curves[0] == curves[1]
    assert [line["learning_rate"] for line in curves[0]] == pytest.approx([0.05, 0.01])
