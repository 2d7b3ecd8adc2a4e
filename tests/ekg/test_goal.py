"""The smallest network that meets an accuracy goal."""

import dataclasses
import json

import keras
import numpy as np
import pytest

import ekg
from ekg.data.dataset import LabelledData
from ekg.errors import EkgError
from ekg.goal import (
    Drop,
    Goal,
    MaxDropSettings,
    bisect,
    check_resolution,
    epochs_of_probes,
    hold_out,
    rates_to_try,
    reach,
)
from ekg.io import files
from ekg.run import folder as names
from ekg.run import phases
from tests.helpers.digits import digits, network, softmax
from tests.helpers.models import make_data

OPTIONS = {
    "verbose": False,
    "search": {"search_step": 0.5, "val_per_class": 4, "subset_per_class": 8},
    "bank": {"num_teacher": 2},
    "run": {"runtimes": ()},
    "epochs": 1,
}
GOAL = {"drop": 0.3, "held_out": 0.2, "lowest_rate": 0.75, "probe_epochs": 0}


def all_digits():
    """Digits, of which the held-out fifth resolves a large drop."""
    return digits(300)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(network, folder of the goal, PruneResult)."""
    model, folder = network(softmax), tmp_path_factory.mktemp("goals") / "goal"
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(*all_digits(), epochs=30, verbose=0)
    result = ekg.prune(
        model, all_digits(), target=GOAL, validation_data=digits(40), run_dir=folder, **OPTIONS
    )
    return model, folder, result


# ---------------------------------------------------------------- what is held out


def test_a_part_of_each_class_is_held_out_and_the_rest_is_kept():
    strata = np.random.default_rng(0).choice(3, 1000, p=[0.7, 0.25, 0.05])
    held, kept = hold_out(strata, 0.1, seed=0)
    assert sorted([*held, *kept]) == list(range(1000)) and len(held) == 100
    counts, sizes = np.bincount(strata[held]), np.bincount(strata)
    assert np.all(np.abs(counts - sizes / 10) < 1)
    again, other = hold_out(strata, 0.1, seed=0)[0], hold_out(strata, 0.1, seed=1)[0]
    assert np.array_equal(held, again) and not np.array_equal(held, other)


def test_at_most_the_limit_is_held_out_and_never_a_whole_class():
    held, _ = hold_out(np.zeros(100_000, int), 0.5, seed=0)
    assert len(held) == 5000
    held, kept = hold_out(np.array([0, 1, 1, 1]), 0.9, seed=0)
    assert 0 in kept and np.any(kept > 0) and len(held) == 2


def test_neither_search_nor_training_sees_held_out_examples(monkeypatch):
    """Every example has a number of its own in a corner, by which it is recognised."""
    images, labels = all_digits()
    images[:, 0, 0, 0] = np.arange(len(images)) / 1000
    expected, _ = hold_out(labels, GOAL["held_out"], seed=0)
    seen, splits = set(), []
    take, epoch = LabelledData._of_each_class, LabelledData.epoch

    def numbers_of(array):
        return set(np.round(1000 * np.asarray(array)[..., 0, 0, 0]).astype(int).ravel().tolist())

    def watched_part(data, count, part, seed):
        split = take(data, count, part, seed)
        seen.update(numbers_of(split.read(np.arange(len(split)))))
        return split

    def watched_epoch(data, *args, **options):
        splits.append(data.train)
        for batch in epoch(data, *args, **options):
            seen.update(numbers_of(batch["images"]))
            yield batch

    monkeypatch.setattr(LabelledData, "_of_each_class", watched_part)
    monkeypatch.setattr(LabelledData, "epoch", watched_epoch)
    options = OPTIONS | {"fine_tune": {"batch_size": 16}}
    ekg.prune(network(softmax), (images, labels), target=GOAL | {"probe_epochs": 1}, **options)
    assert len(expected) == 60 and not seen & set(expected.tolist())
    assert len(seen) > 230  # all others but those of an incomplete last batch
    assert all(len(split) == 240 for split in splits)


# ---------------------------------------------------------------- which rate


@pytest.mark.parametrize("smallest", [None, 0.95, 0.7, 0.45, 0.1])
def test_the_bisection_finds_the_smallest_rate_that_meets_the_goal(smallest):
    rates = rates_to_try(0.1, least=0.02)
    asked = []

    def measure(rate):
        asked.append(rate)
        return Drop(0.0 if smallest is not None and rate >= smallest else 0.5, 0.1)

    best, tried = bisect(rates, measure, drop=0.01)
    assert best == smallest and list(tried) == asked and len(asked) <= 5


def test_rates_end_at_the_lowest_that_can_be_reached():
    assert rates_to_try(0.8, least=0.02) == [0.95, 0.9, 0.85, 0.8]
    assert rates_to_try(0.1, least=0.8612) == [0.95, 0.9, 0.862]


def test_a_drop_has_the_error_of_the_difference_of_each_example():
    unpruned, pruned = np.array([1, 1, 1, 0.0]), np.array([1, 0, 1, 1.0])
    drop = Drop.between(unpruned, pruned)
    assert drop.mean == 0 and drop.error == pytest.approx(np.std([0, 1, 0, -1], ddof=1) / 2)
    assert Drop.between(unpruned, unpruned) == Drop(0.0, 0.25)


def test_probes_are_fine_tuned_for_a_quarter_of_the_epochs():
    goal = Goal.make({"drop": 0.01})
    assert [epochs_of_probes(goal, epochs) for epochs in (20, 1, None)] == [5, 1, None]
    assert epochs_of_probes(dataclasses.replace(goal, probe_epochs=0), 20) is None
    with pytest.raises(EkgError, match="`probe_epochs` has no effect"):
        epochs_of_probes(dataclasses.replace(goal, probe_epochs=2), None)


# ---------------------------------------------------------------- what decides


@dataclasses.dataclass(frozen=True)
class Pruned:
    """What a job returns."""

    note: str = "made"


class Job:
    """Keeps what it was asked to prune; a network is represented by its share of the FLOPs."""

    def __init__(self, is_trained=True):
        self.asked, self.checked, self._is_trained = [], [], is_trained

    def check(self, _, epochs):
        self.checked.append(epochs)

    def least_rate(self):
        return 0.1

    def unpruned(self, measure):
        return measure(1.0) if self._is_trained or self.asked else None

    def prune(self, name, data, rate, epochs, search_from, note, is_final):
        self.asked.append((name, data, rate, epochs, search_from, is_final))
        return Pruned(), lambda measure: measure(rate)


def images_of(split):
    return {image.tobytes() for image in split.images}


def test_training_examples_that_are_held_out_decide_and_no_network_is_trained_on_them(monkeypatch):
    data, job, judged = make_data(num_train=200, num_test=30), Job(), []

    def values(rate, _data, split, metric):
        judged.append(split)
        is_right = np.ones(len(split))
        is_right[: round(50 * (1 - rate))] = 0  # half of the FLOPs lost cost a quarter
        return is_right.tolist()

    monkeypatch.setattr("ekg.goal.example_values", values)
    goal = Goal.make({"drop": 0.1, "held_out": 0.5, "lowest_rate": 0.4, "probe_epochs": 2})
    result = reach(goal, data, 8, 0, job)
    assert "on 100 held-out training examples; met, with 10.00 " in result.note
    held_out = images_of(judged[0])
    assert len(held_out) == 100 and held_out < images_of(data.train)
    assert all(images_of(split) == held_out for split in judged)
    assert all(not images_of(asked.train) & held_out for _, asked, *_ in job.asked)
    assert sorted(job.checked) == [2, 8]
    search, *probes, final = job.asked
    assert (search[0], *search[2:]) == ("search", 0.4, None, None, False)
    assert (final[0], *final[2:]) == ("final_0.8", 0.8, 8, "probe_0.8", True)
    assert images_of(final[1].test) == images_of(data.test)
    assert all(images_of(asked.test) == held_out for _, asked, *_ in (search, *probes))
    for name, _, rate, *rest in probes:
        assert (name, *rest) == (f"probe_{rate:g}", 2, "search", False)


def test_a_network_that_the_search_trains_first_is_measured_after_it(monkeypatch):
    def values(rate, _data, split, metric):
        return (np.arange(len(split)) >= 50 * (1 - rate)).tolist()

    monkeypatch.setattr("ekg.goal.example_values", values)
    data, jobs = make_data(num_train=200, num_test=30), [Job(), Job(is_trained=False)]
    goal = Goal.make({"drop": 0.1, "held_out": 0.5, "lowest_rate": 0.4, "probe_epochs": 2})
    trained, untrained = (reach(goal, data, 8, 0, job) for job in jobs)
    assert untrained.note == trained.note
    assert [entry[0] for entry in jobs[0].asked] == [entry[0] for entry in jobs[1].asked]
    hard, job = dataclasses.replace(goal, drop=0.001), Job(is_trained=False)
    with pytest.raises(EkgError, match="100 held-out examples cannot resolve a drop of 0.1"):
        reach(hard, data, 8, 0, job)
    assert not job.asked


# ---------------------------------------------------------------- the whole job


def test_the_result_is_the_smallest_rate_tried_that_meets_the_goal(made):
    _, folder, result = made
    rate = json.loads((next(folder.glob("final_*")) / names.ARGUMENTS).read_text())["target_rate"]
    assert result.rate <= rate and (folder / f"probe_{rate:g}").is_dir()
    assert len(result.table) == 3 and result.table[0].examples == 40
    assert "measured on 40 validation examples" in result.note
    assert "goal: at most 30 points less top-1, on 60 held-out training examples; " in result.note
    tried = dict(entry.split(": ") for entry in result.note.split("points lost: ")[1].split(", "))
    assert sorted(tried) == sorted(path.name.split("_")[1] for path in folder.glob("probe_*"))
    met = [float(rate) for rate, drop in tried.items() if float(drop.split()[0]) <= 30]
    assert rate == min(met)


def test_all_probes_take_the_steps_of_one_search_over(made):
    _, folder, result = made
    deepest = files.read_json(folder / "search" / names.ARGUMENTS)
    assert deepest["target_rate"] == 0.75
    first = (folder / "search" / names.SUPERNET).read_bytes()
    for path in [*folder.glob("probe_*"), *folder.glob("final_*")]:
        assert (path / names.SUPERNET).read_bytes() == first


def test_a_goal_that_was_stopped_resumes_to_the_same_result(made, tmp_path, monkeypatch):
    model, folder, result = made

    class Killed(Exception):
        pass

    def killed(*args, **options):
        raise Killed

    call = {"target": GOAL, "validation_data": digits(40), "run_dir": tmp_path / "goal"}
    with monkeypatch.context() as patch:
        patch.setattr("ekg.run.phases.fine_tune", killed)
        with pytest.raises(Killed):
            ekg.prune(model, all_digits(), **call, **OPTIONS)
    monkeypatch.setattr(phases, "warm_up", _only_read(phases.warm_up))
    again = ekg.prune(model, all_digits(), **call, **OPTIONS)
    assert again.note == result.note and again.subnetwork == result.subnetwork
    (final,) = folder.glob("final_*")
    for name in (names.SLIMMED, names.TRAINED):
        assert files.sha256(final / name) == files.sha256(tmp_path / "goal" / final.name / name)


def _only_read(warm_up):
    def wrapped(job, *args):
        assert job.is_done("subset")  # the epoch before the search is not repeated
        return warm_up(job, *args)

    return wrapped


def test_a_goal_that_is_called_again_searches_nothing(made, monkeypatch):
    model, folder, result = made
    monkeypatch.setattr(phases, "search", None)
    again = ekg.prune(
        model, all_digits(), target=GOAL, validation_data=digits(40), run_dir=folder, **OPTIONS
    )
    assert again.note == result.note and again.table == result.table


def test_a_goal_that_no_rate_meets_names_the_nearest(made, monkeypatch):
    model, options = made[0], OPTIONS | {"epochs": None, "bank": None}
    monkeypatch.setattr("ekg.goal.Drop.between", lambda unpruned, pruned: Drop(0.4, 0.05))
    with pytest.raises(
        EkgError,
        match=r"no rate from 0.75 to 0.95 .* nearest is .*, which loses 40.00 ±5.00 points",
    ):
        ekg.prune(model, all_digits(), target=GOAL, **options)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("drop", [0, -0.01, 1, 1.5, float("nan"), "1", None, True])
def test_a_drop_that_is_no_share_is_refused(drop):
    with pytest.raises(EkgError, match="`drop` must be"):
        ekg.prune(network(softmax), digits(), target={"drop": drop})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"target_rate": 0.5}, "`target_rate` and a `target` .* exclude each other"),
        ({"target": {"drop": 0.1, "flops": 0.5}}, "\"drop\" and 'flops' exclude each other"),
        ({"target": {"drop": 0.1, "held_out": 1.0}}, "`held_out` must be in"),
        ({"search_from": "run"}, "`search_from` has no effect on an accuracy goal"),
        ({"restart": "search", "run_dir": "run"}, "`restart` has no effect on an accuracy goal"),
        ({}, "12 held-out examples cannot resolve a drop of 1 points.* would be 2.87"),
        ({"fine_tune": {"warmup_epoch": 6}}, "`warmup_epoch` 6 is longer than the training, .* 5"),
        ({"fine_tune": {"batch_size": 110}}, "`batch_size` 110 is larger than the 108 images"),
        ({"task": "regression"}, "is mean abs. error, which is not a share"),
    ],
)
def test_a_goal_that_cannot_be_pursued_is_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = digits()
    if options.get("task"):
        data = (data[0], np.eye(10, dtype=np.float32)[data[1]])
    with pytest.raises(EkgError, match=message) as caught:
        ekg.prune(network(softmax), data, **{"target": {"drop": 0.01}, "verbose": False} | options)
    assert "\n" not in str(caught.value)


def test_a_folder_of_a_single_run_takes_no_goal(made):
    model, folder, _ = made
    with pytest.raises(EkgError, match="holds a single run"):
        ekg.prune(model, all_digits(), target=GOAL, run_dir=folder / "search", **OPTIONS)


def test_a_metric_between_right_and_wrong_has_the_error_of_its_mean():
    goal, values = Goal.make({"drop": 0.01}), np.linspace(0.89, 0.91, 20)
    check_resolution(values, goal)
    with pytest.raises(EkgError, match="20 held-out examples cannot resolve"):
        check_resolution(np.linspace(0.5, 1, 20), goal)
    with pytest.raises(EkgError, match="0 held-out examples cannot resolve"):
        check_resolution([], goal)


def test_a_command_line_names_the_drop_in_points():
    assert MaxDropSettings(max_drop=1.0).target() == {"drop": 0.01}
    assert MaxDropSettings(max_drop=2.0, probe_epochs=0).target()["probe_epochs"] == 0
    assert MaxDropSettings().target() is None
    with pytest.raises(EkgError, match="`held_out` has no effect here"):
        MaxDropSettings(held_out=0.2).target()
