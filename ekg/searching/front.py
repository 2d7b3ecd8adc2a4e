"""Several targets from one search: the chain of sub-networks towards each of them.

A greedy search uses its target in one place alone: a candidate that would fall below the target
keeps as many channels as bring it there. Up to the first step at which a candidate could fall below
an easy target, the search towards a harder one makes the same steps. So the searches of a front
share the beginning of their histories, and each repeats only its last few steps.
"""

import collections
import dataclasses
import shutil
import tempfile
from pathlib import Path

import numpy as np

from ekg.errors import EkgError
from ekg.searching.greedy import search
from ekg.searching.proposals import counts_by_width, most_step

NEAR = 3  # times the largest step so far; nearer to the target each step is looked at


def search_front(supernet, data, all_settings, *, seed=0, compute=None, on_step=None):
    """Returns a list of SearchResult, one per target, each equal to that of a separate search.

    Args:
        supernet: the Supernet.
        data: data.Dataset; D_val is taken from its training split.
        all_settings: list of SearchSettings that differ in `target_rate` and `target_params`
            alone, from the easiest target to the hardest.
        seed: of the order of D_val.
        compute: see search().
        on_step: function (index of the target, HistoryEntry), called with every entry that is
            computed.

    Raises:
        EkgError: the targets are not in order; or see search().
    """
    check_order(all_settings)
    results, shared = [], []
    with tempfile.TemporaryDirectory(prefix="ekg-front-") as folder:
        state_file, shared_file = Path(folder) / "search_state", Path(folder) / "shared_state"
        for index, settings in enumerate(all_settings):
            if shared_file.exists():
                shared_file.rename(state_file)
            keeper = SharedState(supernet, settings, state_file, shared_file, shared)

            def keep(entry, index=index, keeper=keeper):
                keeper.add(entry)
                if on_step is not None:
                    on_step(index, entry)

            result = search(
                supernet,
                data,
                settings,
                seed=seed,
                compute=compute,
                history=shared,
                on_step=keep,
                state_file=state_file,
            )
            results.append(result)
            shared = list(result.history[: count_shared(supernet, result.history, settings)])
    return results


def check_order(all_settings):
    """Raises EkgError unless each of these SearchSettings has a harder target than the one before.

    Args:
        all_settings: list of SearchSettings.
    """
    if not all_settings:
        raise EkgError("a front needs at least one target.")
    other_fields = [
        dataclasses.replace(settings, target_rate=1.0, target_params=None)
        for settings in all_settings
    ]
    if any(fields != other_fields[0] for fields in other_fields):
        raise EkgError("the searches of a front may differ in their targets alone.")
    for name in ("target_rate", "target_params"):
        values = [getattr(settings, name) for settings in all_settings]
        shares = [1.0 if value is None else value for value in values]
        if shares != sorted(shares, reverse=True):
            raise EkgError(
                f"`{name}` of a front must not rise from one target to the next; received {values}."
            )
    targets = [(settings.target_rate, settings.target_params) for settings in all_settings]
    if len(set(targets)) < len(targets):
        raise EkgError(f"a target of the front is given twice: {targets}.")


class SharedState:
    """Keeps what the ensemble knew after the last step that searches for harder targets share.

    Without the file, such a search takes one forward pass over D_val per shared entry instead.
    """

    def __init__(self, supernet, settings, state_file, shared_file, history):
        """
        Args:
            supernet: the Supernet.
            settings: SearchSettings of the search.
            state_file: pathlib.Path where the search keeps its knowledge after every step.
            shared_file: pathlib.Path of the copy.
            history: entries that the search starts from.
        """
        self._supernet, self._settings = supernet, settings
        self._state_file, self._shared_file = state_file, shared_file
        self._history = list(history)

    def add(self, entry):
        """Takes a new HistoryEntry, whose knowledge is not in the state file yet."""
        if not self._shared_file.exists() and self._is_near() and self._could_pass():
            shutil.copyfile(self._state_file, self._shared_file)
        self._history.append(entry)

    def _is_near(self):
        """Returns whether the target may be within a step: looking at all groups is not free."""
        rates = [entry.rate for entry in self._history]
        steps = [before - after for before, after in zip(rates, rates[1:])]
        return bool(steps) and (
            self._settings.target_params is not None
            or rates[-1] - NEAR * max(steps) <= self._settings.target_rate
        )

    def _could_pass(self):
        return could_pass(self._supernet, self._history, self._settings)


def count_shared(supernet, history, settings):
    """Returns how many entries of a history every search for a harder target has as well.

    Args:
        supernet: the Supernet.
        history: sequence of HistoryEntry of a search for this target or a harder one.
        settings: SearchSettings with the target.
    """
    target, narrowed = settings.targets(), collections.Counter()
    most_removed = np.array(
        [most_step(group, settings.search_step) for group in supernet.groups], np.int64
    )
    for count, entry in enumerate(history[:-1], 1):
        narrowed.update(entry.narrowed)
        present = entry.subnetwork
        # All groups are looked at only near the target: they are many in a large network.
        if not target.is_far(
            supernet, present, most_removed, settings.groups_per_step
        ) and _could_pass(supernet, present, narrowed, settings):
            return count
    return len(history)


def could_pass(supernet, history, settings):
    """Returns whether a candidate of the step after this history could fall below the target.

    The widths of a step do not depend on the data, only the choice of the groups that are tried
    does. All groups are looked at, so the answer may be True a step early; that costs the step and
    changes no result.
    """
    narrowed = collections.Counter(name for entry in history for name in entry.narrowed)
    return _could_pass(supernet, history[-1].subnetwork, narrowed, settings)


def _could_pass(supernet, present, narrowed, settings):
    counts = counts_by_width(supernet, present, settings.search_step, narrowed)
    candidates = [present.with_kept(group, count) for group, count in counts.items()]
    target = settings.targets()
    return target.could_pass(supernet, present, candidates, settings.groups_per_step)
