import pytest

from ekg import files
from tests.analyses.helpers import DIGITS, SPECTRUM, picture_size, run_analysis


def test_condition_numbers_are_kept_and_drawn(params, tmp_path, capsys):
    argv = ("condition", params / "one.pkl", params / "two.pkl", *DIGITS, "--images", "test", "--tolerance", 0.6, "--out",
            tmp_path)
    rows = run_analysis(*argv)
    assert [row["network"] for row in rows] == ["one", "two"] and all(row["converged"] for row in rows)
    for row in rows:
        assert row["condition"] == abs(row["smallest"] / row["largest"]) and row["num_images"] == 40
        assert set(row) == SPECTRUM | {"network", "condition", "loss"} and row["parameters"] == "kernels"
    stored = files.read_json(tmp_path / "condition.json")
    assert stored["rows"] == rows and min(picture_size(tmp_path / "condition.png")) > 100
    assert (tmp_path / "condition.csv").read_text().startswith("network,condition,loss")
    assert f"{rows[0]['condition']:.4f}" in capsys.readouterr().out
    before = (tmp_path / "conditions.jsonl").read_bytes()
    assert run_analysis(*argv) == rows
    assert (tmp_path / "conditions.jsonl").read_bytes() == before  # nothing was computed again


def test_eigenvalues_that_do_not_converge_are_said_and_kept(params, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run_analysis("condition", params / "one.pkl", *DIGITS, "--images", "test", "--max_products", 2, "--out", tmp_path)
    assert exit_info.value.code == 4
    error = capsys.readouterr().err
    assert "not known to the tolerance: those of network one (residuals" in error and "raise --max_products" in error
    row, = files.read_json(tmp_path / "condition.json")["rows"]
    assert row["products"] == 2 and not row["converged"] and row["residual_smallest"] > 0
