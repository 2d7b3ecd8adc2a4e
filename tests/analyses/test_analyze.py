"""The analyses on handwritten digits; runs that train_cifar.py would make are stood in for by folders of their form."""

import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from ekg.greedy_search import HistoryEntry
from ekg.run_folder import RunFolder
from PIL import Image

import analyze
import ekg
import nets
import utils
from ekg import analysis, figures, studies

DIGITS = ["--arch", "ResNet-20", "--dataset", "DIGITS"]


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    """Parameter files of two networks of ten classes and one of a hundred."""
    folder = tmp_path_factory.mktemp("params")
    for seed, (name, classes) in enumerate((("one", 10), ("two", 10), ("hundred", 100))):
        keras.utils.set_random_seed(seed)
        model = nets.build("ResNet-20", classes)
        for weight in model.weights:
            if weight.name == "gamma":
                weight.assign(np.random.default_rng(seed).uniform(0.3, 0.8, weight.shape))
        utils.save_params(model, folder / f"{name}.pkl")
    return folder


def run_analysis(*argv):
    return analyze.main(analyze.parse_args([str(value) for value in argv]))


def make_run(folder, params, top1=0.9, **arguments):
    """Writes a finished run folder."""
    folder = RunFolder(folder, {"arch": "ResNet-20", "dataset": "CIFAR10", "search_teacher": "ensemble",
                                "finetune_teacher": "none", "criterion": "ekg", "target_rate": 0.45, "train_epoch": 1,
                                "trained_param": "x"} | arguments)
    supernet = ekg.Supernet(nets.from_params("ResNet-20", utils.load_params(params / "one.pkl"), 10))
    whole = supernet.whole()
    last = whole.with_widths({group.name: 0.5 for group in supernet.groups})
    for step, (subnetwork, loss) in enumerate(((whole, 0.1), (last, 0.2))):
        entry = HistoryEntry(step, None if step == 0 else "conv", subnetwork, supernet.rate(subnetwork), loss, 0.9, -loss, 3,
                             1.5)
        utils.append_json_line(folder / "history.jsonl", entry.to_json())
    for phase in ("baseline", "fine-tune"):
        utils.append_json_line(folder / "curves.jsonl", {"phase": phase, "step": 1, "loss": 0.5, "top1": 0.8})
    utils.save_params(supernet.cut(last), folder / "slimmed_param.pkl")
    rows = [{"name": name, "loss": 0.3, "top1": value, "top5": 1.0, "params": 1000, "flops": flops, "file_size": 10,
             "latency_1": 1.0, "latency_256": 2.0} for name, value, flops in
            (("baseline", 0.95, 1000), ("slimmed", 0.5, 450), ("fine-tuned", top1, 450))]
    utils.write_json(folder / "summary.json", {"table": rows, "phases": {
        name: {"seconds": 1800.0, "peak_memory_mib": 1} for name in ("search", "fine-tune")}})
    return folder.path


def size_of(picture):
    return Image.open(picture).size


def test_condition_numbers_are_kept_and_drawn(params, tmp_path, capsys):
    argv = ("condition", params / "one.pkl", params / "two.pkl", *DIGITS, "--images", "test", "--tolerance", 0.6, "--out",
            tmp_path)
    rows = run_analysis(*argv)
    assert [row["network"] for row in rows] == ["one", "two"] and all(row["converged"] for row in rows)
    for row in rows:
        assert row["condition"] == abs(row["smallest"] / row["largest"]) and row["num_images"] == 359
    stored = utils.read_json(tmp_path / "condition.json")
    assert stored["rows"] == rows and min(size_of(tmp_path / "condition.png")) > 100
    assert (tmp_path / "condition.csv").read_text().startswith("network,condition,loss")
    assert f"{rows[0]['condition']:.4f}" in capsys.readouterr().out
    before = (tmp_path / "conditions.jsonl").read_bytes()
    assert run_analysis(*argv) == rows
    assert (tmp_path / "conditions.jsonl").read_bytes() == before  # nothing was computed again


def test_eigenvalues_that_do_not_converge_are_said_and_kept(params, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run_analysis("condition", params / "one.pkl", *DIGITS, "--images", "test", "--max_products", 2, "--out", tmp_path)
    assert exit_info.value.code == 4
    assert "not known to the tolerance: those of network one (residuals" in capsys.readouterr().err
    row, = utils.read_json(tmp_path / "condition.json")["rows"]
    assert row["products"] == 2 and not row["converged"] and row["residual_smallest"] > 0


def test_surfaces_share_one_scale(params, tmp_path):
    rows = run_analysis("landscape", params / "one.pkl", params / "two.pkl", *DIGITS, "--images", "test", "--grid", 3,
                        "--span", 0.3, "--out", tmp_path)
    for row in rows:
        surface = np.array(row["surface"])
        assert surface.shape == (3, 3) and row["loss"] == surface[1, 1] and row["lowest"] == surface.min()
    assert min(size_of(tmp_path / "landscape.png")) > 300


def test_many_surfaces_stand_in_rows(tmp_path):
    sizes = {}
    for count in (5, 7):
        figures.draw_surfaces(tmp_path / "s.png", [f"network {i}" for i in range(count)], np.linspace(-1, 1, 3),
                              [np.eye(3) + i for i in range(count)])
        sizes[count] = size_of(tmp_path / "s.png")
    assert abs(sizes[7][0] - sizes[5][0]) < 100 and sizes[7][1] > 1.7 * sizes[5][1]


def test_correlation_keeps_every_subnetwork(params, tmp_path, monkeypatch):
    argv = ("correlation", "--trained_param", params / "one.pkl", *DIGITS, "--subnetworks", 2, "--target_rate", 0.5,
            "--tolerance", 100, "--out", tmp_path)
    rows = run_analysis(*argv)
    assert [row["number"] for row in rows] == [0, 1] and len({row["val_loss"] for row in rows}) == 2
    assert all(0.4 < row["rate"] <= 0.5 and row["condition"] > 0 for row in rows)
    assert run_analysis(*argv) == rows and min(size_of(tmp_path / "correlation.png")) > 300
    with pytest.raises(utils.UserError, match="target_rate: 0.5 there, 0.6 here"):
        run_analysis(*argv, "--target_rate", 0.6)
    monkeypatch.setattr(studies, "measure_subnetworks", lambda *_, **__: [rows[0] | {"converged": False}])
    with pytest.raises(SystemExit) as exit_info:
        run_analysis(*argv[:-1], tmp_path / "one")
    assert exit_info.value.code == 4 and len(utils.read_json(tmp_path / "one" / "correlation.json")["rows"]) == 1


def test_coefficients_equal_scipys_and_intervals_hold_them():
    from scipy import stats
    rng = np.random.default_rng(0)
    first = rng.normal(size=40)
    second = np.exp(first) + 0.3 * rng.normal(size=40)
    found = analysis.correlate(first, second)
    assert found["pearson"] == pytest.approx(stats.pearsonr(first, second).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(first, second).statistic)
    for name in ("pearson", "spearman"):
        low, high = found[f"{name}_interval"]
        assert low < found[name] < high <= 1 and high - low < 0.5
    expected = stats.bootstrap((first, second), lambda x, y: stats.pearsonr(x, y).statistic, paired=True, vectorized=False,
                               n_resamples=2000, method="percentile", rng=1).confidence_interval
    assert found["pearson_interval"] == pytest.approx([expected.low, expected.high], abs=0.05)


def test_random_subnetworks_keep_the_rate(params):
    supernet = ekg.Supernet(nets.from_params("ResNet-20", utils.load_params(params / "one.pkl"), 10))
    scores, found = np.arange(supernet.layout.num_channels, dtype=float), []
    for seed in range(5):
        found.append(analysis.random_subnetwork(supernet, scores, 0.45, np.random.default_rng(seed)))
        assert 0.40 < supernet.rate(found[-1]) <= 0.45
        assert found[-1].kept(0).max() == 15  # the most important channel stays
    assert len({subnetwork.width for subnetwork in found}) == 5


@pytest.fixture
def runs(params, monkeypatch):
    """Lets runs be made at once; what their commands were is kept."""
    commands = []

    def run(command):
        commands.append(command)
        flags = dict(zip(command[2::2], command[3::2]))
        names = {"--search_teacher": "search_teacher", "--finetune_teacher": "finetune_teacher", "--criterion": "criterion"}
        folder = Path(flags["--train_path"])
        if not folder.exists():
            make_run(folder, params, 0.9 + 0.01 * int(flags.get("--seed", 0)),
                     **{own: flags[flag] for flag, own in names.items() if flag in flags})
        return 0
    monkeypatch.setattr(studies, "run_process", run)
    return commands


def test_criteria_are_compared(params, tmp_path, runs):
    rows = run_analysis("criteria", "--trained_param", params / "one.pkl", *DIGITS, "--criteria", "l1", "ekg",
                        "--tolerance", 100, "--out", tmp_path, "--", "--train_epoch", "1")
    assert [row["criterion"] for row in rows] == ["l1", "ekg"] and rows[0]["val_loss"] == 0.2 and rows[0]["condition"] > 0
    with pytest.raises(SystemExit) as exit_info:
        run_analysis("criteria", "--trained_param", params / "one.pkl", *DIGITS, "--criteria", "l1", "--max_products", 2,
                     "--out", tmp_path)
    assert exit_info.value.code == 4
    assert len(runs) == 3 and runs[0][-2:] == ["--train_epoch", "1"] and runs[0][1].endswith("train_cifar.py")
    assert min(size_of(tmp_path / "criteria.png")) > 100


def test_the_ablation_has_five_rows_and_several_seeds(params, tmp_path, runs):
    rows = run_analysis("ablation", "--trained_param", params / "one.pkl", *DIGITS, "--seeds", 0, 1, 2, "--out", tmp_path)
    assert [(row["search"], row["fine_tuning"]) for row in rows] == list(analysis.PUBLISHED_ABLATION)
    assert len(runs) == 15 and rows[0]["top1"] == pytest.approx(91.0) and rows[0]["deviation"] == pytest.approx(1.0)
    shared = {command[command.index("--train_path") + 1]: command[command.index("--search_from") + 1]
              for command in runs if "--search_from" in command}
    assert shared == {str(tmp_path / "runs" / f"ensemble-{tune}-{seed}"): str(tmp_path / "runs" / f"ensemble-none-{seed}")
                      for tune in ("single", "ensemble") for seed in range(3)}
    assert min(size_of(tmp_path / "ablation.png")) > 100
    assert "single / none 91.00 ± 1.00 %" in (tmp_path / "ablation.txt").read_text()


def test_a_run_that_fails_ends_the_analysis_with_its_exit_code(params, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "run_process", lambda _: 2)
    with pytest.raises(SystemExit) as exit_info:
        run_analysis("criteria", "--trained_param", params / "one.pkl", *DIGITS, "--out", tmp_path)
    assert exit_info.value.code == 2


def test_a_run_becomes_a_page(params, tmp_path, capsys):
    folder = make_run(tmp_path / "run", params)
    run_analysis("run", folder)
    page = (folder / "report.html").read_text()
    assert "ResNet-20 on CIFAR10, 45.0% of the FLOPs" in page and not re.search(r"(src|href)='(?!data:)", page)
    assert "<td>fine-tuned</td><td>0.3000</td><td>90.00</td>" in page and min(size_of(folder / "report.png")) > 500
    assert "top-1 95.00 % before and 90.00 % after" in capsys.readouterr().out


def test_tables_stand_next_to_the_published_figures(params, tmp_path):
    folders = [make_run(tmp_path / f"run{seed}", params, 0.9 + 0.01 * seed, arch="ResNet-56", seed=seed)
               for seed in range(2)]
    text = run_analysis("tables", *folders, "--out", tmp_path / "out")
    row = [cell.strip() for cell in text.splitlines()[2].strip("|").split("|")]
    assert row == ["ResNet-56", "CIFAR10", "ensemble / none", "ekg", "2", "1", "95.00", "93.84", "0.450", "90.50 ± 0.71",
                   "94.09 at 0.450", "1.00"]
    assert (tmp_path / "out" / "tables.md").read_text() == text + "\n"


def test_what_is_no_finished_run_is_named(params, tmp_path):
    with pytest.raises(utils.UserError, match="is no run folder: there is no arguments.json"):
        run_analysis("run", tmp_path)
    folder = make_run(tmp_path / "run", params)
    (folder / "summary.json").unlink()
    with pytest.raises(utils.UserError, match="the run is not finished"):
        run_analysis("tables", folder)


def test_networks_of_other_classes_are_named(params):
    with pytest.raises(utils.UserError, match="hundred.pkl: a network of 100 classes, and DIGITS has 10"):
        run_analysis("condition", params / "one.pkl", params / "hundred.pkl", *DIGITS)


@pytest.mark.parametrize(("argv", "message"), [
    (["smoothness"], "invalid choice"), (["landscape", "p.pkl", "--grid", "4"], "grid must be odd"),
    (["criteria", "--trained_param", "p", "--criteria", "l2"], "invalid choice"),
    (["run", "x", "--", "--seed", "1"], "starts no"),
    (["correlation", "--trained_param", "p", "--subnetworks", "0"], "subnetworks must be at least 1")])
def test_wrong_arguments_are_refused(capsys, argv, message):
    with pytest.raises(SystemExit) as exit_info:
        analyze.parse_args(argv)
    assert exit_info.value.code == 2 and message in capsys.readouterr().err


def test_published_figures_are_whole():
    assert json.dumps(list(analysis.PUBLISHED_CRITERIA)) == '["l1", "fpgm", "gbn", "ekg"]'
    assert analysis.PUBLISHED_ABLATION["ensemble", "ensemble"] == (94.09, 72.93)
