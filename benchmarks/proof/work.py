"""The queue: which runs are finished, which are being made, and the next one."""

import dataclasses
import fnmatch
import logging
import sys

from analyses.runs import run_process
from ekg.process import stopping
from ekg.errors import EkgError
from ekg.run import folder as names
from ekg.run.lock import held

from benchmarks.proof import runs

logger = logging.getLogger(__name__)

FINISHED, RUNNING, BEGUN, WAITING = "finished", "running", "begun", "waiting"


def chosen(pattern="*"):
    """Returns the runs of the queue whose names match a pattern, as of a shell.

    Raises:
        EkgError: there is none.
    """
    found = [run for run in runs.queue() if fnmatch.fnmatchcase(run.name, pattern)]
    if not found:
        raise EkgError(f"`only` {pattern}: no run has such a name; status lists all.")
    return found


def state_of(run, place):
    """Returns one of FINISHED, RUNNING, BEGUN and WAITING."""
    if place.record(run).exists():
        return FINISHED
    if not place.folder(run).exists():
        return WAITING
    try:
        with held(place.folder(run)):
            is_begun = (place.folder(run) / names.ARGUMENTS).exists()
    except EkgError:
        return RUNNING
    return BEGUN if is_begun else WAITING


def work_off(todo, place, make):
    """Makes all runs that nobody has made or makes, one after the other, and returns the names of
    those that failed.

    Several of these may work at once: a run belongs to the process that holds the lock of its
        folder.

    Args:
        todo: list of runs.Run.
        place: setting.Place.
        make: function (run) -> exit code of the process that made it.

    Raises:
        Stopped: a signal asked this process to end.
    """
    failed = []
    for number, run in enumerate(todo):
        stopping.check()
        state = state_of(run, place)
        if state not in (BEGUN, WAITING):
            logger.info("%d/%d %s: %s", number + 1, len(todo), run.name, state)
            continue
        logger.info("%d/%d %s", number + 1, len(todo), run.name)
        code = make(run)
        stopping.check()
        if code and state_of(run, place) not in (FINISHED, RUNNING):  # another one was faster
            logger.error("%s ended with exit code %d.", run.name, code)
            failed.append(run.name)
    return failed


def make_in_process(place):
    """Returns a function that makes a run in a process of its own, so that memory and graphs go
    with it.
    """

    def make(run):
        flags = {field.name: getattr(place, field.name) for field in dataclasses.fields(place)}
        given = [
            text
            for name, value in flags.items()
            if value is not None
            for text in (f"--{name}", str(value))
        ]
        return run_process([sys.executable, "-m", "benchmarks.proof", "one", run.name, *given])

    return make


def run_all(place, pattern):
    """Makes the runs that match a pattern.

    Raises:
        EkgError: no run matches, or some failed.
        Stopped: a signal asked this process to end.
    """
    failed = work_off(chosen(pattern), place, make_in_process(place))
    if failed:
        raise EkgError(
            f"{len(failed)} runs failed: {', '.join(failed)}; see the log, and start the same "
            "command again."
        )


def describe(place, pattern):
    """Returns the state of the runs that match a pattern as text, one per line, and how many there
    are of each.
    """
    states = {run.name: state_of(run, place) for run in chosen(pattern)}
    counts = {state: list(states.values()).count(state) for state in dict.fromkeys(states.values())}
    lines = [f"{name}: {state}" for name, state in states.items()]
    return "\n".join([*lines, ", ".join(f"{count} {state}" for state, count in counts.items())])
