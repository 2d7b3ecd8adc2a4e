"""A run that is killed in every phase and inside file writes ends as an undisturbed one; signals
leave a checkpoint.
"""

import os
import signal
import time

import pytest

import train_cifar
from ekg.errors import EkgError
from ekg.io import files
from ekg.run import reuse
from ekg.run.folder import RunFolder
from ekg.run.lock import LOCK
from tests.helpers import runs
from tests.helpers.damage import flip_bit
from tests.programs import stress_resume

# (when the process is killed, what must be there by then)
KILLS = [
    ("step:2", None),
    ("candidate:5", "supernet_param.pkl"),
    ("line:1", "history.jsonl"),
    ("rename:1", "history.jsonl"),
    ("block:2", "memory_bank/logits.npy"),
    ("block:3", "memory_bank/blocks.jsonl"),
    ("step:9", "slimmed_param.pkl"),
    ("checksum:5", "checkpoints/fine-tune"),
    ("rename:3", "checkpoints/fine-tune"),
    ("step:30", "checkpoints/fine-tune"),
]


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    path = tmp_path_factory.mktemp("params") / "p.pkl"
    stress_resume.write_params(path)
    return path


@pytest.fixture(scope="module")
def undisturbed(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    code, output = stress_resume.run_to_event(params, folder)
    assert code == 0, output
    return folder


def test_a_run_killed_in_every_phase_ends_the_same_to_the_bit(params, undisturbed, tmp_path):
    folder, kills = tmp_path / "run", 0
    for event, expected in KILLS:
        code, output = stress_resume.run_to_event(params, folder, event)
        assert code in (0, -signal.SIGKILL), output
        assert "Traceback" not in output
        assert expected is None or (folder / expected).exists()
        kills += code != 0
        assert code or kills >= 8, f"{event} did not happen"
    assert kills >= 8
    code, output = stress_resume.run_to_event(params, folder)
    assert code == 0, output
    assert stress_resume.end_of(folder) == stress_resume.end_of(undisturbed)


def test_a_signal_ends_the_training_with_a_checkpoint(params, undisturbed, tmp_path):
    folder = tmp_path / "run"
    finished = RunFolder.open(undisturbed)
    reuse.take_search(RunFolder.create(folder, finished.arguments()), finished)
    for number, code in ((signal.SIGTERM, 143), (signal.SIGUSR1, 138)):
        process = stress_resume.start(params, folder)
        before = set((folder / "checkpoints").glob("fine-tune/*.index"))
        deadline = time.monotonic() + 120
        while (
            set((folder / "checkpoints").glob("fine-tune/*.index")) <= before
            and time.monotonic() < deadline
        ):
            time.sleep(0.1)
        os.kill(process.pid, number)
        ((exit_code, output),) = runs.finish(process, timeout=60)
        assert (
            exit_code == code and f"stopped by {number.name}; the same command resumes" in output
        ), output
        assert "Traceback" not in output
    code, output = stress_resume.run_to_event(params, folder)
    assert code == 0 and "fine-tune: resumes after epoch" in output, output
    assert stress_resume.end_of(folder) == stress_resume.end_of(undisturbed)


def test_damaged_files_of_a_run_are_named(params, undisturbed, tmp_path):
    """A flipped bit in what a resumed run reads."""
    names = ("arguments.json", "history.jsonl", "supernet_param.pkl")
    for damaged in names:
        folder = tmp_path / damaged
        folder.mkdir()
        for name in names:
            data = (undisturbed / name).read_bytes()
            (folder / name).write_bytes(flip_bit(data) if name == damaged else data)
        with pytest.raises(EkgError, match=damaged):
            resume(params, folder)


def test_another_run_in_the_folder_is_refused_line_by_line(params, undisturbed):
    before = times_of(undisturbed)
    with pytest.raises(
        EkgError, match="\n  seed: 0 there, 3 here\n  train_epoch: 2 there, 5 here"
    ) as refused:
        resume(params, undisturbed, "--seed", "3", "--train_epoch", "5", "--virtual_devices", "2")
    assert "virtual_devices" not in str(refused.value)
    assert times_of(undisturbed) == before


def times_of(folder):
    """Returns when each file was written, but for the lock, which every start takes."""
    return {path: path.stat().st_mtime for path in folder.rglob("*") if path.name != LOCK}


def resume(params, folder, *more):
    return stress_resume.run_job(
        train_cifar.parse_args(
            [
                *stress_resume.ARGUMENTS,
                "--trained_param",
                str(params),
                "--train_path",
                str(folder),
                *more,
            ]
        )
    )


def test_a_finished_run_shows_its_summary(params, undisturbed):
    code, output = stress_resume.run_to_event(params, undisturbed)
    assert code == 0 and "this run is finished" in output and "| fine-tuned |" in output
    assert files.read_json(undisturbed / "summary.json")["table"][2]["name"] == "fine-tuned"
