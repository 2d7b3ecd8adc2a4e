import math

import numpy as np
import pytest
from scipy import stats

import dataloader
import ekg
from analyses import correlation, pictures, studies
from analyses.correlation import correlate
from analyses.search_ends import num_best, search_end
from analyses.subject import Subject
from analyses.widths import random_subnetwork
from ekg import phases
from ekg.data.dataset import Batches
from ekg.devices.compute import Compute
from ekg.distil.settings import FineTuneSettings
from ekg.errors import EkgError
from ekg.io import files
from ekg.searching.objective import Objective
from ekg.train.step import StepOptions
from tests.analyses.helpers import (
    DIGITS,
    SPECTRUM,
    cells,
    make_supernet,
    picture_size,
    run_analysis,
)


def check_page(folder, out, count="2"):
    """Checks that a study stands in a page with its coefficients and its command, and that what is
    kept makes the page.
    """
    run_analysis("tables", folder, "--out", out)
    page, studied = (out / "results.md").read_text(), files.read_json(folder / "correlation.json")
    own = [line for line in page.splitlines() if line.startswith(f"| {folder.name} ")]
    *rows, each = map(cells, own)
    assert len(rows[0]) == len(studies.CORRELATIONS) and len(each) == len(studies.EACH)
    assert len(rows) == len(studies.PREDICTORS) == len(studied["statistics"])
    for row, (name, text) in zip(rows, studies.PREDICTORS.items()):
        assert row[7].startswith(f"{studied['statistics'][name]['pearson']:.2f} (")
        assert (row[3], row[6]) == (f"{count}, ends of searches", text)
    # the paper holds nothing fixed
    assert [bool(row[-1]) for row in rows] == [True, True, False, False]
    assert each[-1] == (
        "`python analyze.py correlation --trained_param PARAMS --subnetworks 2 --target_rate 0.8 "
        "--arch ResNet-8 --dataset DIGITS --choices 3 --train_epoch 1 --precision bfloat16 "
        "--batch_size 256 --tolerance 100.0 --max_products 100`"
    )
    assert picture_size(out / "results" / "studies" / f"{folder.name}.png")[0] > 300
    run_analysis("tables", "--out", out)
    assert (out / "results.md").read_text() == page


def test_correlation_keeps_every_subnetwork(params, tmp_path, monkeypatch):
    argv = (
        "correlation",
        "--trained_param",
        params / "one.pkl",
        *DIGITS,
        "--subnetworks",
        2,
        "--target_rate",
        0.8,
        "--choices",
        3,
        "--tolerance",
        100,
        "--precision",
        "bfloat16",
        "--out",
        tmp_path / "correlation",
    )
    make_trainer, formats = phases.Trainer, []
    monkeypatch.setattr(
        phases,
        "Trainer",
        lambda *args, **options: (
            formats.append(options["options"].dtype) or make_trainer(*args, **options)
        ),
    )
    rows = run_analysis(*argv)
    assert formats == ["bfloat16"] * 2
    assert [row["number"] for row in rows] == [0, 1] and len({row["val_loss"] for row in rows}) == 2
    assert all(0.7 < row["rate"] <= 0.8 and row["condition"] > 0 for row in rows)
    assert [row["num_best"] for row in rows] == [1, 2]
    names = SPECTRUM | {
        "number",
        "num_best",
        "rate",
        "val_loss",
        "condition",
        "tuned_loss",
        "tuned_top1",
        "origin",
        "versions",
    }
    assert all(set(row) == names for row in rows)
    assert all(row["former_norms"] and row["batch_statistics"] for row in rows)
    assert (
        run_analysis(*argv) == rows
        and min(picture_size(tmp_path / "correlation" / "correlation.png")) > 300
    )
    check_page(tmp_path / "correlation", tmp_path / "docs")
    with pytest.raises(EkgError, match="target_rate: 0.8 there, 0.6 here"):
        run_analysis(*argv, "--target_rate", 0.6)
    arguments = files.read_json(tmp_path / "correlation" / "arguments.json")
    files.write_json(tmp_path / "correlation" / "arguments.json", arguments | {"format": 2})
    with pytest.raises(EkgError, match="name a new `out`:\n  format: 2 there, 6 here"):
        run_analysis(*argv)
    monkeypatch.setattr(
        correlation, "measure_subnetworks", lambda *_: [rows[0] | {"converged": False}, rows[1]]
    )
    with pytest.raises(SystemExit) as exit_info:
        run_analysis(*argv[:-1], tmp_path / "one")
    assert (
        exit_info.value.code == 4
        and len(files.read_json(tmp_path / "one" / "correlation.json")["rows"]) == 2
    )
    check_page(tmp_path / "one", tmp_path / "more", "2, 1 not converged")


def test_fine_tuning_starts_from_the_slimmed_network_with_the_usual_settings(
    params, tmp_path, monkeypatch
):
    calls, supernet = [], make_supernet(params)
    monkeypatch.setattr(phases, "fit", lambda *args, **_: calls.append(args))
    make_trainer, asked = phases.Trainer, []
    monkeypatch.setattr(
        phases,
        "Trainer",
        lambda *args, **options: asked.append(options) or make_trainer(*args, **options),
    )
    half = supernet.whole().with_widths({group.name: 0.5 for group in supernet.groups})
    subject = Subject("ResNet-8", dataloader.load("DIGITS"), None, 256)
    metrics = correlation.fine_tune(
        supernet, half, subject, 3, tmp_path / "tuned", Compute(use_xla=True, dtype="bfloat16")
    )
    ((_, trainer, batches, schedule),) = calls
    name = supernet.groups[0].name
    kernels = [model.get_layer(name).kernel.numpy() for model in (trainer.model, supernet.model)]
    assert kernels[0].shape[-1] == kernels[1].shape[-1] // 2
    assert np.linalg.norm(kernels[0]) == pytest.approx(np.linalg.norm(kernels[1]), rel=1e-5)
    usual = FineTuneSettings()
    assert (
        schedule.learning_rate,
        schedule.decay_points,
        schedule.decay_rate,
        schedule.epochs,
    ) == (usual.learning_rate, usual.decay_points, usual.decay_rate, 3)
    (options,) = asked
    assert options["weight_decay"] == usual.weight_decay
    assert options["options"] == StepOptions(use_xla=True, dtype="bfloat16")
    assert (options["constants"], options["divisor"]) == ((), 1)
    assert batches.batch_size == usual.batch_size
    assert 0 < metrics.loss < 20


def test_random_subnetworks_keep_the_rate(params):
    supernet = make_supernet(params)
    scores, subnetworks = np.arange(supernet.layout.num_channels, dtype=float), []
    for seed in range(5):
        subnetworks.append(random_subnetwork(supernet, scores, 0.45, np.random.default_rng(seed)))
        assert 0.40 < supernet.rate(subnetworks[-1]) <= 0.45
        assert subnetworks[-1].kept(0).max() == 15  # the most important channel stays
    assert len({subnetwork.width for subnetwork in subnetworks}) == 5


def test_the_first_search_takes_the_best_candidates_and_others_choose_among_more():
    assert [num_best(number, 4) for number in range(8)] == [1, 2, 3, 4, 2, 3, 4, 2]
    assert [num_best(number, 2) for number in range(3)] == [1, 2, 2]


def test_a_search_that_takes_the_best_ends_where_the_search_does_and_others_end_elsewhere(
    tiny_resnet, tiny_data
):
    """The same number ends at the same sub-network, whatever the searches before it."""
    supernet = ekg.Supernet(tiny_resnet)
    settings = ekg.SearchSettings(target_rate=0.5, search_step=1.0)
    batches = Batches(tiny_data.last_of_each_class(32, 0), tiny_data.normalise, 256)
    objective = Objective(supernet, batches)
    ends = [
        search_end(objective, supernet, batches, settings, number, 4) for number in (3, 0, 1, 2, 3)
    ]
    expected = ekg.search(supernet, tiny_data, settings).history[-1]
    assert (ends[1].subnetwork, ends[1].step) == (expected.subnetwork, expected.step)
    assert ends[1].loss == pytest.approx(expected.loss, rel=1e-5)
    assert ends[1].reward == pytest.approx(expected.reward, rel=1e-5)
    assert ends[0].subnetwork == ends[4].subnetwork and ends[0].loss == ends[4].loss
    assert len({end.subnetwork for end in ends}) > 2 and all(end.rate <= 0.5 for end in ends)


def residuals(values, given):
    """Returns what a straight line through the given numbers does not explain."""
    line = np.stack([np.ones_like(given), given], axis=1)
    return values - line @ np.linalg.lstsq(line, values, rcond=None)[0]


def test_a_partial_coefficient_is_that_of_the_residuals_of_a_regression():
    rng = np.random.default_rng(3)
    given = rng.normal(size=30)
    first, second = np.exp(given) + rng.normal(size=30), given + 0.5 * rng.normal(size=30)
    coefficients, plain = correlate(first, second, given), correlate(first, second)
    ranks = [stats.rankdata(row) for row in (first, second, given)]
    for kind, rows in (("pearson", (first, second, given)), ("spearman", ranks)):
        expected = np.corrcoef(residuals(rows[0], rows[2]), residuals(rows[1], rows[2]))[0, 1]
        assert coefficients[kind] == pytest.approx(expected, abs=1e-9)
        assert plain[kind] > coefficients[kind] + 0.2  # both go with the third row
        low, high = coefficients[f"{kind}_interval"]
        assert -1 <= low < coefficients[kind] < high <= 1


def test_partial_coefficients_equal_hand_computed_ones():
    # Of (1, 2, 3, 4) and (2, 1, 4, 3): r = 3/5; (1, 2, 2, 1) goes with neither, so it stays.
    assert correlate([1, 2, 3, 4], [2, 1, 4, 3], [1, 2, 2, 1])["pearson"] == pytest.approx(0.6)
    # r12 = 3/5, r13 = 4/5, r23 = 0: (3/5) / √(1 − 16/25) = 1.
    assert correlate([1, 2, 3, 4], [2, 1, 4, 3], [1, 3, 2, 4])["pearson"] == pytest.approx(1)
    # the third row leaves nothing of the first
    assert math.isnan(correlate([1, 2, 4], [3, 1, 2], [2, 4, 8])["pearson"])


def test_coefficients_equal_hand_computed_ones():
    # Deviations (-1, 0, 1) and (-10, -7, 17)/3: 9 / (√2 · √438/3). The order is the same.
    coefficients = correlate([1, 2, 3], [1, 2, 10])
    assert coefficients["pearson"] == pytest.approx(27 / math.sqrt(876)) and coefficients[
        "spearman"
    ] == pytest.approx(1)
    # Equal numbers share a rank: (1.5, 1.5, 3), deviations (-1, -1, 2)/2.
    assert correlate([1, 2, 3], [1, 1, 10])["spearman"] == pytest.approx(1.5 / math.sqrt(3))


def test_intervals_equal_hand_computed_ones():
    # Of 27 draws 6 give 0, 6 give 1, 6 give -1, and the others nothing.
    coefficients = correlate([0, 1, 2], [0, 1, 0])
    assert coefficients["pearson"] == pytest.approx(0) and coefficients[
        "pearson_interval"
    ] == pytest.approx([-1, 1])
    assert correlate([0, 1], [1, 0])["spearman_interval"] == pytest.approx([-1, -1])
    assert math.isnan(correlate([1, 1], [0, 1])["pearson"])


def test_coefficients_equal_scipys_and_lie_in_their_intervals():
    rng = np.random.default_rng(0)
    first = rng.normal(size=40)
    second = np.exp(first) + 0.3 * rng.normal(size=40)
    coefficients = correlate(first, second)
    assert coefficients["pearson"] == pytest.approx(stats.pearsonr(first, second).statistic)
    assert coefficients["spearman"] == pytest.approx(stats.spearmanr(first, second).statistic)
    for name in ("pearson", "spearman"):
        low, high = coefficients[f"{name}_interval"]
        assert low < coefficients[name] < high <= 1 and high - low < 0.5
    expected = stats.bootstrap(
        (first, second),
        lambda x, y: stats.pearsonr(x, y).statistic,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert coefficients["pearson_interval"] == pytest.approx(
        [expected.low, expected.high], abs=0.05
    )


@pytest.mark.parametrize(
    "interval, is_insignificant",
    [((-1, 1), True), ((0.1, 0.9), False), ((-0.9, -0.2), False), ((0, 1), True)],
)
def test_an_interval_with_both_signs_is_not_significant(interval, is_insignificant):
    coefficients = {"pearson": 0.3, "pearson_interval": interval}
    for text in (
        correlation._text(coefficients),
        pictures._coefficient_text(coefficients, "Pearson"),
    ):
        assert ("not significant" in text) == is_insignificant
