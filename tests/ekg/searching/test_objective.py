import dataclasses
import threading
from concurrent import futures

import numpy as np
import pytest

import ekg
from ekg.searching import criteria, evaluator
from tests.conftest import make_tiny_resnet, randomise_
from tests.helpers import (
    evaluation_batches,
    log_softmax,
    make_objective,
    mirrored,
    random_subnetwork,
)


def test_reward_is_minus_both_cross_entropies(tiny_resnet, tiny_data):
    objective = make_objective(tiny_resnet, tiny_data)
    supernet, split = objective.supernet, tiny_data.test
    first, second = supernet.whole(), random_subnetwork(supernet, 3)
    objective.add_knowledge(first)
    objective.add_knowledge(second)
    score = objective.scores(second, [(None, second)])[0]
    loss = hits = soft = 0.0
    for images, labels in (
        (split.images[i:j], split.labels[i:j]) for i, j in ((0, 7), (7, 14), (14, 22))
    ):
        logits, others = (
            supernet.logits(tiny_data.normalise(images), subnetwork).numpy().astype(np.float64)
            for subnetwork in (second, first)
        )
        teacher = np.exp(log_softmax((logits + others) / 2))
        loss -= log_softmax(logits)[np.arange(len(labels)), labels].sum()
        hits += (logits.argmax(axis=1) == labels).sum()
        soft -= (teacher * log_softmax(logits)).sum()
    np.testing.assert_allclose(
        [score.loss, score.accuracy, score.reward],
        [loss / 22, hits / 22, -(loss + soft) / 22],
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [("ensemble", lambda a, b, c: (a + b + c) / 3), ("single", lambda a, b, c: a)],
)
def test_knowledge_is_the_mean_of_all_interim_subnetworks_or_the_first(
    tiny_resnet, tiny_data, teacher, expected
):
    objective = make_objective(tiny_resnet, tiny_data, teacher)
    subnetworks = [
        objective.supernet.whole(),
        *(random_subnetwork(objective.supernet, seed) for seed in (1, 2)),
    ]
    for subnetwork in subnetworks:
        objective.add_knowledge(subnetwork)
    logits = [np.concatenate(objective.logits(subnetwork)) for subnetwork in subnetworks]
    assert objective.knowledge.shape == (22, 3)
    np.testing.assert_allclose(objective.knowledge, expected(*logits), rtol=1e-5, atol=1e-6)


def test_restored_knowledge_continues_as_it_would_have(tiny_resnet, tiny_data):
    whole, stopped = (make_objective(tiny_resnet, tiny_data) for _ in range(2))
    subnetworks = [random_subnetwork(whole.supernet, seed) for seed in range(3)]
    for subnetwork in subnetworks[:2]:
        whole.add_knowledge(subnetwork)
    stopped.restore_knowledge(whole.knowledge, 2)
    for objective in (whole, stopped):
        objective.add_knowledge(subnetworks[2])
    np.testing.assert_array_equal(stopped.knowledge, whole.knowledge)


def test_without_a_teacher_the_reward_is_the_validation_loss(tiny_resnet, tiny_data):
    objective = make_objective(tiny_resnet, tiny_data, teacher="none")
    whole = objective.supernet.whole()
    objective.add_knowledge(whole)
    score = objective.scores(whole, [(None, whole)])[0]
    assert score.reward == -score.loss


@pytest.mark.parametrize("budget", [0, 10**9])
def test_a_shared_prefix_leaves_the_scores_as_they_are(tiny_resnet, tiny_data, monkeypatch, budget):
    monkeypatch.setattr(evaluator, "STATE_BUDGET", budget)
    monkeypatch.setattr(evaluator, "SEGMENTS_TOGETHER", 2)
    objective = make_objective(tiny_resnet, tiny_data)
    assert objective.evaluators[0]._caches_states == (budget > 0)
    supernet = objective.supernet
    present = random_subnetwork(supernet, 5).with_widths(
        {group.name: 0.8 for group in supernet.groups}
    )
    objective.add_knowledge(present)
    candidates = [(group, present.with_width(group, 0.4)) for group in range(len(supernet.groups))]
    shared, alone = (
        objective.scores(present, candidates, share_prefix=share) for share in (True, False)
    )
    for score, expected in zip(shared, alone):
        assert dataclasses.astuple(score) == pytest.approx(dataclasses.astuple(expected), rel=1e-6)
    assert len({score.loss for score in shared}) == len(candidates)


def test_nothing_is_traced_again_for_other_subnetworks(tiny_resnet, tiny_data, monkeypatch):
    monkeypatch.setattr(evaluator, "SEGMENTS_TOGETHER", 2)
    objective = make_objective(
        tiny_resnet, tiny_data
    )  # 22 images: batches of 7, 7 and 8, two shapes
    supernet = objective.supernet
    for seed in range(4):
        present = random_subnetwork(supernet, seed)
        objective.add_knowledge(present)
        list(objective.gate_products(present))
        objective.logits(present)
        objective.scores(
            present,
            [(group, present.with_width(group, 0.0)) for group in range(len(supernet.groups))],
        )
    counts = objective.evaluators[0].count_traces()
    assert set(counts.values()) == {2}
    num_groups = len(supernet.groups)
    assert (
        len(counts) <= (num_groups + 1) * 3 // 2 + 3
    )  # segments, runs of two of them, and three more


def test_graphs_of_a_dry_run_serve_the_search_and_change_none_of_its_numbers(
    tiny_resnet, tiny_data
):
    """An Objective that ran other weights on other images starts over as a new one does, and traces
    nothing for it.
    """
    rehearsed, new = (
        make_objective(randomise_(make_tiny_resnet(), 7), tiny_data),
        make_objective(tiny_resnet, tiny_data),
    )
    whole = new.supernet.whole()
    present = random_subnetwork(new.supernet, 1)
    candidates = [(0, present.with_width(0, 0.2))]

    def numbers(objective):
        objective.add_knowledge(whole)
        objective.add_knowledge(present)
        products = [
            values for batch in objective.gate_products(present) for values in batch.values()
        ]
        return [
            *products,
            objective.knowledge,
            dataclasses.astuple(objective.scores(present, candidates)[0]),
        ]

    others = numbers(rehearsed)
    counts = rehearsed.evaluators[0].count_traces()
    rehearsed.start_from(new.supernet, evaluation_batches(tiny_data))
    expected = numbers(new)
    for value, expected_value, other in zip(numbers(rehearsed), expected, others):
        np.testing.assert_array_equal(value, expected_value)
        assert (np.asarray(other) != np.asarray(expected_value)).any()
    assert rehearsed.evaluators[0].count_traces() == counts


@pytest.mark.parametrize(("budget", "replicas"), [(0, 3), (10**9, 2)])
def test_a_team_computes_the_same_bit_for_bit(
    tiny_resnet, tiny_data, monkeypatch, replicas, budget
):
    monkeypatch.setattr(evaluator, "STATE_BUDGET", budget)
    alone, shared = (
        make_objective(tiny_resnet, tiny_data, team=team)
        for team in (ekg.Team(), ekg.Team(mirrored(replicas)))
    )
    supernet = alone.supernet
    assert sorted(shared.evaluators) == list(range(replicas))
    for seed in range(2):
        present = random_subnetwork(supernet, seed).with_widths(
            {group.name: 0.8 for group in supernet.groups}
        )
        candidates = [
            (group, present.with_width(group, 0.3)) for group in range(len(supernet.groups))
        ]
        results = []
        for objective in (alone, shared):
            objective.add_knowledge(present)
            context = criteria.CriterionContext(objective, present)
            results.append(
                (
                    objective.scores(present, candidates),
                    criteria.ekg(context).tolist(),
                    criteria.taylor(context).tolist(),
                )
            )
        assert results[0] == results[1]


class OneOfSeveral(ekg.Team):
    """A worker with one member; the workers are threads, which meet to add up what they have."""

    def __init__(self, worker, meeting, parts):
        super().__init__()
        self.size = self.num_workers = meeting.parties
        self.worker, self.local_members = worker, range(worker, worker + 1)
        self._devices, self._meeting, self._parts = (None,), meeting, parts

    def sum_over_workers(self, array):
        self._parts[self.worker] = np.array(array)
        self._meeting.wait(60)
        total = sum(self._parts[worker] for worker in range(self.size))
        self._meeting.wait(60)  # nobody writes the next part before all have read
        return total


@pytest.mark.parametrize(
    "workers", [2, 4]
)  # there are three batches: two workers take turns, and one of four has none
def test_workers_compute_the_same_bit_for_bit(tiny_resnet, tiny_data, workers):
    supernet = ekg.Supernet(tiny_resnet)
    present = random_subnetwork(supernet, 3).with_widths(
        {group.name: 0.8 for group in supernet.groups}
    )
    candidates = [(group, present.with_width(group, 0.3)) for group in range(len(supernet.groups))]

    def compute(team):
        objective = make_objective(tiny_resnet, tiny_data, team=team)
        objective.add_knowledge(present)
        products = [
            {site: values.tolist() for site, values in batch.items()}
            for batch in objective.gate_products(present)
        ]
        gradients = {
            place: values.tolist() for place, values in objective.weight_gradients(present).items()
        }
        return (
            objective.scores(present, candidates),
            products,
            objective.image_sensitivities(present).tolist(),
            gradients,
        )

    meeting, parts = threading.Barrier(workers), {}
    with futures.ThreadPoolExecutor(workers) as pool:
        shared = list(
            pool.map(lambda worker: compute(OneOfSeveral(worker, meeting, parts)), range(workers))
        )
    alone = compute(ekg.Team())
    assert all(result == alone for result in shared) and any(
        np.any(values) for values in alone[-1].values()
    )


def test_members_work_on_their_own_devices(tiny_resnet, tiny_data):
    objective = make_objective(tiny_resnet, tiny_data, team=ekg.Team(mirrored(2)))
    for number, member in objective.evaluators.items():
        assert all(
            values[0].device.endswith(f"CPU:{number}") for values in member._weights.values()
        )


def test_compiled_and_plain_scores_agree(tiny_resnet, tiny_data):
    plain, compiled = (
        make_objective(tiny_resnet, tiny_data, use_xla=use_xla, team=ekg.Team(mirrored(2)))
        for use_xla in (False, True)
    )
    present = random_subnetwork(plain.supernet, 5)
    candidates = [
        (group, present.with_width(group, 0.4)) for group in range(len(plain.supernet.groups))
    ]
    results = []
    for objective in (plain, compiled):
        objective.add_knowledge(present)
        context = criteria.CriterionContext(objective, present)
        results.append(
            [
                *(dataclasses.astuple(score) for score in objective.scores(present, candidates)),
                *(
                    (scores / scores.max()).tolist()
                    for scores in (criteria.ekg(context), criteria.taylor(context))
                ),
            ]
        )
    for values, expected in zip(*results):
        assert values == pytest.approx(expected, rel=1e-4, abs=1e-5)
