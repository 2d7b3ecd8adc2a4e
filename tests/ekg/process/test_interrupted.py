"""A whole job that a signal stops ends as Python programs do, says where, and resumes."""

import os
import signal

import keras
import numpy as np
import pytest

import ekg
from ekg.commands import runner
from ekg.process import stopping
from ekg.run.folder import RunFolder
from ekg.searching import greedy
from ekg.train.checkpoints import Checkpoints
from tests.helpers.digits import digits, network, softmax

JOB = {
    "verbose": False,
    "target_rate": 0.6,
    "epochs": None,
    "search": {"val_per_class": 2, "subset_per_class": 4},
}


def test_a_stopped_search_reports_its_step_and_resumes(tmp_path, monkeypatch):
    model, calls, handler = network(softmax), [], signal.getsignal(signal.SIGINT)
    try_groups = greedy.try_groups

    def interrupted(*args):
        calls.append(None)
        if len(calls) in (2, 4):  # in the second step, and in the third
            os.kill(os.getpid(), signal.SIGINT if len(calls) == 2 else signal.SIGTERM)
        return try_groups(*args)

    monkeypatch.setattr(greedy, "try_groups", interrupted)
    with pytest.raises(
        KeyboardInterrupt,
        match="^stopped by SIGINT after search step 1; the same call resumes there.$",
    ):
        ekg.prune(model, digits(), run_dir=tmp_path / "run", **JOB)
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(SystemExit) as terminated:
        ekg.prune(model, digits(), run_dir=tmp_path / "run", **JOB)
    assert terminated.value.code == 143 and "after search step 2; the same call resumes" in str(
        terminated.value
    )
    resumed, whole = (
        ekg.prune(model, digits(), run_dir=tmp_path / name, **JOB) for name in ("run", "whole")
    )
    assert [entry.subnetwork for entry in resumed.history] == [
        entry.subnetwork for entry in whole.history
    ]


def test_the_work_done_is_described_in_words(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {})
    assert folder.describe_progress() == "its start, before the search"
    checkpoints = Checkpoints(
        folder.checkpoints("fine-tune"), model=keras.Sequential([keras.Input((2,))])
    )
    for position, text in (
        ({"epoch": 3, "step": 0}, "epoch 3 of the fine-tuning"),
        ({"epoch": 3, "step": 7}, "step 7 of epoch 4 of the fine-tuning"),
    ):
        checkpoints.save(position)
        assert folder.describe_progress() == text
    (folder / "trained_param.pkl").write_bytes(b"")
    assert folder.describe_progress() == "the fine-tuning"


@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]
)
def test_scripts_keep_their_exit_codes(monkeypatch, capsys, number, code):
    """Whether the library's own loop ended, or a call of ekg.prune in the script."""
    for error in (stopping.Stopped(number), stopping.ended(number, "search step 2")):

        def fail(code):
            raise ZeroDivisionError(code)  # stands for the end of the process

        def main(args, error=error):
            raise error

        monkeypatch.setattr(os, "_exit", fail)
        monkeypatch.setattr(runner, "_set_up_process", lambda *args: None)
        with pytest.raises(ZeroDivisionError, match=f"^{code}$"):
            runner.run_script(main, lambda: np.arange(0))
        assert f"stopped by {number.name}; the same command resumes" in capsys.readouterr().err
