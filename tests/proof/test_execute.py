"""A run of the proof on handwritten digits: stopped, resumed, and begun again on another
machine.
"""

import dataclasses

import keras
import numpy as np
import pytest

import dataloader
import nets
import utils
from benchmarks.proof import execute, setting
from benchmarks.proof.runs import Run
from ekg.errors import EkgError
from ekg.io import files
from ekg.run.lock import held
from ekg.train.checkpoints import Checkpoints

RUN = Run("ekg", "bank", 0, 0.95, epochs=2, arch="ResNet-8")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A place with an unpruned network of digits, and few images."""
    digits = dataloader.load("DIGITS", None)
    digits = dataclasses.replace(digits, test=digits.test.take(np.arange(40)))
    monkeypatch.setattr(dataloader, "load", lambda *_: digits)
    monkeypatch.setattr(setting, "PER_CLASS", 32)
    monkeypatch.setattr(setting, "PRECISION", "float32")
    keras.utils.set_random_seed(0)
    model = nets.build("ResNet-8", 10)
    for norm in (
        layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)
    ):
        norm.gamma.assign(np.random.default_rng(0).uniform(0.3, 0.8, norm.gamma.shape))
    (tmp_path / "records").mkdir()
    utils.save_params(model, tmp_path / "records" / "baseline0.pkl")
    return setting.Place("", tmp_path / "one", tmp_path / "records", tmp_path / "env")


def test_a_stopped_run_ends_as_an_undisturbed_one_of_the_same_sub_network(
    place, tmp_path, monkeypatch
):
    original = Checkpoints.save

    def save(self, position):
        original(self, position)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        for _ in range(2):  # in the epoch before the search, and in fine-tuning
            with pytest.raises(KeyboardInterrupt):
                execute.perform(RUN, place)
    record = execute.perform(RUN, place)
    assert record == execute.ProofRecord.read(place.record(RUN))
    assert [row["name"] for row in record.table] == ["baseline", "slimmed", "fine-tuned"]
    assert 0.9 < record.rate <= 0.95 and record.steps > 0 and len(record.num_teachers) == 2
    assert set(files.read_json(place.records / "baseline0.json")) == {
        "parameters",
        "train_top1",
        "test_top1",
    }

    def search(*_, **__):
        raise AssertionError("the search was made again")

    monkeypatch.setattr("ekg.searching.greedy.search_toward", search)
    other = setting.Place("", tmp_path / "two", place.records, place.peer_env)
    again = execute.perform(RUN, other)
    assert again.table == record.table and again.steps == record.steps
    weights = [utils.load_params(one.folder(RUN) / "trained_param.pkl") for one in (place, other)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_a_run_that_another_process_makes_is_refused(place):
    with held(place.folder(RUN)), pytest.raises(EkgError, match="another run works in this folder"):
        execute.perform(RUN, place)
