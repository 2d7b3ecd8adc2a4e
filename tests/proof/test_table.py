"""The arithmetic of the proof's tables, on records made by hand."""

import math

import pytest

from benchmarks.proof import runs, table
from benchmarks.proof.__main__ import main, parse_args
from benchmarks.proof.execute import ProofRecord
from benchmarks.proof.runs import Run

LABELS, BANK, CLEAN = (Run("ekg", teacher, 0) for teacher in ("labels", "bank", "clean"))


def keep(folder, run, top1, num_teachers=(), flops=450, params=600):
    """Writes the record of a run that ended with this top-1, in %."""
    rows = [
        {"name": name, "metrics": {"top1": value / 100}, "flops": kept, "params": left}
        for name, value, kept, left in (
            ("baseline", 85.0, 1000, 1000),
            ("slimmed", 55.0, flops, params),
            ("fine-tuned", top1, flops, params),
        )
    ]
    ProofRecord(run.name, {}, rows, 0, {}, [], {}, num_teachers=list(num_teachers)).write(
        folder / f"{run.name}.json"
    )


@pytest.fixture
def page(tmp_path):
    """The tables of labels, bank and Θ₀ on the clean image, of three, three and two seeds."""
    for arm, tops in (
        (LABELS, (70.0, 71.0, 69.0)),
        (BANK, (70.5, 71.7, 69.6)),
        (CLEAN, (70.8, 71.5)),
    ):
        for run, top1 in zip(runs.with_seeds(runs.SEEDS, arm), tops):
            keep(tmp_path, run, top1, [5.0, 2.0, 1.5] if arm is BANK else ())
    return main(parse_args(["table", "--records", str(tmp_path)]))


def cells(page, start):
    line = next(line for line in page.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_an_arm_has_its_mean_and_its_paired_difference_to_labels(page):
    assert cells(page, LABELS.title)[1:] == ["3", "0.450", "0.600", "55.00", "70.00 ± 1.00", "", ""]
    # Differences .5, .7 and .6: mean .6, deviation .1, standard error .1/√3
    assert cells(page, BANK.title)[1:] == [
        "3",
        "0.450",
        "0.600",
        "55.00",
        "70.60 ± 1.05",
        "+0.60 ± 0.06",
        "5.0, 1.5",
    ]


def test_the_conclusions_follow_the_rules_that_were_fixed(page):
    assert cells(page, "bank − labels on two views") == [
        "bank − labels on two views",
        "0 1 2",
        "+0.60 ± 0.06",
        "yes",
        "the ensemble helps in the paper's regime",
    ]
    # Differences -.3 and .2: mean -.05, standard error .25
    assert cells(page, "bank − Θ₀ on the clean image") == [
        "bank − Θ₀ on the clean image",
        "0 1",
        "-0.05 ± 0.25",
        "no",
        "the ensemble is not shown to give more than Θ₀ alone",
    ]
    assert "five teachers on views − bank" not in page  # not run


def test_a_difference_of_one_seed_has_no_error_and_no_reading():
    one = table.difference({0: 71.0, 1: 72.0}, {0: 70.0, 2: 60.0})
    assert one.seeds == (0,) and one.mean == 1.0 and math.isnan(one.error) and one.is_sure is None
    assert table.questions()[0].read(one) == "too few seeds" and str(one) == "+1.00"
    assert table.difference({0: 1.0}, {1: 1.0}).seeds == ()


def test_exactly_two_standard_errors_are_not_more():
    # Differences 0 and 2: mean 1, standard error 1; 1 and 3: mean 2, standard error 1
    assert table.difference({0: 0.0, 1: 2.0}, {0: 0.0, 1: 0.0}).is_sure is False
    assert table.difference({0: 1.0, 1: 3.0}, {0: 0.0, 1: 0.0}).is_sure is False
    assert table.difference({0: 1.01, 1: 3.01}, {0: 0.0, 1: 0.0}).is_sure is True


def test_every_question_is_of_arms_in_the_queue():
    """A run that no queue makes would leave its question open for ever."""
    arms = {run.arm for run in runs.queue()}
    missing = [
        one.title
        for one in table.questions()
        if one.minuend.arm not in arms or one.subtrahend.arm not in arms
    ]
    assert not missing


def test_a_table_without_finished_runs_says_so(tmp_path):
    assert main(parse_args(["table", "--records", str(tmp_path)])) == "No run is finished yet."
