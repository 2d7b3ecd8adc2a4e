import re
import signal
import sys
from pathlib import Path

import pytest

from analyses import runs
from ekg.process import stopping
from tests.analyses.helpers import DIGITS, make_run, picture_size, run_analysis


@pytest.fixture
def no_request():
    """Withdraws what a test asked of this process."""
    yield
    stopping.request(None)


def test_a_run_that_fails_ends_the_analysis_with_its_exit_code(params, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "run_process", lambda _: 2)
    with pytest.raises(SystemExit) as exit_info:
        run_analysis("criteria", "--trained_param", params / "one.pkl", *DIGITS, "--out", tmp_path)
    assert exit_info.value.code == 2


def test_a_request_to_end_is_passed_to_the_run(no_request):
    stopping.request(signal.SIGTERM)
    assert (
        runs.run_process([sys.executable, "-c", "import time; time.sleep(60)"]) == -signal.SIGTERM
    )


def test_a_run_that_was_asked_to_end_has_not_failed(tmp_path, monkeypatch, no_request):
    def stop(_):
        stopping.request(signal.SIGTERM)
        return 128 + signal.SIGTERM

    monkeypatch.setattr(runs, "run_process", stop)
    pruning = runs.PruningRuns(tmp_path, "ResNet-8", "DIGITS", None, Path("p.pkl"), 0.5)
    with pytest.raises(stopping.Stopped):
        pruning.finish("one")


def test_a_run_becomes_a_page(params, tmp_path, capsys):
    folder = make_run(tmp_path / "run", params)
    run_analysis("run", folder)
    page = (folder / "report.html").read_text()
    assert "ResNet-8 on CIFAR10, 45.0% of the FLOPs" in page and not re.search(
        r"(src|href)='(?!data:)", page
    )
    assert (
        "<td>fine-tuned</td><td>0.3000</td><td>90.00</td>" in page
        and min(picture_size(folder / "report.png")) > 500
    )
    assert "top-1 95.00 % before and 90.00 % after" in capsys.readouterr().out
