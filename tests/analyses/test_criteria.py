import pytest

from analyses import criteria
from ekg.io import files
from tests.analyses.helpers import DIGITS, SPECTRUM, picture_size, run_analysis


def test_criteria_are_compared(params, tmp_path, started):
    argv = ("criteria", "--trained_param", params / "one.pkl", *DIGITS, "--out", tmp_path)
    rows = run_analysis(
        *argv, "--criteria", "l1", "ekg", "--tolerance", 100, "--", "--train_epoch", "1"
    )
    assert (
        [row["criterion"] for row in rows] == ["l1", "ekg"]
        and rows[0]["val_loss"] == 0.2
        and rows[0]["condition"] > 0
    )
    assert set(rows[0]) == SPECTRUM | {
        "criterion",
        "val_loss",
        "condition",
        "top1",
        "rate",
        "search_seconds",
        "steps",
    }
    assert (
        rows[0]["batch_statistics"]
        and rows[0]["rate"] == 0.45
        and rows[0]["search_seconds"] == 1800
    )
    assert files.read_json(tmp_path / "criteria.json")["published"] == {}  # nothing of ResNet-8
    with pytest.raises(SystemExit) as exit_info:
        run_analysis(*argv, "--criteria", "l1", "--max_products", 2)
    assert exit_info.value.code == 4
    assert (
        len(started) == 3
        and started[0][-2:] == ["--train_epoch", "1"]
        and started[0][1].endswith("train_cifar.py")
    )
    assert min(picture_size(tmp_path / "criteria.png")) > 100


def test_figures_of_the_paper_are_shown_beside_runs_like_its_own(
    params, tmp_path, started, monkeypatch
):
    # The networks of these folders are small; what counts is what their arguments say.
    monkeypatch.setattr(
        criteria, "kept_spectrum_values", lambda *_: {"condition": 0.1, "converged": True}
    )
    run_analysis(
        "criteria",
        "--trained_param",
        params / "one.pkl",
        *DIGITS,
        "--criteria",
        "l1",
        "gbn",
        "--out",
        tmp_path,
        "--",
        "--arch",
        "ResNet-56",
    )
    assert files.read_json(tmp_path / "criteria.json")["published"] == {
        "l1": [0.1569, 0.4078, 93.57],
        "gbn": [0.0710, 0.0414, 93.70],
    }
