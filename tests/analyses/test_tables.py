import dataclasses
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from analyses import drawings, pictures, published, repetitions, tables
from analyses.records import Record, collect
from ekg.errors import EkgError
from ekg.io import files
from tests.analyses.helpers import cells, make_run, picture_size, run_analysis

PAPER = {
    "arch": "ResNet-56",
    "dataset": "CIFAR10",
    "search_teacher": "ensemble",
    "finetune_teacher": "ensemble",
    "criterion": "ekg",
    "target_rate": 0.45,
}


def test_tables_show_the_published_figures_beside_ours(params, tmp_path):
    folders = [
        make_run(tmp_path / f"run{seed}", params, 0.9 + 0.01 * seed, arch="ResNet-56", seed=seed)
        for seed in range(2)
    ]
    text = run_analysis("tables", *folders, "--out", tmp_path / "out")
    assert cells(text.splitlines()[2]) == [
        "ResNet-56",
        "CIFAR10",
        "ensemble / none",
        "ekg",
        "2",
        "1",
        "95.00",
        "93.84",
        "0.450",
        "0.200",
        "50.00 ± 0.00",
        "90.50 ± 0.71",
        "93.85 at 0.450",
        "100.0",
        "1.00",
        "run0, run1",
    ]
    page = (tmp_path / "out" / "results.md").read_text()
    assert page == f"{tables.BEGIN}\n\n{text}\n\n{tables.END}\n"


def test_runs_of_an_earlier_version_without_a_record_of_test_images_are_repetitions_of_others(
    params, tmp_path
):
    first, second = (
        Record.of_run(make_run(tmp_path / f"run{seed}", params, seed=seed)) for seed in range(2)
    )
    told = dataclasses.replace(second, arguments=second.arguments | {"test_data": {"images": 10}})
    other = dataclasses.replace(first, arguments=first.arguments | {"test_data": {"images": 9}})
    assert len(repetitions.group([first, told])) == 1 and len(repetitions.group([other, told])) == 2


def test_runs_without_tables_are_left_out_with_a_message(params, tmp_path, caplog):
    """`tables runs/*` meets runs that are not finished, and those of `ekg.prune`, whose arguments
    name no parameter file.
    """
    whole, unfinished, own = (
        make_run(tmp_path / name, params) for name in ("whole", "unfinished", "own")
    )
    (unfinished / "summary.json").unlink()
    arguments = files.read_json(own / "arguments.json")
    del arguments["trained_param"]
    files.write_json(own / "arguments.json", arguments)
    assert run_analysis("tables", unfinished, whole, own) == run_analysis("tables", whole)
    assert [message.split(": ")[1:3] for message in caplog.messages if "left out" in message] == [
        [str(unfinished), "the run is not finished; start it again with the same command."],
        [
            str(own),
            "is a run of `ekg.prune`, and the tables are of the training scripts; its report is "
            "drawn by",
        ],
    ]
    with pytest.raises(EkgError, match="own: is a run of `ekg.prune`"):
        collect([own, unfinished])


def test_a_page_is_rebuilt_from_records_alone_and_keeps_the_text_around_its_tables(
    params, tmp_path
):
    out = tmp_path / "docs"
    folder = make_run(
        tmp_path / "run1",
        params,
        arch="ResNet-56",
        finetune_teacher="ensemble",
        seed=4,
        versions={"keras": "3.15.1"},
        num_teacher=3,
        decay_points=[0.5, 0.7],
        trained_param="hash",
    )
    summary = files.read_json(folder / "summary.json")
    origin = {
        "revision": "abcdef0123",
        "machine": {"processor": "Some CPU", "gpus": []},
        "cores": 2,
    }
    files.write_json(folder / "summary.json", summary | {"origin": origin})
    (tmp_path / "README.md").write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nbehind\n")
    run_analysis("tables", folder, "--out", out, "--readme", tmp_path / "README.md")
    shutil.rmtree(folder)
    first = (out / "results.md").read_text()
    assert all(
        f"(results/{name})" in first and picture_size(out / "results" / name)[0] > 400
        for name in ("methods.png", "curves.png")
    )
    assert (
        "rates.png" not in first and not (out / "results" / "rates.png").exists()
    )  # one rate makes no line
    run_analysis("tables", "--out", out)
    assert (out / "results.md").read_text() == first
    each = cells(first.splitlines()[-3])
    assert each == [
        "run1",
        "4",
        "90.00",
        "search 30.0, fine-tune 30.0",
        "2 cores, Some CPU",
        "keras 3.15.1",
        "abcdef0",
        "`python train_cifar.py --arch ResNet-56 --dataset CIFAR10 --trained_param PARAMS "
        "--num_teacher 3 --decay_points 0.5 0.7 --train_epoch 1 --seed 4`",
    ]
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith(f"before\n{tables.BEGIN}\n") and readme.endswith(
        f"{tables.END}\nbehind\n"
    )
    row = cells(next(line for line in readme.splitlines() if "ResNet-56, CIFAR10 " in line))
    assert row[:1] + row[3:] == ["ResNet-56, CIFAR10", "45.0 %", "90.00, 1 seed, 1 epoch"]
    sentence = next(line for line in readme.splitlines() if line.startswith("Not run yet"))
    assert "ResNet-50, ILSVRC2012 at 55.0 %" in sentence and "old" not in readme
    assert "ResNet-56, CIFAR10 at" not in sentence


def test_latency_and_file_sizes_are_shown_before_and_after(params, tmp_path):
    record = Record.of_run(make_run(tmp_path / "run", params))
    assert tables.format_costs([record]).count("\n") == 1
    table = [dict(row) for row in record.table]
    for row, milliseconds, size in zip(table, (4.0, 3.9, 3.0), (2000, 1500, 1000)):
        row["latencies"] = {"litert, batch 1": {"milliseconds": milliseconds, "ratio": 0.7}}
        row["exports"] = {"litert": size}
    measured = dataclasses.replace(record, table=table)
    rows = [cells(line) for line in tables.format_costs([record, measured]).splitlines()[2:]]
    assert rows == [
        ["run", "litert, batch 1", "4", "3", "0.70", "", ""],
        ["run", "file, litert", "", "", "0.50", "2,000", "1,000"],
    ]


def test_methods_of_several_rates_are_drawn_as_lines(params, tmp_path, monkeypatch):
    drawn = {}
    for name in ("draw_methods", "draw_rates"):
        function = getattr(pictures, name)
        monkeypatch.setattr(
            pictures,
            name,
            lambda path, networks, function=function: (
                drawn.update({path.name: networks}) or function(path, networks)
            ),
        )
    record = Record.of_run(make_run(tmp_path / "run", params))

    def at(rate, top1, **changes):
        table = [dict(row) for row in record.table]
        table[-1] |= {"flops": round(1000 * rate), "metrics": {"top1": top1}}
        return dataclasses.replace(
            record, table=table, arguments=record.arguments | {"target_rate": rate} | changes
        )

    records = [
        at(0.6, 0.92),
        at(0.3, 0.8),
        at(0.45, 0.9, seed=1),
        at(0.45, 0.91, seed=2),
        at(0.45, 0.5, criterion="l1"),
    ]
    drawings.draw(records, tmp_path)
    network = "ResNet-8, CIFAR10, 1 epoch"
    assert drawn == {
        "methods.png": {
            network: (
                [95.0] * 5,
                [
                    ("ekg, search with ensemble, then labels alone, 60 %", [92.0]),
                    ("ekg, search with ensemble, then labels alone, 45 %", [90.0, 91.0]),
                    ("l1, search with ensemble, then labels alone, 45 %", [50.0]),
                    ("ekg, search with ensemble, then labels alone, 30 %", [80.0]),
                ],
            )
        },
        "rates.png": {
            network: (
                [95.0] * 5,
                {
                    "ekg, search with ensemble, then labels alone": [
                        (0.3, [80.0]),
                        (0.45, [90.0, 91.0]),
                        (0.6, [92.0]),
                    ]
                },
            )
        },
    }
    assert all(picture_size(tmp_path / name)[0] > 400 for name in drawn)
    assert "(results/rates.png)" in tables.format_page(records)
    without = [
        dataclasses.replace(record, curve=[]) for record in records[2:]
    ]  # one rate, and no curves
    drawings.draw(without, tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"methods.png"}
    assert all(
        f"(results/{name})" not in tables.format_page(without)
        for name in ("rates.png", "curves.png")
    )


def test_an_outlier_is_written_at_the_edge_so_that_the_others_stay_distinguishable():
    assert pictures._lowest_shown([84.6, 83.4, 82.1, 79.3, 43.4]) == 79.3
    assert (
        pictures._lowest_shown([84.6, 83.4, 82.1, 79.3, 70.0])
        == pictures._lowest_shown([84.6, 40.0])
        == -np.inf
    )
    assert pictures._lowest_shown([90.1, 90.0]) == pictures._lowest_shown([90.0]) == -np.inf


def test_altered_images_are_distinguished_from_the_published_ones(params, tmp_path, monkeypatch):
    monkeypatch.setattr("analyses.records.ALTERED", {"f" * 16: "CIFAR10 in grey"})
    folders = [
        make_run(
            tmp_path / str(i),
            params,
            arch="ResNet-56",
            finetune_teacher="ensemble",
            data={"sample": mark * 64},
        )
        for i, mark in enumerate("af")
    ]
    text = run_analysis("tables", *folders)
    assert [cells(line)[1] for line in text.splitlines()[2:4]] == ["CIFAR10", "CIFAR10 in grey"]
    grey = cells(tables.format_readme(collect(folders)).splitlines()[2])
    assert grey == [
        "ResNet-56",
        "CIFAR10 in grey",
        "ekg, ensemble",
        "1",
        "1",
        "45.0 %",
        "95.00",
        "90.00",
    ]
    headlines = tables.format_headlines(collect(folders))
    assert "90.00, 1 seed, 1 epoch" in headlines and "90.00" not in tables.format_headlines(
        collect(folders[1:])
    )


def test_runs_that_differ_in_more_than_their_seed_are_no_repetitions_and_the_difference_is_reported(
    params, tmp_path
):
    changes = (
        {"versions": {"keras": "3.15.1"}},
        {"versions": {"keras": "3.15.1"}},
        {"search_step": 0.4, "trained_param": "0123456789", "versions": {"keras": "3.16.0"}},
        {"arch": "ResNet-20", "search_step": 0.3},
    )
    records = collect(
        [
            make_run(
                tmp_path / str(i),
                params,
                0.9 - 0.1 * (i > 1),
                **{"seed": i, "search_step": 0.2} | change,
            )
            for i, change in enumerate(changes)
        ]
    )
    groups = [
        (group.arguments["arch"], len(group.records), group.special)
        for group in repetitions.group(records)
    ]
    assert groups == [
        ("ResNet-20", 1, ""),
        ("ResNet-8", 2, "trained_param x, search_step 0.2, keras 3.15.1"),
        ("ResNet-8", 1, "trained_param 01234567, search_step 0.4, keras 3.16.0"),
    ]
    criteria = [cells(line)[3] for line in tables.format_runs(records).splitlines()[2:]]
    assert criteria == ["ekg", *(f"ekg, {special}" for *_, special in groups[1:])]
    again = dataclasses.replace(records[0], name="again")
    with pytest.raises(
        EkgError, match="0 and again: differ in nothing, not even in their seed; name one of them"
    ):
        tables.format_runs([*records, again])


def test_runs_older_than_the_choice_of_groups_count_as_the_intended_one(params, tmp_path):
    changes = ({}, {"group_choice": "intended"}, {"group_choice": "published"})
    records = collect(
        [
            make_run(tmp_path / str(i), params, 0.9, seed=i, **change)
            for i, change in enumerate(changes)
        ]
    )
    groups = {
        group.special: [record.name for record in group.records]
        for group in repetitions.group(records)
    }
    assert groups == {"group_choice intended": ["0", "1"], "group_choice published": ["2"]}


def test_records_in_files_and_folders_are_kept_and_another_run_of_a_name_is_refused(
    params, tmp_path
):
    out, record = tmp_path / "docs", Record.of_run(make_run(tmp_path / "one", params))
    for name in ("peer", "other"):
        (tmp_path / name).mkdir()
        dataclasses.replace(
            record, name=name, arguments=record.arguments | {"criterion": name}
        ).write(tmp_path / name / "record.json")
    run_analysis(
        "tables",
        tmp_path / "one",
        tmp_path / "peer",
        tmp_path / "other" / "record.json",
        "--out",
        out,
    )
    assert [kept.name for kept in tables.kept(out)[0]] == ["one", "other", "peer"]
    run_analysis("tables", tmp_path / "one", "--out", out)  # the same again
    another = make_run(tmp_path / "elsewhere" / "one", params, seed=7)
    with pytest.raises(
        EkgError,
        match="one.json: another one is kept there, with other seed; rename a folder, or remove",
    ):
        run_analysis("tables", another, "--out", out)


def test_a_run_that_holds_a_condition_number_is_a_run(params, tmp_path):
    folder = make_run(tmp_path / "run", params)
    files.write_json(folder / "condition.json", {"condition": 0.5, "options": {}})
    assert "| run |" in run_analysis("tables", folder)


def test_a_page_without_a_place_and_files_that_are_no_records_are_named(params, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text")
    with pytest.raises(EkgError, match="page.md: must hold the lines"):
        tables.replace_part(page, "table")
    files.write_json(tmp_path / "other.json", {"a": 1})
    with pytest.raises(EkgError, match="other.json: is no record of a run"):
        run_analysis("tables", tmp_path / "other.json")


def test_every_run_is_listed_with_its_counterpart_in_the_paper_or_without_one(params, tmp_path):
    folders = [
        make_run(
            tmp_path / f"{teacher}{arch}",
            params,
            arch=arch,
            search_teacher=teacher,
            finetune_teacher=teacher,
        )
        for arch, teacher in (("ResNet-56", "none"), ("ResNet-56", "single"), ("ResNet-8", "none"))
    ]
    rows = [cells(line) for line in run_analysis("tables", *folders).splitlines()[2:5]]
    assert [(row[0], row[2], row[7], row[12]) for row in rows] == [
        ("ResNet-56", "none / none", "93.84", "93.78 at 0.450"),
        ("ResNet-56", "single / single", "", ""),
        ("ResNet-8", "none / none", "", ""),
    ]


def test_rows_are_grouped_by_network_best_first_and_only_searched_ones_have_a_loss(
    params, tmp_path
):
    runs = [
        make_run(tmp_path / f"{arch}{teacher}", params, top1, arch=arch, finetune_teacher=teacher)
        for arch, teacher, top1 in (
            ("ResNet-8", "none", 0.7),
            ("ResNet-56", "none", 0.8),
            ("ResNet-8", "ensemble", 0.9),
        )
    ]
    records = collect(runs)
    peer = dataclasses.replace(
        records[0],
        val_loss=None,
        arguments=records[0].arguments | {"search_teacher": "", "criterion": "equal widths"},
        table=records[1].table,
    )
    rows = [cells(line) for line in tables.format_runs([*records, peer]).splitlines()[2:]]
    assert [(row[0], row[2], row[9], row[11]) for row in rows] == [
        ("ResNet-56", "ensemble / none", "0.200", "80.00"),
        ("ResNet-8", "ensemble / ensemble", "0.200", "90.00"),
        ("ResNet-8", "none", "", "80.00"),
        ("ResNet-8", "ensemble / none", "0.200", "70.00"),
    ]
    in_readme = [
        cells(line)[2]
        for line in tables.format_readme([*records, peer]).splitlines()
        if "| ResNet-8 |" in line
    ]
    assert in_readme == [
        "ekg, ensemble",
        "equal widths, labels alone",
    ]  # other teachers are in the page alone


def test_the_readme_shows_the_runs_of_the_largest_network_that_was_run(params, tmp_path):
    small, large = collect(
        [
            make_run(tmp_path / arch, params, 0.8, arch=arch, finetune_teacher="ensemble")
            for arch in ("ResNet-8", "ResNet-20")
        ]
    )
    larger = [row | {"flops": 10 * row["flops"]} for row in large.table]
    text = tables.format_readme([small, dataclasses.replace(large, table=larger)])
    assert "| ResNet-20 |" in text and "| ResNet-8 |" not in text


@pytest.mark.parametrize(
    ("change", "top1"),
    [
        ({}, 94.09),
        ({"dataset": "CIFAR100"}, 72.93),
        ({"finetune_teacher": "none", "criterion": "gbn"}, 93.70),
        ({"arch": "ResNet-18", "dataset": "ILSVRC2012", "target_rate": 0.5}, 69.39),
        ({"arch": "ResNet-50", "dataset": "ILSVRC2012"}, 75.93),
        ({"arch": "ResNet-50", "dataset": "ILSVRC2012", "target_rate": 0.55}, 76.43),
        ({"criterion": "gbn"}, None),
        ({"target_rate": 0.3}, None),
        ({"dataset": "DIGITS"}, None),
        ({"search_teacher": "single", "finetune_teacher": "single"}, None),
    ],
)
def test_published_figures_are_found_by_their_whole_key(change, top1):
    figures = published.find(PAPER | change)
    assert (figures and figures.top1) == top1


def test_no_figure_hides_another_and_every_row_of_the_ablation_has_one():
    assert len(published.BY_KEY) == len(published.FIGURES)
    for (arch, dataset), (search, tune) in itertools.product(
        published.BASELINES, published.TEACHERS
    ):
        assert published.find(
            PAPER
            | {"arch": arch, "dataset": dataset, "search_teacher": search, "finetune_teacher": tune}
        )


def test_a_folder_without_a_finished_run_is_named(params, tmp_path):
    with pytest.raises(EkgError, match="is no run folder: there is no arguments.json"):
        run_analysis("run", tmp_path)
    folder = make_run(tmp_path / "run", params)
    (folder / "summary.json").unlink()
    with pytest.raises(EkgError, match="the run is not finished"):
        run_analysis("tables", folder)


def test_the_tables_of_the_pages_match_the_records_beside_them():
    root = Path(tables.__file__).parents[1]
    records, studies = tables.kept(root / "docs")
    assert (
        f"{tables.BEGIN}\n\n{tables.format_readme(records)}\n\n{tables.END}"
        in (root / "README.md").read_text()
    )
    page = f"{tables.BEGIN}\n\n{tables.format_page(records, studies)}\n\n{tables.END}"
    assert not records or page in (root / "docs" / tables.PAGE).read_text()
