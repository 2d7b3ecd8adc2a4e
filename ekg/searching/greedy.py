"""Greedy search: at each step the group whose narrowing keeps the reward highest is narrowed."""

import collections
import io
import logging
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ekg.data.dataset import LabelledData
from ekg.devices.compute import Compute, full_float32
from ekg.errors import EkgError
from ekg.io import files
from ekg.landscape.subnetworks import Spectra
from ekg.network.supernet import Supernet
from ekg.process import stopping
from ekg.searching.criteria import NOT_TRAINED, CriterionContext, score_channels
from ekg.searching.history import HistoryEntry, SearchResult
from ekg.searching.objective import Objective
from ekg.searching.proposals import combine, propose
from ekg.searching.settings import SearchSettings
from ekg.searching.targets import Target

logger = logging.getLogger(__name__)


def search(
    supernet: Supernet,
    data: LabelledData,
    settings: SearchSettings | None = None,
    *,
    seed: int = 0,
    compute: Compute | None = None,
    history: Sequence[HistoryEntry] = (),
    on_step: Callable[[HistoryEntry], None] | None = None,
    state_file: str | Path | None = None,
    **changes: Any,
) -> SearchResult:
    """Returns the SearchResult of the greedy search for a sub-network at the target rate.

        ekg.search(supernet, data, target_rate=0.45, search_teacher="none")

    Args:
        supernet: the Supernet.
        data: data.Dataset; D_val is taken from its training split.
        settings: SearchSettings; None takes `changes`, and defaults for the others. `criterion` is
            a name of criteria.CRITERIA, or a function from a CriterionContext to a score per
            channel.
        seed: seed of the order of D_val.
        compute: Compute whose team's members share the candidates; None means float32 on the
            default device. The result does not depend on the number of members.
        history: entries of an earlier search with the same arguments, which is resumed.
        on_step: function that is called with every new HistoryEntry.
        state_file: file that keeps the knowledge after every step, so that a resumed search need
            not compute it again from its whole history; None keeps nothing.
        changes: single settings by name, in place of `settings`; and `target`, an ekg.Target such
            as ekg.Latency, beside which the target of the FLOPs counts only if it is also given.

    Raises:
        EkgError: a setting is unknown or out of range, a target cannot be reached, a class has
            fewer images than asked for, or a function for `criterion` returns no scores.
        FloatingPointError: an importance or a reward is not finite.
    """
    own = changes.pop("target", None)
    if own is not None and not isinstance(own, Target):
        raise EkgError(f"`target` must be an ekg.Target; received {own!r}.")
    if settings is not None and changes:
        raise EkgError(
            f"`settings` and `{next(iter(changes))}` exclude each other; put it into the settings."
        )
    if own is not None or changes.get("target_params") is not None:
        changes = {"target_rate": 1.0, **changes}  # it counts where it is given
    settings = SearchSettings.make(vars(settings) if settings is not None else changes)
    targets = settings.targets(own)
    targets.check(supernet)
    compute = compute or Compute()
    target = targets.prepare(supernet, compute.team)
    for entry in history:
        target.recall(supernet, entry)
    return search_toward(
        target,
        supernet,
        data,
        settings,
        seed=seed,
        compute=compute,
        history=history,
        on_step=on_step,
        state_file=state_file,
    )


def search_toward(
    target,
    supernet,
    data,
    settings,
    *,
    seed,
    compute,
    history=(),
    on_step=None,
    state_file=None,
    objective=None,
):
    """Returns the SearchResult of the greedy search, as search() does, toward a prepared target.

    Args:
        target: Target that prepare() returned, and that has recalled the history.
        supernet, data, settings, seed, compute, history, on_step, state_file: see search().
        objective: Objective of a rehearsal with these settings, whose graphs are used again; or
            None.

    Raises: see search().
    """
    with full_float32():
        search_ = _Search(supernet, data, settings, target, seed, compute, objective)
        return search_.run(list(history), on_step, state_file)


def try_groups(supernet, objective, history, target, settings, seed):
    """Returns (present Subnetwork, candidates of the next search step, list of the Score of each).

    The present one is the last of the history, or the start of the proposals; a candidate is
    (group, Subnetwork).

    Args:
        supernet: the Supernet.
        objective: Objective that knows the whole history.
        history: list of HistoryEntry.
        target: Target that is prepared.
        settings: SearchSettings.
        seed: of the search.

    Raises:
        EkgError: no group can lose channels, and the target is not reached, as measurements on the
            way have raised the cost.
    """
    present = history[-1].subnetwork
    importance = score_channels(settings.criterion, CriterionContext(objective, present, seed))
    narrowed = collections.Counter(name for entry in history for name in entry.narrowed)
    present, candidates = propose(
        supernet, present, importance, target, settings.search_step, narrowed, settings.group_choice
    )
    if not candidates:
        target.check(supernet)
        raise EkgError(f"`target` {target.describe()}: not reached, and no more channels can go.")
    return present, candidates, objective.scores(present, candidates)


class _Search:
    """A running search."""

    def __init__(self, supernet, data, settings, target, seed, compute, objective):
        self._supernet, self._settings, self._seed = supernet, settings, seed
        self._target, self._team = target, compute.team
        self._on_step = self._state_file = None
        split = data.last_of_each_class(settings.val_per_class, seed).in_memory()
        batches = data.batches(split, settings.search_batch_size)
        self._objective = objective or Objective(
            supernet, batches, settings.search_teacher, compute
        )
        if objective is not None:
            objective.start_from(supernet, batches)
        self._spectra = None
        if settings.reward == "condition_number" or settings.log_condition:
            self._spectra = Spectra(supernet, batches, compute)
        self._history = []

    def run(self, history, on_step, state_file):
        """Returns the SearchResult that continues these entries; see search()."""
        self._history, self._on_step, self._state_file = history, on_step, state_file
        if history:
            _restore_knowledge(self._objective, history, self._state_file)
        else:
            self._start()
        while not self._target.is_reached(self._supernet, history[-1].subnetwork):
            self._step()
        return SearchResult(history[-1].subnetwork, tuple(history))

    def _start(self):
        start, whole = time.perf_counter(), self._supernet.whole()
        self._objective.add_knowledge(whole)
        score = self._objective.scores(whole, [(None, whole)])[0]
        self._append(None, whole, score, num_candidates=1, start=start)

    def _step(self):
        """Narrows one group, or the best few together: ranks the channels again, tries the groups,
        keeps the best.
        """
        settings, start = self._settings, time.perf_counter()
        present, candidates, scores = try_groups(
            self._supernet, self._objective, self._history, self._target, settings, self._seed
        )
        self._check_finite([group for group, _ in candidates], scores)
        rewards = [score.reward for score in scores]
        best, spectrum = self._choose(candidates, rewards)
        self._tell(present, candidates, scores, best)
        (group, winner), score, groups = candidates[best], scores[best], ()
        if settings.groups_per_step > 1:
            listed = np.argsort(-np.array(rewards), kind="stable")[: settings.groups_per_step]
            together, combined = combine(
                self._supernet, [candidates[i] for i in listed], self._target
            )
            if len(together) > 1:
                winner, score = combined, self._objective.scores(combined, [(None, combined)])[0]
                self._check_finite(together, [score] * len(together))
                groups = tuple(self._supernet.groups[i].name for i in together)
        self._objective.add_knowledge(winner)
        self._append(
            self._supernet.groups[group].name,
            winner,
            score,
            num_candidates=len(candidates),
            start=start,
            spectrum=spectrum,
            groups=groups,
        )

    def _choose(self, candidates, rewards):
        """Returns (number of the candidate to keep, its Spectrum if the condition number
        decided).
        """
        if self._settings.reward != "condition_number":
            return int(np.argmax(rewards)), None
        listed = np.argsort(rewards, kind="stable")[::-1][: self._settings.shortlist]
        spectra = self._spectra([candidates[i][1] for i in listed])
        smoothest = int(np.argmin([spectrum.condition for spectrum in spectra]))
        return int(listed[smoothest]), spectra[smoothest]

    def _tell(self, present, candidates, scores, best):
        """Logs what the step tried and chose."""
        groups = self._supernet.groups
        tried = ", ".join(
            f"{groups[group].name} {present.num_kept(group)} -> {candidate.num_kept(group)} "
            f"{score.reward:.4g}"
            for (group, candidate), score in zip(candidates, scores)
        )
        logger.debug(
            "step %d: takes %s; rewards: %s",
            len(self._history),
            groups[candidates[best][0]].name,
            tried,
        )

    def _check_finite(self, groups, scores):
        broken = [
            self._supernet.groups[group].name
            for group, score in zip(groups, scores)
            if not np.isfinite(score.reward)
        ]
        if broken:
            raise FloatingPointError(
                f"the reward of search step {len(self._history)} is not finite with less of "
                f"{broken[:5]}; {NOT_TRAINED}"
            )

    def _append(self, group, subnetwork, score, *, num_candidates, start, spectrum=None, groups=()):
        """Adds an interim sub-network to the history, and saves the knowledge."""
        if self._settings.log_condition and spectrum is None:
            spectrum = self._spectra([subnetwork])[0]
        measured = (
            {}
            if spectrum is None
            else {"condition": spectrum.condition, "spectrum": spectrum.to_json()}
        )
        measured["costs"] = self._target.observe(self._supernet, subnetwork) or None
        self._history.append(
            HistoryEntry(
                len(self._history),
                group,
                subnetwork,
                self._supernet.rate(subnetwork),
                score.loss,
                score.accuracy,
                score.reward,
                num_candidates,
                round(time.perf_counter() - start, 3),
                groups=groups,
                **measured,
            )
        )
        if self._on_step is not None:
            self._on_step(self._history[-1])
        if self._state_file is not None:
            knowledge, num_added = self._objective.knowledge, len(self._history)
            self._team.on_chief(lambda: _save_knowledge(self._state_file, knowledge, num_added))
        stopping.check()


def _save_knowledge(path, knowledge, num_added):
    """Saves the knowledge T, float32 [images, classes], and the number of sub-networks in it."""
    buffer = io.BytesIO()
    np.savez(buffer, knowledge=knowledge, num_added=num_added)
    files.write_sealed(path, buffer.getvalue())


def _restore_knowledge(objective, history, state_file):
    """Restores the state that an objective had after this history."""
    num_added = 0
    if state_file is not None and state_file.exists():
        try:
            state = np.load(io.BytesIO(files.read_sealed(state_file)), allow_pickle=False)
            if len(state["knowledge"]) == objective.num_images and 0 < state["num_added"] <= len(
                history
            ):
                num_added = int(state["num_added"])
                objective.restore_knowledge(state["knowledge"], num_added)
        except (EkgError, KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile) as error:
            reason = (
                str(error)
                if isinstance(error, EkgError)
                else f"{state_file}: holds no knowledge of a search."
            )
            logger.warning("%s The search computes its knowledge again from its history.", reason)
    for entry in history[num_added:]:
        objective.add_knowledge(entry.subnetwork)
    if num_added == len(history):
        objective.cache_states(history[-1].subnetwork)
