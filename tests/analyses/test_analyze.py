import subprocess
import sys
from pathlib import Path

import pytest

import analyze
from ekg.errors import EkgError
from tests.analyses.helpers import DIGITS, run_analysis

ROOT = Path(analyze.__file__).parent
WITHOUT_OPTIONAL_PACKAGES = """
import runpy, sys
sys.modules["scipy"] = sys.modules["matplotlib"] = None
sys.argv = ["analyze.py", "--help"]
runpy.run_path("analyze.py", run_name="__main__")
"""


def test_help_needs_neither_scipy_nor_matplotlib():
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_OPTIONAL_PACKAGES], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    for command in (
        "run",
        "condition",
        "landscape",
        "correlation",
        "criteria",
        "ablation",
        "tables",
    ):
        assert f"    {command} " in result.stdout


def test_networks_of_other_classes_are_named(params):
    with pytest.raises(EkgError, match="hundred.pkl: a network of 100 classes, and DIGITS has 10"):
        run_analysis("condition", params / "one.pkl", params / "hundred.pkl", *DIGITS)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["smoothness"], "invalid choice"),
        (["landscape", "p.pkl", "--grid", "4"], "--grid must be odd"),
        (["landscape", "p.pkl", "--grid", "-1"], "--grid must be at least 1; received -1"),
        (["criteria", "--trained_param", "p", "--criteria", "l2"], "invalid choice"),
        (["ablation"], "required: --trained_param"),
        (["run", "x", "--", "--seed", "1"], "run starts no runs: --seed 1 has no effect"),
        (
            ["correlation", "--trained_param", "p", "--subnetworks", "0"],
            "--subnetworks must be at least 1; received 0",
        ),
        (
            ["correlation", "--trained_param", "p", "--target_rate", "1.5"],
            "--target_rate must be in (0, 1]; received 1.5",
        ),
        (["condition", "p.pkl", "--max_products", "0"], "--max_products must be at least 1"),
        (["criteria", "--trained_param", "p", "--", "--train_epochs", "1"], "--train_epochs 1"),
        (
            ["ablation", "--trained_param", "p", "--", "--train_epoch", "0"],
            "--train_epoch must be at least 1; received 0",
        ),
    ],
)
def test_wrong_arguments_are_refused(capsys, argv, message):
    with pytest.raises(SystemExit) as exit_info:
        analyze.parse_args(argv)
    assert exit_info.value.code == 2 and message in capsys.readouterr().err


def test_results_go_where_they_are_asked_to_or_to_a_folder_of_the_command():
    assert analyze.parse_args(["ablation", "--trained_param", "p"]).out == Path("analysis/ablation")
    assert analyze.parse_args(["condition", "p.pkl", "--out", "here"]).out == Path("here")
    assert analyze.parse_args(["tables", "run"]).out is None
