import collections
import json

import numpy as np
import pytest

import ekg
from ekg.data.dataset import Batches
from ekg.landscape.subnetworks import MaskedLandscapes
from ekg.searching import criteria, proposals
from ekg.searching.objective import Objective
from ekg.searching.proposals import propose
from ekg.searching.targets import Flops
from tests.helpers.comparisons import mirrored
from tests.helpers.models import make_data, make_tiny_resnet


def without_seconds(history):
    """Returns the entries as JSON objects that are equal wherever the search did the same."""
    return [{**entry.to_json(), "seconds": 0} for entry in history]


def batches_of_search(data, batch_size=256):
    """Returns the Batches of D_val as a search of seed 0 takes them."""
    return Batches(data.last_of_each_class(32, 0), data.normalise, batch_size)


# ---------------------------------------------------------------- what a search finds


@pytest.mark.parametrize("teacher", ["ensemble", "none"])
@pytest.mark.parametrize("target_rate", [0.8, 0.37])
def test_a_search_ends_at_the_target_and_repeats_itself(
    tiny_resnet, tiny_data, teacher, target_rate
):
    supernet = ekg.Supernet(tiny_resnet)
    settings = ekg.SearchSettings(
        target_rate=target_rate, search_teacher=teacher, search_batch_size=50
    )
    result = ekg.search(supernet, tiny_data, settings)
    rates = [entry.rate for entry in result.history]
    assert (
        rates[0] == 1.0
        and rates == sorted(rates, reverse=True)
        and rates[-2] > target_rate >= rates[-1]
    )
    assert supernet.rate(result.subnetwork) == rates[-1]
    last = supernet.groups.index(
        next(group for group in supernet.groups if group.name == result.history[-1].group)
    )
    wider = result.subnetwork.with_width(
        last, result.subnetwork.width[last] + 1 / supernet.groups[last].size
    )
    assert supernet.rate(wider) > target_rate
    again = ekg.search(
        supernet, tiny_data, target_rate=target_rate, search_teacher=teacher, search_batch_size=50
    )
    assert without_seconds(again.history) == without_seconds(result.history)


@pytest.mark.parametrize("use_xla", [False, True])
def test_a_search_ranks_again_and_keeps_the_best_candidate(tiny_resnet, tiny_data, use_xla):
    """Every step again, by another objective that runs each candidate from the input: the winner is
    the same.

    The ranking is computed as that of the search: channels whose importance is equal but for
        rounding may change places.
    """
    supernet, compute = ekg.Supernet(tiny_resnet), ekg.Compute(use_xla=use_xla)
    result = ekg.search(supernet, tiny_data, target_rate=0.4, compute=compute)
    ranking, plain = (
        Objective(supernet, batches_of_search(tiny_data), compute=computed)
        for computed in (compute, None)
    )
    chosen_first = 0
    for present, chosen in zip(result.history, result.history[1:]):
        for objective in (ranking, plain):
            objective.add_knowledge(present.subnetwork)
        scores = criteria.ekg(criteria.CriterionContext(ranking, present.subnetwork))
        ranked, candidates = propose(supernet, present.subnetwork, scores, Flops(0.4), 0.2)
        rewards = [score.reward for score in plain.scores(ranked, candidates, share_prefix=False)]
        group, winner = candidates[int(np.argsort(rewards)[-1])]
        assert (supernet.groups[group].name, winner) == (chosen.group, chosen.subnetwork)
        assert chosen.reward == pytest.approx(
            max(rewards), rel=1e-5
        ) and chosen.num_candidates == len(candidates)
        chosen_first += len(candidates) > 1 and np.argmax(rewards) == 0
    assert chosen_first < len(result.history) - 1


def test_the_smoothest_of_the_shortlist_wins(tiny_resnet, tiny_data):
    """Every step again: of the three best rewards the one with the smallest condition number,
    computed apart, was taken.
    """
    supernet = ekg.Supernet(tiny_resnet)
    history = ekg.search(
        supernet,
        tiny_data,
        reward="condition_number",
        shortlist=3,
        target_rate=0.6,
        search_batch_size=50,
        compute=ekg.Compute(ekg.Team(mirrored(2))),
    ).history
    batches = batches_of_search(tiny_data, batch_size=50)
    objective, landscapes = Objective(supernet, batches), MaskedLandscapes(supernet, batches)
    assert history[0].condition is None
    others = 0
    for before, after in zip(history, history[1:]):
        objective.add_knowledge(before.subnetwork)
        scores = criteria.ekg(criteria.CriterionContext(objective, before.subnetwork))
        present, candidates = propose(supernet, before.subnetwork, scores, Flops(0.6), 0.2)
        rewards = [score.reward for score in objective.scores(present, candidates)]
        listed = sorted(range(len(candidates)), key=lambda i: -rewards[i])[:3]
        conditions = [landscapes(candidates[i][1]).spectrum().condition for i in listed]
        best = listed[int(np.argmin(conditions))]
        assert candidates[best][1] == after.subnetwork and after.condition == pytest.approx(
            min(conditions), rel=1e-3
        )
        others += best != listed[0]
    assert others > 0  # it was not the reward alone


def test_condition_numbers_are_kept_with_the_history(tiny_resnet, tiny_data):
    history = ekg.search(
        ekg.Supernet(tiny_resnet), tiny_data, target_rate=0.6, criterion="l1", log_condition=True
    ).history
    assert history[-1].rate <= 0.6 < history[-2].rate and all(
        entry.condition > 0 for entry in history
    )
    stored = ekg.HistoryEntry.from_json(json.loads(json.dumps(history[-1].to_json())))
    assert stored == history[-1]


def test_a_search_in_half_precision_ends_at_the_target(tiny_resnet, tiny_data):
    supernet = ekg.Supernet(tiny_resnet)
    single, half = (
        ekg.search(supernet, tiny_data, target_rate=0.6, compute=ekg.Compute(dtype=dtype)).history
        for dtype in ("float32", "bfloat16")
    )
    assert half[-1].rate <= 0.6
    assert (
        half[0].loss == pytest.approx(single[0].loss, rel=0.05) and half[0].loss != single[0].loss
    )


def test_a_search_does_not_depend_on_the_number_of_devices(tiny_resnet, tiny_data):
    supernet = ekg.Supernet(tiny_resnet)
    histories = [
        without_seconds(
            ekg.search(
                supernet,
                tiny_data,
                target_rate=0.4,
                search_batch_size=10,
                compute=ekg.Compute(team),
            ).history
        )
        for team in (ekg.Team(), ekg.Team(mirrored(2)), ekg.Team(mirrored(3)))
    ]
    assert histories[0] == histories[1] == histories[2] and len(histories[0]) > 3


def test_weights_that_give_no_finite_loss_stop_the_search(tiny_resnet, tiny_data):
    tiny_resnet.get_layer("fc").bias.assign([np.nan, 0, 0])
    with pytest.raises(FloatingPointError, match="not finite"):
        ekg.search(ekg.Supernet(tiny_resnet), tiny_data, target_rate=0.5)


def test_the_published_choice_of_groups_applies_at_every_step(tiny_resnet, tiny_data, monkeypatch):
    """Every step again: the group that was narrowed is one that the published rule picks."""
    supernet, picked = ekg.Supernet(tiny_resnet), []
    pick = proposals.pick_groups

    def note(sums, choice):
        assert choice == "published"
        picked.append((sums, pick(sums, choice)))
        return picked[-1][1]

    monkeypatch.setattr(proposals, "pick_groups", note)
    history = ekg.search(
        supernet, tiny_data, target_rate=0.4, search_step=0.1, group_choice="published"
    ).history
    assert history[-1].rate <= 0.4 and len(picked) == len(history) - 1
    names = [group.name for group in supernet.groups]
    for before, after, (sums, groups) in zip(history, history[1:], picked):
        for i, group in enumerate(supernet.groups):
            if i in sums:
                assert (sums[i] == 0) == (before.subnetwork.num_kept(i) < group.size)
        assert names.index(after.group) in groups and after.num_candidates == len(groups)


# ---------------------------------------------------------------- several groups in a step


@pytest.fixture(scope="module")
def several():
    """(supernet, data, {groups of a step: history}, the lines that the history of two is kept
    as).
    """
    supernet, data, lines = ekg.Supernet(make_tiny_resnet()), make_data(), []
    histories = {
        number: ekg.search(
            supernet, data, target_rate=0.4, search_batch_size=10, groups_per_step=number
        ).history
        for number in (1, 3)
    }
    histories[2] = ekg.search(
        supernet,
        data,
        target_rate=0.4,
        search_batch_size=10,
        groups_per_step=2,
        on_step=lambda entry: lines.append(json.dumps(entry.to_json())),
    ).history
    return supernet, data, histories, lines


def test_several_groups_in_a_step_take_fewer_steps_to_the_target(several):
    supernet, _, histories, _ = several
    for number, history in histories.items():
        rates = [entry.rate for entry in history]
        assert rates == sorted(set(rates), reverse=True) and rates[-2] > 0.4 >= rates[-1]
        assert all(len(entry.narrowed) <= number for entry in history)
        last = supernet.groups.index(
            next(group for group in supernet.groups if group.name == history[-1].narrowed[-1])
        )
        end = history[-1].subnetwork
        assert supernet.rate(end.with_kept(last, end.num_kept(last) + 1)) > 0.4
        for before, after in zip(history, history[1:]):
            changed = {
                group.name
                for i, group in enumerate(supernet.groups)
                if before.subnetwork.num_kept(i) != after.subnetwork.num_kept(i)
            }
            assert changed == set(after.narrowed) and after.group == after.narrowed[0]
    assert len(histories[3]) <= len(histories[2]) < len(histories[1])


def test_the_best_candidates_are_narrowed_together_and_that_is_scored(several):
    """Every step again: rewards one by one, and loss and reward of the two best together."""
    supernet, data, histories, _ = several
    objective, times, together = (
        Objective(supernet, batches_of_search(data, 10)),
        collections.Counter(),
        0,
    )
    for before, after in zip(histories[2], histories[2][1:]):
        objective.add_knowledge(before.subnetwork)
        scores = criteria.ekg(criteria.CriterionContext(objective, before.subnetwork))
        present, candidates = propose(supernet, before.subnetwork, scores, Flops(0.4), 0.2, times)
        ranked = sorted(
            zip([score.reward for score in objective.scores(present, candidates)], candidates),
            key=lambda pair: -pair[0],
        )
        expected = [group for _, (group, _) in ranked[:2]][: len(after.narrowed)]
        assert [supernet.groups[group].name for group in expected] == list(after.narrowed)
        by_hand = present
        for _, (group, candidate) in ranked[: len(after.narrowed)]:
            by_hand = by_hand.with_kept(group, candidate.num_kept(group))
        score = objective.scores(by_hand, [(None, by_hand)])[0]
        assert after.subnetwork == by_hand and after.loss == pytest.approx(score.loss, rel=1e-6)
        assert after.reward == pytest.approx(score.reward, rel=1e-6)
        times.update(after.narrowed)
        together += len(after.narrowed) == 2
    assert together > 1


def test_the_history_of_several_groups_survives_json_and_resumes(several):
    supernet, data, histories, lines = several
    entries = [ekg.HistoryEntry.from_json(json.loads(line)) for line in lines]
    assert tuple(entries) == histories[2]
    for entry, line in zip(entries, map(json.loads, lines)):
        assert line.get("groups", []) == (list(entry.narrowed) if len(entry.narrowed) > 1 else [])
    assert not any("groups" in entry.to_json() for entry in histories[1])
    rest = ekg.search(
        supernet,
        data,
        target_rate=0.4,
        search_batch_size=10,
        groups_per_step=2,
        history=entries[:3],
    )
    assert without_seconds(rest.history) == without_seconds(histories[2])


@pytest.mark.parametrize("criterion", ["ekg", "taylor", "random"])
def test_several_groups_in_a_step_do_not_depend_on_the_number_of_devices(several, criterion):
    supernet, data, *_ = several
    alone, shared = (
        ekg.search(
            supernet,
            data,
            target_rate=0.6,
            search_batch_size=10,
            groups_per_step=2,
            criterion=criterion,
            compute=ekg.Compute(team),
        ).history
        for team in (ekg.Team(), ekg.Team(mirrored(2)))
    )
    assert without_seconds(alone) == without_seconds(shared) and len(alone) > 2


# ---------------------------------------------------------------- a resumed search


def test_a_search_resumes_from_its_history_to_the_same_end(tiny_resnet, tiny_data):
    supernet = ekg.Supernet(tiny_resnet)
    lines = []
    whole = ekg.search(
        supernet,
        tiny_data,
        target_rate=0.4,
        on_step=lambda entry: lines.append(json.dumps(entry.to_json())),
    )
    half = [ekg.HistoryEntry.from_json(json.loads(line)) for line in lines[:3]]
    assert tuple(half) == whole.history[:3]
    rest = ekg.search(supernet, tiny_data, target_rate=0.4, history=half)
    assert [entry.subnetwork for entry in rest.history] == [
        entry.subnetwork for entry in whole.history
    ]
    assert [entry.loss for entry in rest.history] == [entry.loss for entry in whole.history]


@pytest.fixture
def stopped(tiny_resnet, tiny_data, tmp_path):
    """A search whose knowledge is on disk, stopped after its third entry: (supernet, history of the
    whole, state file).
    """

    class Interrupted(Exception):
        pass

    def interrupt(entry):
        if entry.step == 3:
            raise Interrupted

    supernet, state_file = ekg.Supernet(tiny_resnet), tmp_path / "search_state.npz"
    with pytest.raises(Interrupted):
        ekg.search(supernet, tiny_data, target_rate=0.4, on_step=interrupt, state_file=state_file)
    return supernet, ekg.search(supernet, tiny_data, target_rate=0.4).history, state_file


def add_knowledge_counted(monkeypatch):
    """Returns the list to which every sub-network is appended that gets into the knowledge from now
    on.
    """
    added, add_knowledge = [], Objective.add_knowledge

    def counted(objective, subnetwork):
        added.append(subnetwork)
        add_knowledge(objective, subnetwork)

    monkeypatch.setattr(Objective, "add_knowledge", counted)
    return added


def test_a_resumed_search_reads_its_knowledge_from_its_state_file(tiny_data, stopped, monkeypatch):
    supernet, whole, state_file = stopped
    added = add_knowledge_counted(monkeypatch)
    rest = ekg.search(
        supernet, tiny_data, target_rate=0.4, history=whole[:3], state_file=state_file
    )
    assert without_seconds(rest.history) == without_seconds(whole)
    assert added == [entry.subnetwork for entry in whole[3:]]


@pytest.mark.parametrize("damage", ["cut short", "a bit flipped"])
def test_a_damaged_state_file_is_reported_and_rebuilt(
    tiny_data, stopped, monkeypatch, caplog, damage
):
    supernet, whole, state_file = stopped
    data = bytearray(state_file.read_bytes())
    data[99] ^= 4 if damage == "a bit flipped" else 0
    state_file.write_bytes(data[: len(data) // 2] if damage == "cut short" else data)
    added = add_knowledge_counted(monkeypatch)
    rest = ekg.search(
        supernet, tiny_data, target_rate=0.4, history=whole[:3], state_file=state_file
    )
    assert without_seconds(rest.history) == without_seconds(whole)
    assert added == [entry.subnetwork for entry in whole]
    assert (
        "damaged, its checksum is wrong" in caplog.text
        and "computes its knowledge again from its history" in caplog.text
    )


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"foo": 1}, "`foo` is no setting here; there are target_rate, search_step, "),
        ({"target_rate": 0.0}, "`target_rate` must be in (0, 1]; received 0."),
        ({"target_rate": 1.5}, "`target_rate` must be in (0, 1]; received 1.5."),
        ({"target_rate": float("nan")}, "`target_rate` must be in (0, 1]; received nan."),
        ({"target_rate": "0.5"}, "`target_rate` must be of type float; received '0.5'."),
        (
            {"target_rate": 0.001},
            "`target_rate` 0.001 cannot be reached: one channel in every group still leaves 0.",
        ),
        ({"search_step": -0.1}, "`search_step` must be in (0, 1]; received -0.1."),
        ({"search_batch_size": 0}, "`search_batch_size` must be at least 1; received 0."),
        ({"search_batch_size": 2.5}, "`search_batch_size` must be of type int; received 2.5."),
        (
            {"search_teacher": "both"},
            "`search_teacher` must be one of ['ensemble', 'single', 'none']; received 'both'.",
        ),
        (
            {"criterion": "l0"},
            f"`criterion` must be one of {list(criteria.CRITERIA)}; received 'l0'.",
        ),
        (
            {"criterion": 5},
            f"`criterion` must be one of {list(criteria.CRITERIA)}, or a function; received 5.",
        ),
        ({"groups_per_step": 0}, "`groups_per_step` must be at least 1; received 0."),
        (
            {"groups_per_step": 2, "reward": "condition_number"},
            "`groups_per_step` has no effect here: the `reward` condition_number compares groups "
            "one by one; leave it out.",
        ),
        (
            {"reward": "loss"},
            "`reward` must be one of ['ensemble', 'condition_number']; received 'loss'.",
        ),
        (
            {"shortlist": 5},
            "`shortlist` has no effect here: `reward` is not condition_number; leave it out.",
        ),
        ({"log_condition": 1}, "`log_condition` must be of type bool; received 1."),
        ({"val_per_class": 0}, "`val_per_class` must be at least 1; received 0."),
        (
            {"val_per_class": 33},
            "33 images of each class are asked for, and the largest class of TINY has 32; lower ",
        ),
        (
            {"settings": ekg.SearchSettings(), "target_rate": 0.5},
            "`settings` and `target_rate` exclude each other; ",
        ),
    ],
)
def test_impossible_settings_are_refused_in_one_line_that_names_them(
    tiny_resnet, tiny_data, changes, message
):
    with pytest.raises(ekg.EkgError) as error:
        ekg.search(ekg.Supernet(tiny_resnet), tiny_data, **changes)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_settings_without_effect_are_refused_in_every_form(tiny_resnet, tiny_data):
    with pytest.raises(ekg.EkgError, match="`shortlist` has no effect here"):
        ekg.search(ekg.Supernet(tiny_resnet), tiny_data, ekg.SearchSettings(shortlist=5))
