"""Greedy sub-network search: step by step the group whose narrowing keeps the reward highest loses channels."""

import dataclasses
import logging
import time

import numpy as np

import utils
from ekg import importance, landscape
from ekg.devices import Team
from ekg.objective import Objective
from ekg.subnetwork import Subnetwork, count_kept

logger = logging.getLogger(__name__)

REWARDS = ("ensemble", "condition_number")
TRIM = 0.2  # share of the sums that is left out at either end before the threshold is taken
WIDTH_DIGITS = 9  # decimal places of a width
VAL_PER_CLASS = 32  # images of each class in D_val
SUBSET_PER_CLASS = 256  # images of each class in D_subset


@dataclasses.dataclass(frozen=True)
class HistoryEntry:
    """An interim sub-network and how it was found.

    Attributes:
        step: 0 for the whole network, then 1, 2, ...
        group: name of the group that was narrowed; None at step 0.
        subnetwork: the Subnetwork.
        rate: its FLOPs divided by the whole network's.
        loss: its cross-entropy on D_val.
        accuracy: its accuracy on D_val, in [0, 1].
        reward: its reward when it was chosen.
        num_candidates: how many sub-networks were compared.
        seconds: of the step.
        condition: condition number of its loss on D_val, if it was asked for.
    """
    step: int
    group: str | None
    subnetwork: Subnetwork
    rate: float
    loss: float
    accuracy: float
    reward: float
    num_candidates: int
    seconds: float
    condition: float | None = None

    def to_json(self):
        """Returns a dict for JSON: this entry with the widths by group name, and the order of the channels."""
        value = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return value | value.pop("subnetwork").to_json()

    @classmethod
    def from_json(cls, value):
        """Returns the entry that to_json() turned into this dict."""
        own = {field.name: value.get(field.name) for field in dataclasses.fields(cls) if field.name != "subnetwork"}
        return cls(subnetwork=Subnetwork.from_json(value), **own)


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """Result of a search: Θ*, and every interim sub-network from Θ₀ to Θ*."""
    subnetwork: Subnetwork
    history: tuple[HistoryEntry, ...]


def check_target(supernet, target_rate):
    """Raises utils.UserError if the target rate is outside (0, 1] or below what one channel a group leaves."""
    if not 0 < target_rate <= 1:
        raise utils.UserError(f"--target_rate must be in (0, 1]; received {target_rate:g}.")
    least = supernet.rate(supernet.smallest())
    if target_rate < least:
        raise utils.UserError(f"--target_rate {target_rate:g} cannot be reached: one channel in every group still leaves "
                              f"{least:.4f} of the FLOPs of {supernet.model.name}.")


def search(supernet, data, *, target_rate, step_size=0.2, batch_size=256, teacher="ensemble", criterion="ekg", seed=0,
           val_per_class=VAL_PER_CLASS, jit=False, history=(), on_step=None, share_prefix=True, team=None, state_file=None,
           reward="ensemble", shortlist=3, log_condition=False):
    """Returns the SearchResult of the greedy search for a sub-network at the target rate.

    Args:
        supernet: the Supernet.
        data: dataloader Dataset; D_val is taken from its training split.
        target_rate: share of the FLOPs to keep, in (0, 1].
        step_size: r, the width that a step takes from a group of one writer, in (0, 1].
        batch_size: images of D_val that share batch statistics, at most.
        teacher: "ensemble", "single" or "none": whose knowledge the reward holds.
        criterion: name in importance.CRITERIA.
        seed: of the order of D_val.
        val_per_class: images of each class in D_val.
        jit: whether to compile with XLA.
        history: entries of an earlier search of the same arguments, to go on from.
        on_step: function that gets every new HistoryEntry.
        share_prefix: see Objective.scores.
        team: devices.Team whose members share the candidates out; None stands for the default device. The result is the
            same.
        state_file: where the knowledge is kept after every step, so that a search that goes on need not take it from all of
            its history again; None keeps nothing.
        reward: "condition_number" compares the `shortlist` best candidates of a step by the condition number of their loss
            on D_val, and the smallest wins; "ensemble" takes the best.
        shortlist: number of candidates that are compared so.
        log_condition: whether the history holds the condition number of every interim sub-network.

    Raises:
        utils.UserError: the target rate cannot be reached, or a class has fewer images than asked for.
    """
    check_target(supernet, target_rate)
    if criterion not in importance.CRITERIA:
        raise ValueError(f"criterion must be one of {list(importance.CRITERIA)}; received {criterion!r}.")
    if reward not in REWARDS:
        raise ValueError(f"reward must be one of {REWARDS}; received {reward!r}.")
    split = data.last_of_each_class(val_per_class, seed).in_memory()
    objective = Objective(supernet, split, data.normalise, batch_size=batch_size, teacher=teacher, jit=jit, team=team)
    history, team = list(history), team or Team()
    conditions = None
    if reward == "condition_number" or log_condition:
        conditions = ConditionNumbers(supernet, split, data.normalise, batch_size=batch_size, jit=jit, team=team)

    def found(group, subnetwork, *values, condition=None):
        if log_condition and condition is None:
            condition = conditions([subnetwork])[0]
        history.append(_entry(len(history), group, subnetwork, *values, condition))
        if on_step is not None:
            on_step(history[-1])
        if state_file is not None:
            state = {"knowledge": objective.knowledge, "num_learned": len(history)}
            team.on_chief(lambda: utils.save_pickle(state_file, state))
        utils.check_stopped()

    if history:
        _relearn(objective, history, state_file)
    else:
        start, whole = time.perf_counter(), supernet.whole()
        objective.learn(whole)
        found(None, whole, 1.0, objective.scores(whole, [(None, whole)])[0], 1, start)
    while history[-1].rate > target_rate:
        start, present = time.perf_counter(), history[-1].subnetwork
        scores = importance.CRITERIA[criterion](objective, present)
        present, candidates = propose(supernet, present, scores, target_rate, step_size)
        results = objective.scores(present, candidates, share_prefix)
        rewards = [result.reward for result in results]
        if not np.isfinite(rewards).all():
            broken = [supernet.groups[group].name for (group, _), reward in zip(candidates, rewards)
                      if not np.isfinite(reward)]
            raise FloatingPointError(f"the reward of search step {len(history)} is not finite with less of {broken[:5]}; "
                                     "are the weights those of a trained network?")
        best, condition = int(np.argmax(rewards)), None
        if reward == "condition_number":
            listed = np.argsort(rewards, kind="stable")[::-1][:shortlist]
            kappas = conditions([candidates[i][1] for i in listed])
            best, condition = int(listed[np.argmin(kappas)]), min(kappas)
        group, winner = candidates[best]
        objective.learn(winner)
        found(supernet.groups[group].name, winner, supernet.rate(winner), results[best], len(candidates), start,
              condition=condition)
    return SearchResult(history[-1].subnetwork, tuple(history))


def _entry(step, group, subnetwork, rate, score, num_candidates, start, condition):
    return HistoryEntry(step, group, subnetwork, rate, score.loss, score.accuracy, score.reward, num_candidates,
                        round(time.perf_counter() - start, 3), condition)


class ConditionNumbers:
    """Condition numbers of sub-networks' losses on D_val; the members of a team take one sub-network each."""

    def __init__(self, supernet, split, normalise, *, batch_size, jit, team):
        self._team, self._warned = team, False
        self._landscapes = team.run(lambda _: landscape.MaskedLandscapes(supernet, split, normalise, batch_size=batch_size,
                                                                         jit=jit))

    def __call__(self, subnetworks):
        """Returns the list of κ; where an eigenvalue is not known to the tolerance there is a warning."""
        own = {number: range(number, len(subnetworks), self._team.count) for number in self._team.numbers}
        found = self._team.run(lambda number: [self._landscapes[number](subnetworks[i]).spectrum() for i in own[number]])
        kappas = np.zeros(len(subnetworks))
        for number, spectra in found.items():
            kappas[own[number]] = [spectrum.condition for spectrum in spectra]
            unsure = [spectrum for spectrum in spectra if not spectrum.converged]
            if unsure and not self._warned:
                self._warned = True
                logger.warning("an eigenvalue is known to a residual of %.3g only after %d products: condition numbers are "
                               "rough.", unsure[0].residual_smallest, unsure[0].products)
        return self._team.total(kappas).tolist()


def _relearn(objective, history, state_file):
    """Brings an objective to where it was after this history."""
    num_learned = 0
    if state_file is not None and state_file.exists():
        try:
            state = utils.load_pickle(state_file)
            knowledge, num_learned = state["knowledge"], state["num_learned"]
            if len(knowledge) == sum(map(len, objective.labels)) and 0 < num_learned <= len(history):
                objective.restore_knowledge(knowledge, num_learned)
            else:
                num_learned = 0
        except (utils.UserError, KeyError, TypeError) as error:
            logger.warning("%s What the search knows is taken from its history again.", error)
            num_learned = 0
    for entry in history[num_learned:]:
        objective.learn(entry.subnetwork)
    if num_learned == len(history):
        objective.keep_states(history[-1].subnetwork)


def propose(supernet, present, scores, target_rate, step_size):
    """Returns (present sub-network in its new order, candidates as list of (group, Subnetwork)) of one search step.

    Args:
        supernet: the Supernet.
        present: the present Subnetwork.
        scores: importance of every channel, array [num_channels].
        target_rate: no candidate falls below it by more than one channel.
        step_size: r; a group of C channels and n writers loses max(1/C, r/n) of its width.
    """
    if not np.isfinite(scores).all():
        raise FloatingPointError("the importance of some channels is not finite; are the weights those of a trained "
                                 "network?")
    by_group = [scores[supernet.layout.channels(i)] for i in range(len(supernet.groups))]
    present = present.ranked(by_group)
    narrowed, sums = {}, {}
    for i, group in enumerate(supernet.groups):
        num_kept = present.num_kept(i)
        if num_kept == 1:
            continue  # closed: its last channel stays
        width = present.width[i] - max(1 / group.size, step_size / len(group.writers))
        width = max(round(width, WIDTH_DIGITS), 0.0)  # 1 - 5 * 0.2 is nothing, not 6e-17
        removed = present.order[i][count_kept(width, group.size):num_kept]
        narrowed[i], sums[i] = width, float(by_group[i][list(removed)].sum())
    return present, [(i, _narrow(supernet, present, i, narrowed[i], target_rate)) for i in pick_groups(sums)]


def pick_groups(sums):
    """Returns the groups to try: those whose removed importance is at or below the Otsu threshold.

    The lowest and the highest 20 % are trimmed before the threshold is taken; where fewer than three are left all groups
    are tried.

    Args:
        sums: {group: sum of the importance that the step would remove}.
    """
    ordered = np.sort(np.array(list(sums.values())))
    trim = int(TRIM * len(ordered))
    kept = ordered[trim:len(ordered) - trim]
    if len(kept) < 3:
        return list(sums)
    threshold = otsu_threshold(kept)
    return [group for group, value in sums.items() if value <= threshold]


def otsu_threshold(values):
    """Returns the threshold between two neighbours of sorted values that maximises w₀·w₁·(μ₀ − μ₁)² (Otsu 1979)."""
    counts = np.arange(1, len(values))
    below = np.cumsum(values)[:-1]
    mean_below, mean_above = below / counts, (values.sum() - below) / (len(values) - counts)
    split = int(np.argmax(counts * (len(values) - counts) * (mean_below - mean_above) ** 2))
    return (values[split] + values[split + 1]) / 2


def _narrow(supernet, present, group, width, target_rate):
    """Returns the present sub-network with this width, or with the widest one, in whole channels, at the target."""
    candidate = present.with_width(group, width)
    if supernet.rate(candidate) >= target_rate:
        return candidate
    size = supernet.groups[group].size
    low, high = count_kept(width, size), present.num_kept(group) - 1  # the rate rises with the channels
    while low < high:
        middle = (low + high + 1) // 2
        if supernet.rate(present.with_width(group, middle / size)) <= target_rate:
            low = middle
        else:
            high = middle - 1
    return present.with_width(group, low / size)
