"""The settings of the paper, and those that a user gives, reach the training, each in its own
place.
"""

import pytest

import train_cifar
import train_imagenet
from ekg import phases
from ekg.distil import bank, losses
from ekg.searching import greedy
from ekg.train.step import Trainer
from tests.helpers import small_jobs


class Notes:
    """What a job was made of: what fit() got in each phase, and what other functions were called
    with.
    """

    def __init__(self, patch):
        self.trainings, self.calls = {}, {}
        original = Trainer.__init__

        def note_trainer(trainer, *args, **options):
            trainer.given = options
            original(trainer, *args, **options)

        patch.setattr(Trainer, "__init__", note_trainer)
        patch.setattr(phases, "fit", self._fit)
        for module, name in (
            (greedy, "search_toward"),
            (bank, "select_teachers"),
            (losses, "fine_tuning"),
            (losses, "baseline"),
        ):
            patch.setattr(module, name, self._noting(name, getattr(module, name)))

    def _fit(
        self,
        phase,
        trainer,
        batches,
        schedule,
        *,
        folder,
        team=None,
        checkpoint_minutes,
        measure=None,
    ):
        """Replaces train.loop.fit and trains nothing."""
        self.trainings[phase] = trainer, batches, schedule, checkpoint_minutes

    def _noting(self, name, function):
        def call(*args, **options):
            self.calls[name] = args, options
            return function(*args, **options)

        return call

    def rates(self, phase, *epochs):
        """Returns the learning rates of a phase at these epochs."""
        schedule = self.trainings[phase][2]
        return [schedule(epoch) for epoch in epochs]

    def training(self, phase):
        """Returns (epochs, batch, images, random views of each, seed, weight decay) of a phase."""
        trainer, batches, schedule, _ = self.trainings[phase]
        images = len(batches.data.train if batches.split is None else batches.split)
        return (
            schedule.epochs,
            batches.batch_size,
            images,
            batches.num_views,
            batches.seed,
            trainer.given["weight_decay"],
        )


@pytest.fixture
def notes_of(tmp_path, monkeypatch):
    """Returns a function that runs a script's job and returns the Notes of it."""

    def run(script, *argv):
        notes = Notes(monkeypatch)
        small_jobs.run(
            script, small_jobs.make_large_data(), *argv, "--train_path", tmp_path / "run"
        )
        assert list(notes.trainings) == ["baseline", "subset", "fine-tune"]
        return notes

    return run


def test_cifar_networks_are_trained_as_published(notes_of):
    notes = notes_of(train_cifar)
    assert notes.training("fine-tune") == (100, 128, 840, 2, 0, 5e-4)
    rates = notes.rates("fine-tune", 0, 29.9, 30, 59.9, 60, 79.9, 80, 99)
    assert rates == pytest.approx([1e-2, 1e-2, 2e-3, 2e-3, 4e-4, 4e-4, 8e-5, 8e-5])
    assert notes.calls["fine_tuning"][0][1:] == ("ensemble", 4.0, None, 0.0, 2)
    assert notes.calls["select_teachers"][0][1] == 5
    assert notes.training("subset") == (1, 256, 3 * 256, 0, 0, 5e-4)
    assert notes.rates("subset", 0, 0.5, 0.99) == [1e-3] * 3
    assert not notes.trainings["subset"][0].given["update_statistics"]
    settings = notes.calls["search_toward"][0][3]
    assert (
        settings.target_rate,
        settings.search_step,
        settings.search_batch_size,
        settings.val_per_class,
        settings.search_teacher,
        settings.criterion,
    ) == (0.45, 0.2, 256, 32, "ensemble", "ekg")


def test_imagenet_networks_are_trained_with_a_temperature_of_ten(notes_of):
    notes = notes_of(train_imagenet, "--data_path", "somewhere")
    assert notes.training("fine-tune") == (100, 256, 840, 2, 0, 1e-4)
    rates = notes.rates("fine-tune", 0, 29.9, 30, 59.9, 60, 79.9, 80, 99)
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert notes.calls["fine_tuning"][0][1:] == ("ensemble", 10.0, None, 0.0, 2)
    assert notes.calls["select_teachers"][0][1] == 5
    assert notes.training("subset") == (1, 256, 3 * 256, 0, 0, 1e-4) and notes.rates(
        "subset", 0
    ) == [1e-3]
    assert notes.calls["search_toward"][0][3].target_rate == 0.55


def test_every_given_setting_reaches_its_own_field(notes_of):
    notes = notes_of(
        train_cifar,
        "--target_rate",
        0.7,
        "--search_step",
        0.3,
        "--search_batch_size",
        90,
        "--search_teacher",
        "single",
        "--criterion",
        "l1",
        "--val_per_class",
        20,
        "--subset_per_class",
        50,
        "--num_teacher",
        2,
        "--temperature",
        6,
        "--learning_rate",
        0.03,
        "--decay_points",
        0.25,
        0.5,
        "--decay_rate",
        0.4,
        "--warmup_epoch",
        2,
        "--weight_decay",
        0.007,
        "--label_smoothing",
        0.2,
        "--batch_size",
        64,
        "--train_epoch",
        8,
        "--baseline_epoch",
        20,
        "--accum",
        2,
        "--seed",
        11,
        "--checkpoint_minutes",
        3,
        "--search_precision",
        "bfloat16",
        "--precision",
        "bfloat16",
        "--num_views",
        1,
        "--subset_learning_rate",
        0.004,
    )
    assert notes.training("fine-tune") == (8, 64, 840, 1, 11, 0.007)
    assert notes.rates("fine-tune", 0, 1, 2, 4) == pytest.approx(
        [0.01, 0.02, 0.03 * 0.4, 0.03 * 0.4**2]
    )
    assert (
        notes.calls["fine_tuning"][0][1:] == ("ensemble", 6.0, None, 0.2, 1)
        and notes.calls["select_teachers"][0][1] == 2
    )
    assert (
        notes.training("subset") == (1, 90, 150, 0, 11, 0.007)
        and notes.rates("subset", 0, 0.5) == [0.004] * 2
    )
    assert (
        notes.training("baseline") == (20, 64, 840, 1, 11, 1e-4)
        and notes.calls["baseline"][0][1] == 0.2
    )
    assert notes.rates("baseline", 0, 2, 6, 18) == pytest.approx(
        [0.05 / 3, 0.05, 0.05 * 0.1, 0.05 * 0.1**3]
    )
    assert {minutes for *_, minutes in notes.trainings.values()} == {3}
    options = {phase: trainer.given["options"] for phase, (trainer, *_) in notes.trainings.items()}
    assert {phase: (given.accum, given.dtype) for phase, given in options.items()} == {
        "baseline": (2, "bfloat16"),
        "subset": (2, "float32"),
        "fine-tune": (2, "bfloat16"),
    }
    (*_, settings), given = notes.calls["search_toward"]
    assert (
        settings.target_rate,
        settings.search_step,
        settings.search_batch_size,
        settings.val_per_class,
        settings.search_teacher,
        settings.criterion,
    ) == (0.7, 0.3, 45, 20, "single", "l1")  # 90 in two micro-batches
    assert (given["seed"], given["compute"].dtype) == (11, "bfloat16")
