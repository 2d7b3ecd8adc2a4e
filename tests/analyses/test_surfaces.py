import matplotlib.pyplot as plt
import numpy as np
import pytest

import analyze
from analyses import pictures
from ekg.errors import EkgError
from ekg.io import files
from tests.analyses.helpers import DIGITS, cells, picture_size, run_analysis


def test_surfaces_share_one_scale(params, tmp_path):
    argv = (
        "landscape",
        params / "one.pkl",
        params / "two.pkl",
        *DIGITS,
        "--images",
        "test",
        "--grid",
        3,
        "--span",
        0.3,
        "--out",
        tmp_path,
    )
    rows = run_analysis(*argv)
    for row in rows:
        surface = np.array(row["surface"])
        assert (
            surface.shape == (3, 3)
            and row["loss"] == surface[1, 1]
            and row["lowest"] == surface.min()
        )
        assert row["highest"] == surface.max() > row["lowest"]
    assert min(picture_size(tmp_path / "landscape.png")) > 300
    before = (tmp_path / "surfaces.jsonl").read_bytes()
    assert run_analysis(*argv) == rows
    assert (tmp_path / "surfaces.jsonl").read_bytes() == before  # nothing was computed again


def test_surfaces_are_shown_on_the_page_of_results(params, tmp_path):
    argv = (
        "landscape",
        params / "one.pkl",
        *DIGITS,
        "--images",
        "test",
        "--grid",
        3,
        "--span",
        0.3,
    )
    (row,) = run_analysis(*argv, "--out", tmp_path / "flat")
    run_analysis("tables", tmp_path / "flat", "--out", tmp_path / "docs")
    page = (tmp_path / "docs" / "results.md").read_text()
    surface, each = (cells(line) for line in page.splitlines() if line.startswith("| flat "))
    assert surface[1:6] == ["ResNet-8", "one.pkl", "DIGITS", "test", "moving statistics"]
    assert surface[6:] == [f"{row[name]:.3g}" for name in ("loss", "lowest", "highest")]
    assert each[-1] == (
        "`python analyze.py landscape one.pkl --arch ResNet-8 --dataset DIGITS --images test "
        "--batch_size 256 --grid 3 --span 0.3`"
    )
    analyze.parse_args(each[-1].strip("`").split()[2:])  # it can be asked for so
    assert picture_size(tmp_path / "docs" / "results" / "studies" / "flat.png")[0] > 300
    kept = files.read_json(tmp_path / "docs" / "results" / "studies" / "flat.json")
    assert (
        "surface" not in kept["rows"][0] and kept["rows"][0]["seconds"] > 0
    )  # a whole surface stays where it was made
    run_analysis("tables", "--out", tmp_path / "docs")
    assert (tmp_path / "docs" / "results.md").read_text() == page
    run_analysis(
        "condition", *argv[1:-4], "--max_products", 3, "--tolerance", 9, "--out", tmp_path / "flat"
    )
    with pytest.raises(
        EkgError, match="flat: holds condition.json and landscape.json; give each analysis an `out`"
    ):
        run_analysis("tables", tmp_path / "flat")


def test_many_surfaces_are_arranged_in_rows(tmp_path):
    sizes = {}
    for count in (5, 7):
        pictures.draw_surfaces(
            tmp_path / "s.png",
            [f"network {i}" for i in range(count)],
            np.linspace(-1, 1, 3),
            [np.eye(3) + i for i in range(count)],
        )
        sizes[count] = picture_size(tmp_path / "s.png")
    assert abs(sizes[7][0] - sizes[5][0]) < 100 and sizes[7][1] > 1.7 * sizes[5][1]


def test_a_high_corner_hides_nothing_on_the_logarithmic_scale(tmp_path):
    """Near the network the colours differ; a loss of zero is drawn, too. On a linear scale they are
    all one.
    """
    colours = {}
    steps = np.linspace(-1, 1, 25)
    surface = np.add.outer(steps**2, steps**2)
    surface[0, 0] = 550.0
    for scale in ("log", "linear"):
        path = tmp_path / f"{scale}.png"
        pictures.draw_surfaces(path, ["network"], steps, [surface], scale)
        image = plt.imread(path)[..., :3]
        below = image[
            int(0.47 * len(image)) : int(0.8 * len(image)),
            image.shape[1] // 4 : 3 * image.shape[1] // 4,
        ]
        colours[scale] = len(np.unique(below.reshape(-1, 3).round(2), axis=0))
    assert colours["log"] > 2 * colours["linear"]
