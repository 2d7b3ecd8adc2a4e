import json

import numpy as np
import pytest

import ekg
import utils
from ekg import greedy_search as searching
from ekg import importance, landscape
from ekg.devices import Team
from ekg.graph import Numerics
from ekg.objective import Objective
from ekg.subnetwork import count_kept
from tests.helpers import mirrored


def otsu_by_trial(values):
    best = max(range(1, len(values)), key=lambda k: k * (len(values) - k)
               * (np.mean(values[:k]) - np.mean(values[k:])) ** 2)
    return (values[best - 1] + values[best]) / 2


def test_otsu_threshold_equals_trial_of_all_splits():
    rng = np.random.default_rng(0)
    for size in (2, 3, 5, 20):
        values = np.sort(rng.exponential(size=size))
        assert searching.otsu_threshold(values) == pytest.approx(otsu_by_trial(values))
    assert searching.otsu_threshold(np.array([1.0, 2.0, 9.0, 10.0])) == 5.5


def test_groups_at_or_below_the_threshold_are_tried():
    sums = dict(enumerate([5.0, 1.0, 1.1, 1.2, 100.0, 0.0, 5.1, 5.2, 1.3, 5.3]))
    # Trimmed of two at either end: 1.1 1.2 1.3 5.0 5.1 5.2, so the threshold is (1.3 + 5.0) / 2.
    assert searching.pick_groups(sums) == [1, 2, 3, 5, 8]


def test_few_groups_are_all_tried():
    assert searching.pick_groups({0: 1.0, 3: 50.0}) == [0, 3]


def propose(supernet, present, target_rate, scores=None, step_size=0.2):
    scores = np.arange(supernet.layout.num_channels, dtype=float) if scores is None else scores
    return searching.propose(supernet, present, scores, target_rate, step_size)


def test_a_step_takes_the_larger_of_one_channel_and_the_step_size_over_the_writers(tiny_resnet, monkeypatch):
    supernet = ekg.Supernet(tiny_resnet)
    monkeypatch.setattr(searching, "pick_groups", list)
    present, candidates = propose(supernet, supernet.whole(), 0.01, step_size=0.5)
    widths = {supernet.groups[group].name: subnetwork.width[group] for group, subnetwork in candidates}
    # stem: 2 writers, 1/6 < 0.25; a1 and b1: one writer; b2: 2 writers, 1/8 < 0.25
    assert widths == {"stem": 0.75, "a1": 0.5, "b1": 0.5, "b2": 0.75}
    _, candidates = propose(supernet, present, 0.01, step_size=0.01)
    assert [subnetwork.num_kept(group) for group, subnetwork in candidates] == [5, 3, 4, 7]


def test_the_least_important_channels_go_and_closed_groups_are_left_out(tiny_resnet, monkeypatch):
    supernet = ekg.Supernet(tiny_resnet)
    monkeypatch.setattr(searching, "pick_groups", list)
    present = supernet.whole().with_widths({"a1": 0.0})
    scores = np.zeros(supernet.layout.num_channels)
    scores[supernet.layout.channels(0)] = [3, 1, 4, 1, 5, 9]
    _, candidates = propose(supernet, present, 0.01, scores, step_size=0.6)
    assert [group for group, _ in candidates] == [0, 2, 3]
    assert candidates[0][1].kept(0).tolist() == [0, 1, 2, 4, 5]  # 0.7 * 6 = 4.2 keeps five; of the ties the later goes


def test_sums_hold_what_the_step_would_remove(tiny_resnet, monkeypatch):
    supernet = ekg.Supernet(tiny_resnet)
    seen = {}
    monkeypatch.setattr(searching, "pick_groups", lambda sums: seen.update(sums) or list(sums))
    scores = np.concatenate([[3, 1, 4, 1, 5, 9], [2, 7, 1, 8], [2, 8, 1, 8, 2], [8, 4, 5, 9, 0, 4, 5, 2]]).astype(float)
    propose(supernet, supernet.whole(), 0.01, scores, step_size=0.5)
    assert seen == {0: 1.0, 1: 3.0, 2: 3.0, 3: 2.0}


def test_a_candidate_below_the_target_is_widened_to_it(tiny_resnet):
    supernet = ekg.Supernet(tiny_resnet)
    whole = supernet.whole()
    target = (supernet.rate(whole.with_width(0, 4 / 6)) + supernet.rate(whole.with_width(0, 5 / 6))) / 2
    _, candidates = propose(supernet, whole, target, step_size=1.0)
    for group, subnetwork in candidates:
        size = supernet.groups[group].size
        if supernet.rate(subnetwork) < target:
            wider = subnetwork.with_width(group, subnetwork.width[group] + 1 / size)
            assert supernet.rate(wider) > target
    stem = dict(candidates)[0]
    assert stem.width[0] == 4 / 6 and count_kept(stem.width[0], 6) == 4


@pytest.mark.parametrize("teacher", ["ensemble", "none"])
@pytest.mark.parametrize("target_rate", [0.8, 0.37])
def test_a_search_ends_at_the_target_and_repeats_itself(tiny_resnet, tiny_data, teacher, target_rate):
    supernet = ekg.Supernet(tiny_resnet)
    options = {"target_rate": target_rate, "teacher": teacher, "batch_size": 50}
    result = ekg.search(supernet, tiny_data, **options)
    rates = [entry.rate for entry in result.history]
    assert rates[0] == 1.0 and rates == sorted(rates, reverse=True) and rates[-2] > target_rate >= rates[-1]
    assert supernet.rate(result.subnetwork) == rates[-1]
    last = supernet.groups.index(next(g for g in supernet.groups if g.name == result.history[-1].group))
    wider = result.subnetwork.with_width(last, result.subnetwork.width[last] + 1 / supernet.groups[last].size)
    assert supernet.rate(wider) > target_rate
    again = ekg.search(supernet, tiny_data, **options)
    strip = [{**entry.to_json(), "seconds": 0} for entry in result.history]
    assert [{**entry.to_json(), "seconds": 0} for entry in again.history] == strip


def test_a_search_goes_on_from_its_history_to_the_same_end(tiny_resnet, tiny_data):
    supernet = ekg.Supernet(tiny_resnet)
    lines = []
    whole = ekg.search(supernet, tiny_data, target_rate=0.4, on_step=lambda entry: lines.append(json.dumps(entry.to_json())))
    half = [searching.HistoryEntry.from_json(json.loads(line)) for line in lines[:3]]
    assert tuple(half) == whole.history[:3]
    rest = ekg.search(supernet, tiny_data, target_rate=0.4, history=half)
    assert [entry.subnetwork for entry in rest.history] == [entry.subnetwork for entry in whole.history]
    assert [entry.loss for entry in rest.history] == [entry.loss for entry in whole.history]


@pytest.mark.parametrize("jit", [False, True])
def test_a_search_ranks_anew_and_keeps_the_best_candidate(tiny_resnet, tiny_data, jit):
    """Every step again, by another objective that runs each candidate from the input: the winner is the same."""
    supernet = ekg.Supernet(tiny_resnet)
    result = ekg.search(supernet, tiny_data, target_rate=0.4, jit=jit)
    other = Objective(supernet, tiny_data.last_of_each_class(32, 0), tiny_data.normalise, batch_size=256)
    chosen_first = 0
    for present, chosen in zip(result.history, result.history[1:]):
        other.learn(present.subnetwork)
        scores = importance.ekg(other, present.subnetwork)
        ranked, candidates = searching.propose(supernet, present.subnetwork, scores, 0.4, 0.2)
        rewards = [score.reward for score in other.scores(ranked, candidates, share_prefix=False)]
        group, winner = candidates[int(np.argsort(rewards)[-1])]
        assert (supernet.groups[group].name, winner) == (chosen.group, chosen.subnetwork)
        assert chosen.reward == pytest.approx(max(rewards), rel=1e-5) and chosen.num_candidates == len(candidates)
        chosen_first += len(candidates) > 1 and np.argmax(rewards) == 0
    assert chosen_first < len(result.history) - 1


def test_weights_that_give_no_number_stop_the_search(tiny_resnet, tiny_data):
    tiny_resnet.get_layer("fc").bias.assign([np.nan, 0, 0])
    with pytest.raises(FloatingPointError, match="not finite"):
        ekg.search(ekg.Supernet(tiny_resnet), tiny_data, target_rate=0.5)


def test_an_unknown_criterion_is_refused(tiny_resnet, tiny_data):
    with pytest.raises(ValueError, match="received 'l0'"):
        ekg.search(ekg.Supernet(tiny_resnet), tiny_data, target_rate=0.5, criterion="l0")


@pytest.mark.parametrize(("target_rate", "message"), [
    (0.0, "in \\(0, 1\\]; received 0"), (1.5, "received 1.5"), (0.001, "cannot be reached: one channel in every group")])
def test_impossible_targets_are_refused(tiny_resnet, tiny_data, target_rate, message):
    with pytest.raises(utils.UserError, match=message):
        ekg.search(ekg.Supernet(tiny_resnet), tiny_data, target_rate=target_rate)


def test_a_search_does_not_depend_on_the_number_of_devices(tiny_resnet, tiny_data):
    supernet = ekg.Supernet(tiny_resnet)
    found = []
    for team in (None, Team(mirrored(2)), Team(mirrored(3))):
        history = ekg.search(supernet, tiny_data, target_rate=0.4, batch_size=10, team=team).history
        found.append([{**entry.to_json(), "seconds": 0} for entry in history])
    assert found[0] == found[1] == found[2] and len(found[0]) > 3


def test_a_search_in_half_the_width_ends_at_the_target(tiny_resnet, tiny_data):
    supernet = ekg.Supernet(tiny_resnet, Numerics("bfloat16"))
    whole, half = (ekg.search(net, tiny_data, target_rate=0.6).history for net in (ekg.Supernet(tiny_resnet), supernet))
    assert half[-1].rate <= 0.6 and half[0].loss == pytest.approx(whole[0].loss, rel=0.05) and half[0].loss != whole[0].loss


def test_the_smoothest_of_the_shortlist_wins(tiny_resnet, tiny_data):
    """Every step again: of the three best rewards the one with the smallest condition number, found apart, was taken."""
    supernet = ekg.Supernet(tiny_resnet)
    options = {"target_rate": 0.6, "batch_size": 50}
    history = ekg.search(supernet, tiny_data, reward="condition_number", shortlist=3, team=Team(mirrored(2)),
                         **options).history
    split = tiny_data.last_of_each_class(32, 0)
    objective = Objective(supernet, split, tiny_data.normalise, batch_size=50)
    assert history[0].condition is None
    others = 0
    for before, after in zip(history, history[1:]):
        objective.learn(before.subnetwork)
        scores = importance.ekg(objective, before.subnetwork)
        present, candidates = searching.propose(supernet, before.subnetwork, scores, 0.6, 0.2)
        rewards = [score.reward for score in objective.scores(present, candidates)]
        listed = sorted(range(len(candidates)), key=lambda i: -rewards[i])[:3]
        kappas = [landscape.of_subnetwork(supernet, candidates[i][1], split, tiny_data.normalise,
                                          batch_size=50).spectrum().condition for i in listed]
        best = listed[int(np.argmin(kappas))]
        assert candidates[best][1] == after.subnetwork and after.condition == pytest.approx(min(kappas), rel=1e-3)
        others += best != listed[0]
    assert others > 0  # it was not the reward alone


@pytest.mark.parametrize("criterion", ["l1", "fpgm", "gbn"])
def test_other_criteria_end_at_the_target(tiny_resnet, tiny_data, criterion):
    history = ekg.search(ekg.Supernet(tiny_resnet), tiny_data, target_rate=0.6, criterion=criterion,
                         log_condition=True).history
    assert history[-1].rate <= 0.6 < history[-2].rate and all(entry.condition > 0 for entry in history)
    again = searching.HistoryEntry.from_json(json.loads(json.dumps(history[-1].to_json())))
    assert again == history[-1]
