"""Several targets from one search; a separate search for each target is the oracle."""

import dataclasses

import pytest

import ekg
from ekg.errors import EkgError
from ekg.searching.front import check_order, search_front
from tests.ekg.searching.test_greedy import without_seconds
from tests.helpers.models import make_data, make_tiny_resnet

RATES = (0.8, 0.6, 0.4)
FRONTS = {
    "rates": ({}, [{"target_rate": rate} for rate in RATES]),
    "two groups per step": ({"groups_per_step": 2}, [{"target_rate": rate} for rate in RATES]),
    "parameters": ({"target_rate": 1.0}, [{"target_params": share} for share in (0.9, 0.6, 0.35)]),
    "both, by the published rule": (
        {"group_choice": "published"},
        [{"target_rate": rate, "target_params": rate} for rate in (0.85, 0.5)],
    ),
}


@pytest.fixture(scope="module")
def network():
    return ekg.Supernet(make_tiny_resnet()), make_data()


def settings_of(name):
    common, targets = FRONTS[name]
    return [ekg.SearchSettings(search_batch_size=50, **common | target) for target in targets]


@pytest.mark.parametrize("name", FRONTS)
def test_a_front_finds_what_separate_searches_find_and_repeats_only_the_last_steps(network, name):
    supernet, data = network
    all_settings, computed = settings_of(name), []
    results = search_front(
        supernet, data, all_settings, on_step=lambda *step: computed.append(step)
    )
    separate = [ekg.search(supernet, data, settings) for settings in all_settings]
    for found, expected in zip(results, separate, strict=True):
        assert without_seconds(found.history) == without_seconds(expected.history)
        assert found.subnetwork == expected.subnetwork
    for index, (easy, hard) in enumerate(zip(results, results[1:]), start=1):
        num_computed = sum(of == index for of, _ in computed)
        num_taken_over = len(hard.history) - num_computed
        pairs = zip(without_seconds(easy.history), without_seconds(hard.history))
        num_equal = sum(one == other for one, other in pairs)
        assert num_equal - 3 <= num_taken_over <= num_equal


@pytest.mark.parametrize(
    "rates, message",
    [
        ((), "at least one target"),
        ((0.3, 0.6), "`target_rate` of a front must not rise from one target to the next"),
        ((0.6, 0.6), "given twice"),
    ],
)
def test_targets_out_of_order_are_refused(rates, message):
    with pytest.raises(EkgError, match=message):
        check_order([ekg.SearchSettings(target_rate=rate) for rate in rates])


def test_searches_that_differ_in_more_than_their_targets_are_refused():
    easy = ekg.SearchSettings(target_rate=0.8)
    hard = dataclasses.replace(easy, target_rate=0.5, search_step=0.4)
    with pytest.raises(EkgError, match="in their targets alone"):
        check_order([easy, hard])


def test_an_interim_sub_network_is_found_by_its_rate(network):
    supernet, data = network
    result = search_front(supernet, data, settings_of("rates")[-1:])[0]
    entry = result.at(0.6)
    assert entry.rate == supernet.rate(entry.subnetwork) <= 0.6
    assert result.history[entry.step - 1].rate > 0.6
    assert result.at(1.0) == result.history[0] and result.at(0.4).subnetwork == result.subnetwork
    with pytest.raises(EkgError, match="`rate` 0.2: the search ended at 0.3.* of the FLOPs"):
        result.at(0.2)
    with pytest.raises(EkgError, match=r"`rate` must be in \(0, 1\]; received 0"):
        result.at(0)
