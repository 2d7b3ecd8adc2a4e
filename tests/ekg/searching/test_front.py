"""Several targets from one search; a separate search for each target is the oracle."""

import collections
import dataclasses
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers

import ekg
from ekg.errors import EkgError
from ekg.graph.complexity import ComplexityTable
from ekg.searching.front import check_order, could_pass, count_shared, search_front
from ekg.searching.proposals import counts_by_width
from tests.ekg.searching.test_greedy import without_seconds
from tests.helpers.models import conv_bn, make_data, make_tiny_resnet

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


def random_history(supernet, settings, rng, rate=0.3):
    """Returns the entries of a search that takes random groups."""
    entries = [SimpleNamespace(subnetwork=supernet.whole(), narrowed=())]
    narrowed = collections.Counter()
    while supernet.rate(entries[-1].subnetwork) > rate:
        present = entries[-1].subnetwork
        present = present.ranked([rng.random(group.size) for group in supernet.groups])
        counts = counts_by_width(supernet, present, settings.search_step, narrowed)
        if not counts:
            break
        groups = rng.permutation(list(counts))[: settings.groups_per_step].tolist()
        for group in groups:
            present = present.with_kept(group, counts[group])
        names = [supernet.groups[group].name for group in groups]
        narrowed.update(names)
        entries.append(SimpleNamespace(subnetwork=present, narrowed=names))
    return entries


@pytest.fixture(scope="module")
def branches():
    """Supernet with groups of several sizes and writers, split channels and a depthwise layer."""
    x = inputs = keras.Input((8, 8, 3))
    x = conv_bn(x, 12, "one")
    left, right = x[..., :5], x[..., 5:]
    x = layers.Concatenate()([conv_bn(left, 8, "left"), conv_bn(right, 6, "right"), x])
    x = layers.Add()([conv_bn(x, 10, "add_a"), conv_bn(x, 10, "add_b", size=1)])
    x = layers.DepthwiseConv2D(3)(x)
    x = layers.GlobalAveragePooling2D()(conv_bn(x, 20, "last"))
    return ekg.Supernet(keras.Model(inputs, layers.Dense(4)(x)))


@pytest.mark.parametrize("limits", [{}, {"multiple_of": 4}])
@pytest.mark.parametrize("name", FRONTS)
def test_shared_steps_equal_those_found_by_checking_every_step(branches, name, limits):
    supernet = ekg.Supernet(branches.model, **limits)
    rng = np.random.default_rng(0)
    for settings in settings_of(name):
        for _ in range(3):
            history = random_history(supernet, settings, rng)
            reached = [
                settings.targets().is_reached(supernet, entry.subnetwork) for entry in history
            ]
            history = history[: reached.index(True) + 1] if any(reached) else history
            looked = [could_pass(supernet, history[:n], settings) for n in range(1, len(history))]
            expected = looked.index(True) + 1 if any(looked) else len(history)
            assert count_shared(supernet, history, settings) == expected


def test_groups_are_examined_only_near_the_target(branches, monkeypatch):
    settings = ekg.SearchSettings(target_rate=0.3, search_step=0.05)
    history = random_history(branches, settings, np.random.default_rng(1))
    count, calls = ComplexityTable.count, []
    monkeypatch.setattr(
        ComplexityTable, "count", lambda self, mask: calls.append(1) or count(self, mask)
    )
    count_shared(branches, history, settings)
    num_near = (len(calls) - len(history)) / (len(branches.groups) + 1)
    assert len(history) > 20 and num_near < 5, (len(history), num_near)


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
