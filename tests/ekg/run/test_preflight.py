import types

import pytest

from ekg.errors import EkgError
from ekg.run import folder as names
from ekg.run import preflight
from ekg.run.folder import RunFolder
from ekg.settings import FineTuneSettings, JobSettings
from tests.conftest import make_data

BANK = 96 * 4 * 3 * 4  # images x teachers x classes, float32
WEIGHTS = 9 * 4 * 1000  # three parameter files, and weights and momentum of three checkpoints


def check(folder, free, monkeypatch, teacher="ensemble"):
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=free))
    settings = JobSettings(fine_tuning=FineTuneSettings(finetune_teacher=teacher, num_teacher=4))
    job = types.SimpleNamespace(settings=settings, data=make_data(), folder=folder, output_shape=(3,),
                                has_bank=teacher == "ensemble")
    preflight.check_disk(job, num_params=1000)


@pytest.mark.parametrize(("teacher", "needed"), [("ensemble", BANK + WEIGHTS), ("single", WEIGHTS), ("none", WEIGHTS)])
def test_what_a_run_writes_must_fit_the_disk(tmp_path, monkeypatch, teacher, needed):
    folder = RunFolder(tmp_path)
    check(folder, needed, monkeypatch, teacher)
    with pytest.raises(EkgError, match=f"needs {needed:,} bytes and {needed - 1:,} are free; make room, or name another"):
        check(folder, needed - 1, monkeypatch, teacher)


def test_what_is_there_of_a_bank_is_not_written_again(tmp_path, monkeypatch):
    (tmp_path / names.BANK).mkdir()
    (tmp_path / names.BANK / "logits.npy").write_bytes(bytes(1000))
    check(RunFolder(tmp_path), BANK + WEIGHTS - 1000, monkeypatch)
