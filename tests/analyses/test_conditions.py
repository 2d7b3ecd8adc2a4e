import numpy as np
import pytest

import analyze
import utils
from analyses import conditions, studies
from analyses.subject import short_names
from ekg.errors import EkgError
from ekg.io import files
from ekg.landscape.hessian import model_landscape
from tests.analyses.helpers import (
    DIGITS,
    SPECTRUM,
    cells,
    make_supernet,
    picture_size,
    run_analysis,
)


def test_condition_numbers_are_kept_and_drawn(params, tmp_path, capsys):
    argv = (
        "condition",
        params / "one.pkl",
        params / "two.pkl",
        *DIGITS,
        "--images",
        "test",
        "--tolerance",
        0.6,
        "--out",
        tmp_path,
    )
    rows = run_analysis(*argv)
    assert [row["network"] for row in rows] == ["one.pkl", "two.pkl"] and all(
        row["converged"] for row in rows
    )
    for row in rows:
        assert row["condition"] == abs(row["smallest"] / row["largest"]) and row["num_images"] == 40
        assert set(row) == SPECTRUM | {
            "network",
            "condition",
            "loss",
            "seconds",
            "origin",
            "versions",
        }
        assert row["parameters"] == "kernels"
    stored = files.read_json(tmp_path / "condition.json")
    assert stored["rows"] == rows and min(picture_size(tmp_path / "condition.png")) > 100
    assert (tmp_path / "condition.csv").read_text().startswith("network,condition,loss")
    assert f"{rows[0]['condition']:.4f}" in capsys.readouterr().out
    before = (tmp_path / "conditions.jsonl").read_bytes()
    assert run_analysis(*argv) == rows
    assert (tmp_path / "conditions.jsonl").read_bytes() == before  # nothing was computed again
    run_analysis("tables", tmp_path, "--out", tmp_path / "docs")
    page = (tmp_path / "docs" / "results.md").read_text()
    *of_networks, each = (
        cells(line) for line in page.splitlines() if line.startswith(f"| {tmp_path.name} ")
    )
    assert [row[2] for row in of_networks] == ["one.pkl", "two.pkl"] and len(of_networks[0]) == len(
        studies.CONDITIONS
    )
    assert [row[8] for row in of_networks] == [f"{row['condition']:.4f}" for row in rows]
    assert each[-1].startswith(
        "`python analyze.py condition one.pkl two.pkl --arch ResNet-8 --dataset DIGITS "
    )
    analyze.parse_args(each[-1].strip("`").split()[2:])  # it can be asked for so


def test_eigenvalues_that_do_not_converge_are_reported_and_kept(params, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run_analysis(
            "condition",
            params / "one.pkl",
            *DIGITS,
            "--images",
            "test",
            "--max_products",
            2,
            "--out",
            tmp_path,
        )
    assert exit_info.value.code == 4
    error = capsys.readouterr().err
    assert (
        "not known to the tolerance, of network one.pkl (residuals" in error
        and "raise --max_products" in error
    )
    (row,) = files.read_json(tmp_path / "condition.json")["rows"]
    assert row["products"] == 2 and not row["converged"] and row["residual_smallest"] > 0
    run_analysis("tables", tmp_path, "--out", tmp_path / "docs")
    assert ", not converged |" in (tmp_path / "docs" / "results.md").read_text()


def kernels(model):
    return [variable.numpy() for variable in model.trainable_variables if len(variable.shape) > 1]


def test_a_cut_networks_kernels_are_taken_at_the_norms_of_the_network_it_was_cut_from(
    params, tmp_path, monkeypatch, caplog
):
    supernet, path, measured = make_supernet(params), tmp_path / "cut.pkl", []
    half = supernet.whole().with_widths({group.name: 0.5 for group in supernet.groups})
    utils.save_params(supernet.cut(half), path)

    def note(model, *args, **options):
        measured.append((model, model_landscape(model, *args, **options)))
        return measured[-1][1]

    monkeypatch.setattr(conditions, "model_landscape", note)
    argv = ("condition", path, *DIGITS, "--images", "test", "--tolerance", 100)
    (stored,) = run_analysis(*argv, "--out", tmp_path / "stored")
    assert not stored["former_norms"]
    assert "cut.pkl was cut, and its kernels are taken as they are stored" in caplog.text
    caplog.clear()
    (former,) = run_analysis(*argv, "--norms_of", params / "one.pkl", "--out", tmp_path / "former")
    assert former["former_norms"] and not caplog.records
    assert former["loss"] == pytest.approx(stored["loss"], rel=1e-5)
    assert former["largest"] != stored["largest"]
    whole = [np.linalg.norm(kernel) for kernel in kernels(supernet.model)]
    for (model, landscape), is_former in zip(measured, (False, True)):
        sizes = np.cumsum([kernel.size for kernel in kernels(model)])[:-1]
        norms = [np.linalg.norm(part) for part in np.split(landscape.point, sizes)]
        assert (norms == pytest.approx(whole, rel=1e-5)) == is_former
    run_analysis("tables", tmp_path / "stored", tmp_path / "former", "--out", tmp_path / "docs")
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "| kernels, at the norms before the cut |" in page and "| kernels |" in page
    command = next(
        line for line in page.splitlines() if "condition cut.pkl --norms_of PARAMS --arch" in line
    )
    analyze.parse_args(cells(command)[-1].strip("`").split()[2:])
    with pytest.raises(EkgError, match="`norms_of` .*cut.pkl: was cut itself; name the unpruned"):
        run_analysis(*argv, "--norms_of", path, "--out", tmp_path / "wrong")


def test_networks_are_named_by_the_shortest_parts_of_their_paths_that_differ(tmp_path):
    paths = [tmp_path / name for name in ("a/slimmed.pkl", "b/slimmed.pkl", "b/trained.pkl")]
    assert short_names(paths) == ["a/slimmed.pkl", "b/slimmed.pkl", "b/trained.pkl"]
    assert short_names(paths[1:]) == ["slimmed.pkl", "trained.pkl"]
    for path in paths[:2]:
        path.parent.mkdir()
        path.touch()
    (tmp_path / "mine.pkl").symlink_to(paths[0])
    assert short_names([tmp_path / "mine.pkl", paths[1]]) == [
        "mine.pkl",
        "slimmed.pkl",
    ]  # a link goes by its own name
    with pytest.raises(EkgError, match="slimmed.pkl: is given twice"):
        short_names([tmp_path / "mine.pkl", paths[0]])
    with pytest.raises(EkgError, match="slimmed.pkl: is given twice"):
        short_names([*paths, tmp_path / "a" / ".." / "b" / "slimmed.pkl"])
