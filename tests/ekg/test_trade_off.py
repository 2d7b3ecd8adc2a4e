"""A network pruned to several rates; a separate job for each rate is the oracle."""

import json

import numpy as np
import pytest

import ekg
from ekg.distil import bank_files
from ekg.errors import EkgError
from ekg.io import files
from ekg.run import folder as names
from ekg.run import phases
from ekg.trade_off import check_rates
from tests.ekg.searching.test_greedy import without_seconds
from tests.helpers.digits import digits, network, softmax

RATES = (0.75, 0.4)
BANK = f"{names.BANK}/{bank_files.ARRAY_FILE}"
OPTIONS = {
    "verbose": False,
    "search": {"search_step": 0.3, "val_per_class": 4, "subset_per_class": 8},
    "bank": {"num_teacher": 2},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(network, data, folder of the front, the Front)."""
    model, folder = network(softmax), tmp_path_factory.mktemp("fronts") / "front"
    front = ekg.front(model, digits(), RATES, run_dir=folder, epochs=1, **OPTIONS)
    return model, digits(), folder, front


def test_each_network_is_that_of_a_separate_job(made, tmp_path):
    model, data, folder, front = made
    for rate in RATES:
        alone = ekg.prune(
            model, data, target_rate=rate, run_dir=tmp_path / str(rate), epochs=1, **OPTIONS
        )
        assert without_seconds(front[rate].history) == without_seconds(alone.history)
        for name in (names.SUPERNET, names.SLIMMED, BANK, names.TRAINED):
            path = folder / f"rate_{rate:g}" / name
            assert path.read_bytes() == (tmp_path / str(rate) / name).read_bytes()


def test_the_second_search_begins_where_the_first_was_about_to_end(made):
    _, _, folder, front = made
    searched = [
        json.loads(line)
        for line in (folder / "rate_0.4" / names.PHASE_TIMES).read_text().splitlines()
    ]
    seconds = [line["seconds"] for line in searched if line["phase"] == "search"]
    first, second = front.results
    num_shared = sum(ours == theirs for ours, theirs in zip(first.history, second.history))
    assert 1 < num_shared < len(first.history)
    # What was taken over is a line of its own, with the seconds of these steps.
    assert len(seconds) == 2
    taken = sum(entry.seconds for entry in second.history[:num_shared])
    assert seconds[0] == pytest.approx(taken, abs=0.01)


def test_a_front_that_is_called_again_reads_its_results(made, monkeypatch):
    model, data, folder, front = made
    monkeypatch.setattr(phases, "search", None)
    again = ekg.front(model, data, RATES, run_dir=folder, epochs=1, **OPTIONS)
    for one, other in zip(front.results, again.results, strict=True):
        assert one.table == other.table
        np.testing.assert_array_equal(one.model(data[0][:8]), other.model(data[0][:8]))


def test_the_table_has_a_row_per_rate_and_the_page_a_picture(made, tmp_path):
    front = made[3]
    lines = front.summary().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == [
        "unpruned",
        "0.75 of the FLOPs",
        "0.4 of the FLOPs",
    ]
    front.report(tmp_path)
    assert "0.4 of the FLOPs" in (tmp_path / "front.html").read_text()


def test_another_training_takes_over_the_whole_search_and_the_bank(made, tmp_path, monkeypatch):
    model, data, folder, front = made
    monkeypatch.setattr("ekg.searching.greedy.search_toward", None)
    monkeypatch.setattr("ekg.distil.bank._masked_teachers", None)
    result = ekg.prune(
        model,
        data,
        target_rate=0.4,
        run_dir=tmp_path / "longer",
        search_from=folder / "rate_0.4",
        epochs=2,
        **OPTIONS,
    )
    assert without_seconds(result.history) == without_seconds(front[0.4].history)
    for name in (names.SLIMMED, BANK):
        taken = files.sha256(tmp_path / "longer" / name)
        assert taken == files.sha256(folder / "rate_0.4" / name)


def test_a_search_with_other_settings_is_not_taken_over(made, tmp_path):
    model, data, folder, _ = made
    options = OPTIONS | {"search": OPTIONS["search"] | {"search_step": 0.6}}
    with pytest.raises(
        EkgError, match="(?s)`search_from` .* searched with other arguments.*search_step"
    ):
        ekg.prune(
            model,
            data,
            target_rate=0.4,
            run_dir=tmp_path / "other",
            search_from=folder / "rate_0.4",
            epochs=1,
            **options,
        )


@pytest.mark.parametrize("rates", [(), (0.5, 0.5), (0.5, 1.0), ("half",), 0, True])
def test_rates_that_make_no_front_are_refused(rates):
    with pytest.raises(EkgError, match="`rates` must be"):
        check_rates(rates)


def test_a_front_has_no_target_of_its_own(made):
    model, data, _, front = made
    with pytest.raises(EkgError, match="`target` has no effect"):
        ekg.front(model, data, RATES, target={"flops": 0.5})
    with pytest.raises(EkgError, match="no rate 0.5; it has"):
        front[0.5]


def test_results_show_themselves_in_one_line_and_in_notebooks_as_a_table(made):
    front = made[3]
    result = front[0.4]
    assert repr(front) == "Front(own at 0.75, 0.4 of the FLOPs)"
    assert repr(result).startswith("PruneResult(own: ") and len(repr(result)) < 120
    assert result._repr_html_().count("<tr>") == 1 + len(result.table)
    assert front._repr_html_().count("<tr>") == 2 + len(front)
