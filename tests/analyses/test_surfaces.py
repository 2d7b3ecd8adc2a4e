import numpy as np

from analyses import pictures
from tests.analyses.helpers import DIGITS, picture_size, run_analysis


def test_surfaces_share_one_scale(params, tmp_path):
    argv = ("landscape", params / "one.pkl", params / "two.pkl", *DIGITS, "--images", "test", "--grid", 3, "--span", 0.3,
            "--out", tmp_path)
    rows = run_analysis(*argv)
    for row in rows:
        surface = np.array(row["surface"])
        assert surface.shape == (3, 3) and row["loss"] == surface[1, 1] and row["lowest"] == surface.min()
        assert row["highest"] == surface.max() > row["lowest"]
    assert min(picture_size(tmp_path / "landscape.png")) > 300
    before = (tmp_path / "surfaces.jsonl").read_bytes()
    assert run_analysis(*argv) == rows
    assert (tmp_path / "surfaces.jsonl").read_bytes() == before  # nothing was computed again


def test_many_surfaces_stand_in_rows(tmp_path):
    sizes = {}
    for count in (5, 7):
        pictures.draw_surfaces(tmp_path / "s.png", [f"network {i}" for i in range(count)], np.linspace(-1, 1, 3),
                               [np.eye(3) + i for i in range(count)])
        sizes[count] = picture_size(tmp_path / "s.png")
    assert abs(sizes[7][0] - sizes[5][0]) < 100 and sizes[7][1] > 1.7 * sizes[5][1]
