import itertools

import pytest

from analyses import published
from ekg.errors import EkgError
from tests.analyses.helpers import make_run, run_analysis

PAPER = {"arch": "ResNet-56", "dataset": "CIFAR10", "search_teacher": "ensemble", "finetune_teacher": "ensemble",
         "criterion": "ekg", "target_rate": 0.45}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_stand_next_to_the_published_figures(params, tmp_path):
    folders = [make_run(tmp_path / f"run{seed}", params, 0.9 + 0.01 * seed, arch="ResNet-56", seed=seed)
               for seed in range(2)]
    text = run_analysis("tables", *folders, "--out", tmp_path / "out")
    assert cells(text.splitlines()[2]) == ["ResNet-56", "CIFAR10", "ensemble / none", "ekg", "2", "1", "95.00", "93.84",
                                           "0.450", "90.50 ± 0.71", "93.85 at 0.450", "1.00"]
    assert (tmp_path / "out" / "tables.md").read_text() == text + "\n"


def test_every_run_stands_next_to_its_like_in_the_paper_or_to_nothing(params, tmp_path):
    folders = [make_run(tmp_path / f"{teacher}{arch}", params, arch=arch, search_teacher=teacher, finetune_teacher=teacher)
               for arch, teacher in (("ResNet-56", "none"), ("ResNet-56", "single"), ("ResNet-8", "none"))]
    rows = [cells(line) for line in run_analysis("tables", *folders).splitlines()[2:]]
    assert [(row[2], row[7], row[10]) for row in rows] == [
        ("none / none", "93.84", "93.78 at 0.450"), ("single / single", "", ""), ("none / none", "", "")]


@pytest.mark.parametrize(("change", "top1"), [
    ({}, 94.09), ({"dataset": "CIFAR100"}, 72.93), ({"finetune_teacher": "none", "criterion": "gbn"}, 93.70),
    ({"arch": "ResNet-18", "dataset": "ILSVRC2012", "target_rate": 0.5}, 69.39),
    ({"arch": "ResNet-50", "dataset": "ILSVRC2012"}, 75.93),
    ({"arch": "ResNet-50", "dataset": "ILSVRC2012", "target_rate": 0.55}, 76.43),
    ({"criterion": "gbn"}, None), ({"target_rate": 0.3}, None), ({"dataset": "DIGITS"}, None),
    ({"search_teacher": "single", "finetune_teacher": "single"}, None)])
def test_published_figures_are_found_by_all_of_their_key(change, top1):
    figures = published.find(PAPER | change)
    assert (figures and figures.top1) == top1


def test_no_figure_hides_another_and_every_row_of_the_ablation_has_one():
    assert len(published.BY_KEY) == len(published.FIGURES)
    for (arch, dataset), (search, tune) in itertools.product(published.BASELINES, published.TEACHERS):
        assert published.find(PAPER | {"arch": arch, "dataset": dataset, "search_teacher": search, "finetune_teacher": tune})


def test_what_is_no_finished_run_is_named(params, tmp_path):
    with pytest.raises(EkgError, match="is no run folder: there is no arguments.json"):
        run_analysis("run", tmp_path)
    folder = make_run(tmp_path / "run", params)
    (folder / "summary.json").unlink()
    with pytest.raises(EkgError, match="the run is not finished"):
        run_analysis("tables", folder)
