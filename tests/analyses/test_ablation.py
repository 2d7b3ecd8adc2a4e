import pytest

from ekg.errors import EkgError
from tests.analyses.helpers import DIGITS, picture_size, run_analysis

ROWS = [
    (search, "none", views) for search in ("none", "single", "ensemble") for views in (1, 2)
] + [("ensemble", "single", 2), ("ensemble", "ensemble", 2)]


def test_the_ablation_has_labels_on_one_and_two_views_and_several_seeds(params, tmp_path, started):
    rows = run_analysis(
        "ablation",
        "--trained_param",
        params / "one.pkl",
        *DIGITS,
        "--seeds",
        0,
        1,
        2,
        "--out",
        tmp_path,
    )
    assert [(row["search"], row["fine_tuning"], row["views"]) for row in rows] == ROWS
    assert (
        len(started) == 24
        and rows[0]["top1"] == pytest.approx(91.0)
        and rows[0]["deviation"] == pytest.approx(1.0)
    )
    assert rows[0]["search_seconds"] == rows[0]["finetune_seconds"] == 1800
    flags = [dict(zip(command[2::2], command[3::2])) for command in started]
    assert [
        (one["--search_teacher"], one["--finetune_teacher"], int(one["--num_views"]))
        for one in flags[::3]
    ] == ROWS
    shared = {one["--train_path"]: one["--search_from"] for one in flags if "--search_from" in one}
    folder = tmp_path / "runs"
    assert shared == {
        str(folder / f"{search}-{tune}-{seed}"): str(folder / f"{search}-none-{seed}")
        for search, tune in (
            ("none", "none-2"),
            ("single", "none-2"),
            ("ensemble", "none-2"),
            ("ensemble", "single"),
            ("ensemble", "ensemble"),
        )
        for seed in range(3)
    }
    assert min(picture_size(tmp_path / "ablation.png")) > 100
    assert "single / none, two views 91.00 ± 1.00 %" in (tmp_path / "ablation.txt").read_text()


def test_the_ablation_refuses_views_of_its_runs(params, tmp_path, started):
    with pytest.raises(EkgError, match="`num_views`: rows of the ablation differ in it"):
        run_analysis(
            "ablation",
            "--trained_param",
            params / "one.pkl",
            *DIGITS,
            "--out",
            tmp_path,
            "--",
            "--num_views",
            2,
        )
    assert not started
