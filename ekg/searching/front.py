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

from ekg.errors import EkgError
from ekg.searching.greedy import search
from ekg.searching.proposals import counts_by_width


@dataclasses.dataclass(frozen=True)
class SharedSteps:
    """The steps of a finished search that every search for a harder target makes as well.

    Attributes:
        history: tuple of HistoryEntry, at least that of the whole network.
        state_file: pathlib.Path of what the ensemble knew after them; it may be missing, which
            costs one forward pass over D_val per entry.
    """

    history: tuple
    state_file: Path


def search_front(supernet, data, all_settings, *, seed=0, compute=None, on_step=None):
    """Returns a list of SearchResult, one per target, each equal to that of a separate search.

    Args:
        supernet: the Supernet.
        data: data.Dataset; D_val is taken from its training split.
        all_settings: list of SearchSettings that differ in `target_rate` and `target_params`
            alone, from the easiest target to the hardest.
        seed: of the order of D_val.
        compute: see search().
        on_step: function (index of the target, HistoryEntry), called with every new entry.

    Raises:
        EkgError: the targets are not in order; or see search().
    """
    check_order(all_settings)
    results, shared = [], None
    with tempfile.TemporaryDirectory(prefix="ekg-front-") as folder:
        for index, settings in enumerate(all_settings):
            files = StateFiles(Path(folder) / str(index))
            files.folder.mkdir()
            step = None if on_step is None else lambda entry, index=index: on_step(index, entry)
            result, shared = search_point(
                supernet, data, settings, files, shared, seed=seed, compute=compute, on_step=step
            )
            results.append(result)
    return results


def check_order(all_settings):
    """Raises EkgError unless each of these SearchSettings has a harder target than the one before.

    Args:
        all_settings: list of SearchSettings.
    """
    if not all_settings:
        raise EkgError("a front needs at least one target.")
    shared_fields = [
        dataclasses.replace(settings, target_rate=1.0, target_params=None)
        for settings in all_settings
    ]
    if any(fields != shared_fields[0] for fields in shared_fields):
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


@dataclasses.dataclass(frozen=True)
class StateFiles:
    """Where the search for one target of a front keeps what the ensemble knows.

    Attributes:
        folder: pathlib.Path of a folder.
    """

    folder: Path

    @property
    def last(self):
        """pathlib.Path of the knowledge after the last step."""
        return self.folder / "search_state.npz"

    @property
    def shared(self):
        """pathlib.Path of the knowledge after the last step that harder targets share."""
        return self.folder / "shared_state.npz"


def search_point(
    supernet, data, settings, files, shared=None, *, seed=0, compute=None, history=(), **options
):
    """Returns (SearchResult for one target of a front, SharedSteps for the next one).

    Args:
        supernet: the Supernet.
        data: data.Dataset.
        settings: SearchSettings of this target.
        files: StateFiles of this target.
        shared: SharedSteps of the target before; None for the first.
        seed: of the order of D_val.
        compute: see search().
        history: entries that an earlier part of this search left; without any, those of `shared`
            are taken over and reported to `on_step` as new ones.
        options: on_step and objective; see search().
    """
    report = options.pop("on_step", None) or (lambda entry: None)
    entries = list(history)
    if not entries and shared is not None:
        if shared.state_file.exists():
            shutil.copyfile(shared.state_file, files.last)
        for entry in shared.history:
            report(entry)
            entries.append(entry)

    def keep(entry):
        # The file on disk is still that of the entries before this one.
        if not files.shared.exists() and could_pass(supernet, entries, settings):
            shutil.copyfile(files.last, files.shared)
        report(entry)
        entries.append(entry)

    result = search(
        supernet,
        data,
        settings,
        seed=seed,
        compute=compute,
        history=entries,
        on_step=keep,
        state_file=files.last,
        **options,
    )
    num_shared = count_shared(supernet, result.history, settings)
    if num_shared == len(result.history):
        shutil.copyfile(files.last, files.shared)
    return result, SharedSteps(result.history[:num_shared], files.shared)


def count_shared(supernet, history, settings):
    """Returns how many entries of a history any search for a harder target has as well.

    Args:
        supernet: the Supernet.
        history: sequence of HistoryEntry of a finished search.
        settings: its SearchSettings.
    """
    for count in range(1, len(history)):
        if could_pass(supernet, history[:count], settings):
            return count
    return len(history)


def could_pass(supernet, history, settings):
    """Returns whether a candidate of the step after this history could fall below the target.

    The widths of a step do not depend on the data, only which groups are tried does: all groups are
    looked at, so the answer may be True a step early. That costs a step, and no accuracy.
    """
    if not history:
        return False
    target = settings.targets()
    present = history[-1].subnetwork
    narrowed = collections.Counter(name for entry in history for name in entry.narrowed)
    counts = counts_by_width(supernet, present, settings.search_step, narrowed)
    candidates = [present.with_kept(group, count) for group, count in counts.items()]
    return target.could_pass(supernet, present, candidates, settings.groups_per_step)
