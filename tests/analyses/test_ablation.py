import pytest

from tests.analyses.helpers import DIGITS, picture_size, run_analysis


def test_the_ablation_has_five_rows_and_several_seeds(params, tmp_path, started):
    rows = run_analysis("ablation", "--trained_param", params / "one.pkl", *DIGITS, "--seeds", 0, 1, 2, "--out", tmp_path)
    assert [(row["search"], row["fine_tuning"]) for row in rows] == [
        ("none", "none"), ("single", "none"), ("ensemble", "none"), ("ensemble", "single"), ("ensemble", "ensemble")]
    assert len(started) == 15 and rows[0]["top1"] == pytest.approx(91.0) and rows[0]["deviation"] == pytest.approx(1.0)
    assert rows[0]["search_seconds"] == rows[0]["finetune_seconds"] == 1800
    shared = {command[command.index("--train_path") + 1]: command[command.index("--search_from") + 1]
              for command in started if "--search_from" in command}
    assert shared == {str(tmp_path / "runs" / f"ensemble-{tune}-{seed}"): str(tmp_path / "runs" / f"ensemble-none-{seed}")
                      for tune in ("single", "ensemble") for seed in range(3)}
    assert min(picture_size(tmp_path / "ablation.png")) > 100
    assert "single / none 91.00 ± 1.00 %" in (tmp_path / "ablation.txt").read_text()
