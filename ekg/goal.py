"""Finds the smallest network that meets an accuracy goal.

A part of the training data is held out. One search goes down to the lowest rate, and a bisection
over the rates takes its first steps over. Each rate that is tried is fine-tuned shortly and
compared with the unpruned network on what was held out; the smallest that meets the goal is
fine-tuned fully.
"""

import dataclasses
import logging
import math
from pathlib import Path

import numpy as np
import tensorflow as tf

from ekg.data.dataset import members_by_class
from ekg.devices.compute import full_float32, in_graph
from ekg.errors import EkgError
from ekg.process import stopping
from ekg.run.folder import RunFolder
from ekg.settings import INNER_SHARE, MACHINE, NOT_NEGATIVE, Range, Settings, setting
from ekg.tasks.metrics import has_metric, metric_named

logger = logging.getLogger(__name__)

MOST_HELD_OUT = 5000
STEP = 0.05  # between the rates that may be tried
BATCH = 256  # examples per forward pass over the part that is held out
PROBES_PER_TRAINING = 4  # short fine-tunings that take as long as the full one
SEARCH_FOLDER = "search"
GOAL_FLAG_OF = {"target": "max_drop", "drop": "max_drop"}  # what a command line calls them


@dataclasses.dataclass(frozen=True)
class GoalSettings(Settings):
    """How the rate that meets an accuracy goal is found.

    Like several rates, a goal decides which runs there are, and changes none of them.
    """

    held_out: float = setting(
        0.1,
        f"share of the training examples, at most {MOST_HELD_OUT} of them, that neither search "
        "nor training sees, and on which an accuracy goal is measured",
        MACHINE,
        range=INNER_SHARE,
    )
    lowest_rate: float = setting(
        0.1,
        "smallest share of the FLOPs that is tried for an accuracy goal",
        MACHINE,
        range=INNER_SHARE,
    )
    probe_epochs: int | None = setting(
        None,
        "epochs of fine-tuning of each rate that is tried for an accuracy goal; without it a "
        "quarter of the final network's epochs; 0: cut and repaired only",
        MACHINE,
        range=NOT_NEGATIVE,
        may_be_none=True,
    )


@dataclasses.dataclass(frozen=True)
class Goal(GoalSettings):
    """An accuracy goal: `drop` is the share of the first metric that may be lost."""

    drop: float = setting(
        0.01,
        "share of the first metric that the pruned network may lose; 0.01 is one point",
        MACHINE,
        range=INNER_SHARE,
    )


@dataclasses.dataclass(frozen=True)
class MaxDropSettings(GoalSettings):
    """An accuracy goal in points, as a command line names it."""

    max_drop: float | None = setting(
        None,
        "points of the first metric that the pruned network may lose, in place of a share of the "
        "FLOPs: the smallest network that meets this is found",
        MACHINE,
        range=Range(0, 100.0, is_low_open=True, is_high_open=True),
        may_be_none=True,
    )

    def target(self):
        """Returns the `target` of ekg.prune, or None without an accuracy goal.

        Raises:
            EkgError: another setting has no effect, as there is no goal.
        """
        others = GoalSettings(self.held_out, self.lowest_rate, self.probe_epochs).differing()
        if self.max_drop is not None:
            return {"drop": self.max_drop / 100, **others}
        if others:
            raise EkgError(
                f"`{next(iter(others))}` has no effect here: there is no accuracy goal; name "
                "`max_drop`, or leave it out."
            )
        return None


@dataclasses.dataclass(frozen=True)
class Drop:
    """How much worse a network is than the unpruned one on the examples that are held out.

    Attributes:
        mean: share of the metric that is lost; negative where the network is better.
        error: standard error of this difference; where no example differs, that of one that does.
    """

    mean: float
    error: float

    @classmethod
    def between(cls, unpruned, pruned):
        """Returns the Drop for the metric of each example, arrays [examples]."""
        losses = np.asarray(unpruned, np.float64) - np.asarray(pruned, np.float64)
        error = losses.std(ddof=1) / math.sqrt(len(losses))
        return cls(float(losses.mean()), float(error) or 1 / len(losses))

    def __str__(self):
        return f"{100 * self.mean:.2f} ±{100 * self.error:.2f}"


def read_goal(target, target_rate=None):
    """Returns the Goal of the arguments of ekg.prune, or None if they name no drop.

    Raises:
        EkgError: the drop is out of range, or there is another target.
    """
    if not isinstance(target, dict) or "drop" not in target:
        return None
    if target_rate is not None:
        raise EkgError('`target_rate` and a `target` {"drop": ...} exclude each other.')
    names = [field.name for field in dataclasses.fields(Goal)]
    others = [name for name in target if name not in names]
    if others:
        raise EkgError(
            f'`target`: "drop" and {others[0]!r} exclude each other; with "drop" there are only '
            f"{', '.join(names[:-1])}."
        )
    return Goal.make(target)


def check_alone(arguments):
    """Raises EkgError if an argument has no effect with a goal.

    Args:
        arguments: {name: value}.
    """
    for name, value in arguments.items():
        if value is not None:
            raise EkgError(f"`{name}` has no effect on an accuracy goal; leave it out.")


def find_metric(task):
    """Returns the name of the metric that a goal is about: the first one of a task.

    Raises:
        EkgError: it is not a share.
    """
    name = task.metrics[0]
    if not has_metric(name) or not metric_named(name).is_share:
        words = metric_named(name).words if has_metric(name) else name
        raise EkgError(
            f"`target`: a drop is a share of right answers, and the first metric of the task "
            f"({task.name}) is {words}, which is not a share; name a `target_rate`."
        )
    return name


def hold_out(strata, share, seed):
    """Returns the indices (held out, kept) of examples, each in rising order.

    Every stratum gives its share, chosen at random, and keeps at least one example.

    Args:
        strata: class or stratum of each example, int [examples].
        share: share to hold out.
        seed: of the choice.
    """
    strata = np.asarray(strata)
    sizes = np.bincount(strata)
    count = min(round(share * len(strata)), MOST_HELD_OUT)
    exact = sizes * count / len(strata)
    counts = np.floor(exact).astype(int)
    for stratum in np.argsort(counts - exact, kind="stable")[: count - counts.sum()]:
        counts[stratum] += 1
    counts = np.minimum(counts, np.maximum(sizes - 1, 0))
    random = np.random.default_rng([seed, MOST_HELD_OUT])
    is_held = np.zeros(len(strata), bool)
    for members, number in zip(members_by_class(strata), counts):
        is_held[random.permutation(members)[:number]] = True
    return np.flatnonzero(is_held), np.flatnonzero(~is_held)


def expected_error(values, drop):
    """Returns the smallest standard error that a drop can be expected to have.

    Where each example is right or wrong, so that it is lost or not, this is the error of a share of
    the size of the drop. Otherwise it is the error of the unpruned network's metric.

    Args:
        values: metric of the unpruned network for each example, array [examples].
        drop: share that may be lost.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return math.inf
    if np.isin(values, (0, 1)).all():
        return math.sqrt(drop * (1 - drop) / len(values))
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def check_resolution(values, goal):
    """Raises EkgError if the examples that are held out are too few to resolve the drop.

    Args:
        values: see expected_error().
        goal: Goal.
    """
    error = expected_error(values, goal.drop)
    if error > goal.drop:
        raise EkgError(
            f"`target`: {len(values)} held-out examples cannot resolve a drop of "
            f"{100 * goal.drop:g} points, whose standard error would be {100 * error:.2f}; give "
            "more data, or raise `held_out` or `drop`."
        )


def rates_to_try(lowest, least):
    """Returns the shares of the FLOPs that may be tried, in falling order.

    Args:
        lowest: smallest share asked for.
        least: share of the smallest sub-network.
    """
    lowest = max(lowest, math.ceil(1000 * least) / 1000)
    grid = [round(1 - STEP * number, 10) for number in range(1, round(1 / STEP))]
    rates = [rate for rate in grid if rate > lowest + 1e-9]
    return [*rates, lowest] if lowest < 1 else rates


def bisect(rates, measure, drop):
    """Returns (the smallest rate found that meets a goal or None, {rate that was tried: its Drop}).

    It takes the drop to grow as the rate falls, so that half of the rates left is ruled out by each
    that is tried.

    Args:
        rates: list of shares of the FLOPs in falling order.
        measure: function from a rate to its Drop.
        drop: largest drop that meets the goal.
    """
    tried, best = {}, None
    first, end = 0, len(rates)
    while first < end:
        middle = (first + end) // 2
        rate = rates[middle]
        tried[rate] = measure(rate)
        if tried[rate].mean <= drop:
            best, first = rate, middle + 1
        else:
            end = middle
    return best, tried


def example_values(model, data, split, metric):
    """Returns the metric of each example of a split, a list of floats.

    Args:
        model: keras.Model that returns what the task takes.
        data: data set.
        split: Split of examples.
        metric: name of one of the task's metrics.
    """
    task, batches = data.task, data.batches(split, BATCH)

    def measure(images, labels):
        outputs = task.of(model(images, training=False))
        return task.measure(labels, tf.cast(outputs, tf.float32))[metric]

    measure, values = in_graph(measure, reduce_retracing=True), []
    with full_float32():
        for number, images in enumerate(batches.images()):
            stopping.check()
            measured = measure(batches.normalise(images), tf.constant(batches.labels(number)))
            values += measured.numpy().astype(float).tolist()
    return values


def epochs_of_probes(goal, epochs):
    """Returns the epochs of each short fine-tuning; None means cut and repaired only.

    Args:
        goal: Goal.
        epochs: of the final network, or None.

    Raises:
        EkgError: probes are to be fine-tuned, and the final network is not.
    """
    if epochs is None and goal.probe_epochs:
        raise EkgError(
            "`probe_epochs` has no effect here: `epochs` is None, so nothing is fine-tuned; leave "
            "it out."
        )
    if goal.probe_epochs is None and epochs is not None:
        return max(epochs // PROBES_PER_TRAINING, 1)
    return goal.probe_epochs or None


def reach(goal, data, epochs, seed, job):
    """Prunes to the smallest rate that meets a goal, and returns the result of its run.

    Args:
        goal: Goal.
        data: data set; the final figures are on its test split, or on the held-out part without
            one.
        epochs: of fine-tuning of the final network, or None.
        seed: of the examples that are held out.
        job: what prunes and measures; it has the methods
            check(data, epochs), which raises EkgError where a run of this length is impossible;
            least_rate() -> share of the FLOPs of the smallest sub-network;
            unpruned(measure) -> list of floats that measure(model) returns for that network, or
            None where the first run trains it;
            prune(name, data, rate, epochs, search_from, note, is_final) -> (result, function like
            unpruned for the network that was pruned). The result is a dataclass with a `note`.
            `name` and `search_from` name run folders, `note` says what the table is of (None: the
            validation data), and the table of the final network alone has latencies.

    Raises:
        EkgError: the goal cannot be measured, or no rate meets it.
    """
    metric = find_metric(data.task)
    probe_epochs = epochs_of_probes(goal, epochs)
    held, kept = hold_out(data.strata, goal.held_out, seed)
    held_out, whole = data.train.take(held), data.train
    data = dataclasses.replace(data, train=whole.take(kept))
    probe_data = dataclasses.replace(data, test=held_out)

    def measure(model):
        return example_values(model, data, held_out, metric)

    job.check(data, epochs)
    if probe_epochs is not None:
        job.check(data, probe_epochs)
    unpruned = job.unpruned(measure) if len(held) else []
    # Before it is trained, nothing is known but that it will be right or wrong.
    check_resolution(np.zeros(len(held)) if unpruned is None else unpruned, goal)
    words = f"{metric_named(metric).words}, on {len(held)} held-out training examples"
    rates = rates_to_try(goal.lowest_rate, job.least_rate())
    logger.info("at most %g points less %s: searching first", 100 * goal.drop, words)
    note = f"measured on {len(held)} held-out training examples, which decided the rate"
    job.prune(SEARCH_FOLDER, probe_data, rates[-1], None, None, note, False)
    if unpruned is None:
        unpruned = job.unpruned(measure)

    def probe(rate):
        name = f"probe_{rate:g}"
        _, measured = job.prune(name, probe_data, rate, probe_epochs, SEARCH_FOLDER, note, False)
        drop = Drop.between(unpruned, measured(measure))
        logger.info("%g of the FLOPs: %s points less %s", rate, drop, words)
        return drop

    best, tried = bisect(rates, probe, goal.drop)
    if best is None:
        nearest = min(tried, key=lambda rate: tried[rate].mean)
        raise EkgError(
            f"`target`: no rate from {rates[-1]:g} to {rates[0]:g} was found that loses at most "
            f"{100 * goal.drop:g} points of {words}; the nearest is {nearest:g}, which loses "
            f"{tried[nearest]} points; raise `drop` or `probe_epochs`."
        )
    data, note = (probe_data, note) if data.test is None else (data, None)
    result, measured = job.prune(
        f"final_{best:g}", data, best, epochs, f"probe_{best:g}", note, True
    )
    final = Drop.between(unpruned, measured(measure))
    is_met = final.mean <= goal.drop
    if not is_met:
        logger.warning(
            "the goal is missed after the full fine-tuning: %s points less %s, and at most %g were "
            "asked for",
            final,
            words,
            100 * goal.drop,
        )
    probes = ", ".join(f"{rate:g}: {tried[rate]}" for rate in sorted(tried, reverse=True))
    return dataclasses.replace(
        result,
        note=f"{result.note}\ngoal: at most {100 * goal.drop:g} points less {words}; "
        f"{'met' if is_met else 'missed'}, with {final} points (± one standard error of the "
        f"difference)\nrates that were tried: points lost: {probes}",
    )


def check_folder(path):
    """Raises EkgError if the folder of a goal holds a single run."""
    if RunFolder(path).holds_run():
        raise EkgError(f"{path}: holds a single run; name a new folder for an accuracy goal.")


def folder_of(run_dir, name):
    """Returns the pathlib.Path of one of the run folders in the folder of a goal."""
    return Path(run_dir) / name
