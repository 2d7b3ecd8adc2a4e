import os
import signal

import pytest

import ekg
from ekg.errors import EkgError
from ekg.run.folder import RunFolder
from ekg.run.lock import LOCK, held
from tests.helpers import runs
from tests.helpers.digits import QUICK, digits, network, softmax

HOLDER = """
import sys, time
from pathlib import Path
from ekg.run.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


def test_the_second_run_in_a_folder_is_refused_in_one_line(tmp_path):
    folder = tmp_path / "run"
    with held(folder):
        message = (
            f"run: another run works in this folder .process {os.getpid()} on .*, since .*; wait "
            "for it"
        )
        with pytest.raises(EkgError, match=message):
            ekg.prune(
                network(softmax), digits(), epochs=None, target_rate=0.7, run_dir=folder, **QUICK
            )
        assert [path.name for path in folder.iterdir()] == [LOCK]
    result = ekg.prune(
        network(softmax), digits(), epochs=None, target_rate=0.7, run_dir=folder, **QUICK
    )
    assert result.rate <= 0.7
    with held(folder):  # the job left it
        pass


def test_a_lock_ends_with_its_process(tmp_path):
    process = runs.start("-c", HOLDER, tmp_path / "run", TF_CPP_MIN_LOG_LEVEL="3")
    try:
        for line in process.stdout:
            if "held" in line:
                break
        with pytest.raises(EkgError, match=f"process {process.pid} on "), held(tmp_path / "run"):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with held(tmp_path / "run"):
        assert f'"process": {os.getpid()}' in (tmp_path / "run" / LOCK).read_text()


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("ekg.run.lock.fcntl.flock", flock)
    with held(tmp_path):
        assert (
            "cannot be locked (No locks available); see to it that no other run works there"
            in caplog.text
        )


def test_a_folder_of_something_else_gets_no_lock(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with (
        pytest.raises(EkgError, match="is not empty and holds no run"),
        RunFolder(tmp_path).locked(),
    ):
        pass
    with RunFolder(tmp_path / "new").locked():
        assert (tmp_path / "new" / LOCK).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_leftover_first_file_is_locked_like_a_run(tmp_path):
    """Two runs that begin there at once: the second one is refused."""
    (tmp_path / ".arguments.json.abcd1234").write_text("half")
    with RunFolder(tmp_path).locked():
        RunFolder.prepare(tmp_path, {"seed": 1})
        with (
            pytest.raises(EkgError, match="another run works in this folder"),
            RunFolder(tmp_path).locked(),
        ):
            pass


@pytest.mark.parametrize(
    "make",
    [
        lambda path, target: path.symlink_to(target),
        lambda path, _: os.mkfifo(path),
        lambda path, _: path.mkdir(),
    ],
    ids=["link", "pipe", "folder"],
)
def test_a_lock_that_is_no_file_of_its_own_is_neither_followed_nor_written(tmp_path, make):
    (tmp_path / "mine").write_text("years of work")
    (tmp_path / "run").mkdir()
    make(tmp_path / "run" / LOCK, tmp_path / "mine")
    with (
        pytest.raises(EkgError, match=f"{LOCK}: is a link, or no plain file"),
        held(tmp_path / "run"),
    ):
        pass
    assert (tmp_path / "mine").read_text() == "years of work"


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_is_moved_while_a_run_works_in_it_ends_the_run_when_its_phase_ends(
    tmp_path, replaced
):
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        RunFolder.prepare(folder.path, {"seed": 1})
        with folder.timed("search"):
            pass
        with (
            pytest.raises(EkgError, match="run: is no longer the folder that this run began in"),
            folder.timed("bank"),
        ):
            folder.path.rename(tmp_path / "elsewhere")
            if replaced:
                (tmp_path / "run").mkdir()
                (tmp_path / "run" / LOCK).touch()
        assert not (tmp_path / "run" / "phases.jsonl").exists()
    assert "bank" not in (tmp_path / "elsewhere" / "phases.jsonl").read_text()


def test_steps_that_two_runs_wrote_are_noticed(tmp_path):
    ekg.prune(
        network(softmax), digits(), epochs=None, target_rate=0.5, run_dir=tmp_path / "run", **QUICK
    )
    folder = RunFolder(tmp_path / "run")
    lines = (folder / "history.jsonl").read_text().splitlines(keepends=True)
    for wrong, message in (
        (
            lines[:2] + lines[1:],
            "line 3 holds step 1 where step 2 is due; was it written by two runs",
        ),
        (lines[1:], "line 1 holds step 1 where step 0 is due"),
    ):
        (folder / "history.jsonl").write_text("".join(wrong))
        with pytest.raises(EkgError, match=message):
            folder.history()
