"""Takes the finished search of one run into another.

The other run fine-tunes the same sub-network in another way, or searches toward another share of
the FLOPs or parameters and repeats only the steps in which both searches differ.
"""

import dataclasses
import json
import logging

from ekg.errors import EkgError, first_line
from ekg.io import files
from ekg.run import folder as names
from ekg.run.arguments import TEST_DATA, differences
from ekg.run.folder import RunFolder
from ekg.searching.front import count_shared

logger = logging.getLogger(__name__)

SEARCH_PHASES = [phase.name for phase in names.PHASES.values() if phase.is_search]
SEARCH_FILES = (names.SUPERNET, names.HISTORY, names.CURVES, names.PHASE_TIMES, names.SLIMMED)
TARGETS = ("target_rate", "target_params")  # arguments that say where a search ends


def check_search(source, arguments, training_settings, may_differ=False):
    """Checks that a run with these arguments would search as the run in another folder did.

    Args:
        source: RunFolder of the other run.
        arguments: of this run, as its arguments.json holds them.
        training_settings: names of the arguments that a search does not depend on.
        may_differ: whether the shares of FLOPs and parameters to keep may be others; only the steps
            that both searches have in common are taken over then.

    Raises:
        EkgError: it would not, or the folder holds no finished search, or a damaged one.
    """
    what = f"`search_from` {source.path}"
    if not source.has(names.ARGUMENTS):
        raise EkgError(f"{what}: is no run folder: there is no {names.ARGUMENTS} in it.")
    if not all(source.has(name) for name in SEARCH_FILES):
        raise EkgError(f"{what}: its search is not finished; start it again with the same command.")
    old = source.arguments()
    apart = {*training_settings, TEST_DATA, *(TARGETS if may_differ else ())}
    differing = _differences(source, old, arguments, apart)
    if differing:
        raise EkgError(
            f"{what}: was searched with other arguments; repeat those, or leave `search_from` "
            f"out:{differing}"
        )
    for name in SEARCH_FILES:
        if not name.endswith(".jsonl"):  # the history is read below, and the others are only logs
            files.read_sealed(source / name)
    history = source.history()
    if not history or history[-1].rate > old["target_rate"]:
        raise EkgError(f"{what}: its {names.HISTORY} is cut short; put the file back.")


def _differences(source, old, arguments, apart):
    """Returns a line for every argument in which a run differs from another one.

    Args:
        source: RunFolder of the other run.
        old: its arguments.
        arguments: of this run.
        apart: names that may differ.
    """
    if "trained_param" in arguments and old.get("trained_param") is None:  # it was trained there
        old = {**old, "trained_param": files.sha256(source / names.BASELINE)}
    return differences(
        *(
            {name: value for name, value in values.items() if name not in apart}
            for values in (old, arguments)
        )
    )


def find_banks(target, arguments, search_from, training_settings):
    """Returns a list of (folder of a memory bank, history of its search): of the run whose search
    is taken over, and of those beside it with the same search but for its target.

    Args:
        target: RunFolder of this run.
        arguments: of this run.
        search_from: pathlib.Path of that run, or None for no bank.
        training_settings: names of the arguments that a search does not depend on.
    """
    if search_from is None:
        return []
    found, arguments = [], json.loads(json.dumps(arguments))
    apart = {*training_settings, TEST_DATA, *TARGETS}
    beside = sorted(path for path in search_from.parent.glob("*") if path != search_from)
    for source in map(RunFolder, [search_from, *beside]):
        if source.path.resolve() == target.path.resolve():
            continue
        try:
            if not source.has(names.BANK) or not source.holds_run():
                continue
            if not _differences(source, source.arguments(), arguments, apart):
                found.append((source / names.BANK, source.history()))
        except (EkgError, OSError) as error:  # the bank can be built without it
            logger.info("%s: its memory bank is not used: %s", source.path, first_line(error))
    return found


def count_common_steps(source, job):
    """Returns how many entries of the history in another folder the search of a job has as well.

    None means all of them: both have the same target.

    Args:
        source: RunFolder of the other run, see check_search().
        job: Job.
    """
    old, settings = source.arguments(), job.settings.search
    theirs = dataclasses.replace(settings, **{name: old.get(name) for name in TARGETS})
    if theirs == settings:
        return None
    history = source.history()
    return min(count_shared(job.supernet, history, each) for each in (theirs, settings))


def take_search(target, source, num_steps=None):
    """Copies what the search of another run left, so that this run resumes after it.

    Its seconds and curves come along, so that the summary and the report are those of a whole run.

    Args:
        target: RunFolder of this run.
        source: RunFolder of the other, see check_search().
        num_steps: entries of the history to take, as count_common_steps() returns; None takes the
            whole search and the network that was cut out.
    """
    if num_steps is not None and target.has(names.HISTORY):
        return  # an earlier start took them, and this run may have come further
    last_step = None if num_steps is None else num_steps - 1
    _copy(source / names.SUPERNET, target / names.SUPERNET)
    (target / names.CURVES).unlink(missing_ok=True)
    for line in _search_lines(source / names.CURVES):
        if line["phase"] == "subset" or last_step is None or line["step"] <= last_step:
            target.log_curves(line.pop("phase"), line.pop("step"), line)
    (target / names.PHASE_TIMES).unlink(missing_ok=True)
    for line in _search_lines(source / names.PHASE_TIMES):
        if last_step is None or line["phase"] == "subset":
            files.append_json_line(target / names.PHASE_TIMES, line)
    if num_steps is None:
        if source.has(names.LATENCY_TABLE):  # where latency was aimed at
            _copy(source / names.LATENCY_TABLE, target / names.LATENCY_TABLE)
        _copy(source / names.HISTORY, target / names.HISTORY)
        _copy(source / names.SLIMMED, target / names.SLIMMED)
        return
    for name in (names.SHARED_STATE, names.SEARCH_STATE):
        if source.has(name):  # a state of more entries than these is not used
            _copy(source / name, target / names.SEARCH_STATE)
            break
    history = source.history()[:num_steps]
    seconds = round(sum(entry.seconds for entry in history), 3)
    files.append_json_line(target / names.PHASE_TIMES, {"phase": "search", "seconds": seconds})
    # Last, and at once: a history that is there is complete.
    lines = (source / names.HISTORY).read_bytes().splitlines(keepends=True)[:num_steps]
    files.write_whole(target / names.HISTORY, lambda file: file.writelines(lines))


def _copy(source, target):
    data = source.read_bytes()
    files.write_whole(target, lambda file: file.write(data))


def _search_lines(path):
    return [
        line
        for line in files.read_report_lines(path, {"phase": str})
        if line["phase"] in SEARCH_PHASES
    ]
