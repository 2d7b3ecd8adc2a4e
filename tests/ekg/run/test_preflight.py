import dataclasses
import types

import pytest

import ekg
import train_cifar
import utils
from ekg.distil.settings import FineTuneSettings
from ekg.errors import EkgError
from ekg.run import folder as names
from ekg.run import preflight, run
from ekg.run.folder import RunFolder
from ekg.run.job import Job
from ekg.run.settings import JobSettings
from tests.helpers import small_jobs
from tests.helpers.models import make_data, randomise_

BANK = 96 * 4 * 3 * 4  # images x teachers x classes, float32


def make_job(folder, model, teacher="ensemble"):
    tuning = FineTuneSettings(finetune_teacher=teacher, num_teacher=4)
    settings = JobSettings(fine_tuning=tuning)
    return Job(settings, make_data(), ekg.Supernet(model), ekg.Compute(), RunFolder(folder))


@pytest.mark.parametrize("teacher", ["ensemble", "single"])
def test_the_files_of_a_run_must_fit_the_disk(tmp_path, monkeypatch, tiny_resnet, teacher):
    job = make_job(tmp_path, tiny_resnet, teacher)
    needed = preflight.bytes_to_write(job, [1, 100])
    assert needed > (6 + 2 + 2 * 6) * 4 * tiny_resnet.count_params() + BANK * job.has_bank
    for free in (needed, needed - 1):
        monkeypatch.setattr(
            preflight.shutil, "disk_usage", lambda _, free=free: types.SimpleNamespace(free=free)
        )
        if free == needed:
            preflight.check_disk(job, [1, 100])
    with pytest.raises(
        EkgError,
        match=f"needs {needed:,} bytes and {needed - 1:,} are free; make room, or name another",
    ):
        preflight.check_disk(job, [1, 100])


def test_blocks_of_a_bank_that_exist_are_not_counted_again(tmp_path, tiny_resnet):
    before = preflight.bytes_to_write(make_job(tmp_path, tiny_resnet), [1])
    (tmp_path / names.BANK).mkdir()
    (tmp_path / names.BANK / "logits.npy").write_bytes(bytes(1000))
    assert preflight.bytes_to_write(make_job(tmp_path, tiny_resnet), [1]) == before - 1000


def test_a_run_writes_no_more_than_the_preflight_said(tmp_path, monkeypatch):
    """Checkpoints of every training, both kinds of files of the networks, report, events and an
    export.
    """
    jobs, run_job = [], run.run_job
    monkeypatch.setattr(run, "run_job", lambda job, *args: jobs.append(job) or run_job(job, *args))
    folder = tmp_path / "run"
    utils.save_params(randomise_(small_jobs.build(None, 3)), tmp_path / "p.pkl")
    small_jobs.run(
        train_cifar,
        small_jobs.make_large_data(),
        "--target_rate",
        "0.6",
        "--train_epoch",
        1,
        "--num_teacher",
        2,
        "--exports",
        "litert",
        "--runtimes",
        "--checkpoint_minutes",
        0,
        "--train_path",
        folder,
        "--trained_param",
        tmp_path / "p.pkl",
    )
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    job = dataclasses.replace(jobs[0], folder=RunFolder(tmp_path / "nothing"))
    assert written < preflight.bytes_to_write(job, [1, 1]) < 100 * written
    history = (folder / "history.jsonl").read_bytes().splitlines()
    assert len(history) <= preflight._search_steps(job)
    assert max(map(len, history)) <= preflight._history_line(job)
