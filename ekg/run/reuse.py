"""Takes the finished search of one run into another, which fine-tunes the same sub-network in
another way.
"""

from ekg.errors import EkgError
from ekg.io import files
from ekg.run import folder as names
from ekg.run.arguments import TEST_DATA, differences

SEARCH_PHASES = [phase.name for phase in names.PHASES.values() if phase.is_search]
SEARCH_FILES = (names.SUPERNET, names.HISTORY, names.CURVES, names.PHASE_TIMES, names.SLIMMED)

MAY_BE_THERE = (names.LATENCY_TABLE,)  # where latency was aimed at


def check_search(source, arguments, training_settings):
    """Checks that a run with these arguments would search as the run in another folder did.

    Args:
        source: RunFolder of the other run.
        arguments: of this run, as its arguments.json holds them.
        training_settings: names of the arguments that a search does not depend on.

    Raises:
        EkgError: it would not, or the folder holds no finished search, or a damaged one.
    """
    what = f"`search_from` {source.path}"
    if not source.has(names.ARGUMENTS):
        raise EkgError(f"{what}: is no run folder: there is no {names.ARGUMENTS} in it.")
    if not all(source.has(name) for name in SEARCH_FILES):
        raise EkgError(f"{what}: its search is not finished; start it again with the same command.")
    old = source.arguments()
    if old.get("trained_param") is None:  # that run trained the network itself
        old["trained_param"] = files.sha256(source / names.BASELINE)
    apart = {*training_settings, TEST_DATA}
    differing = differences(
        *(
            {name: value for name, value in values.items() if name not in apart}
            for values in (old, arguments)
        )
    )
    if differing:
        raise EkgError(
            f"{what}: was searched with other arguments; repeat those, or leave `search_from` "
            f"out:{differing}"
        )
    for name in SEARCH_FILES:
        if not name.endswith(".jsonl"):  # the history is read below, and the others are only logs
            files.read_sealed(source / name)
    history = source.history()
    if not history or history[-1].rate > arguments["target_rate"]:
        raise EkgError(f"{what}: its {names.HISTORY} is cut short; put the file back.")


def take_search(target, source):
    """Copies what the search of another run left, so that this run resumes after it; see
    check_search.

    Its seconds and curves come along, so that the summary and the report are those of a whole run.

    Args:
        target: RunFolder of this run.
        source: RunFolder of the other.
    """
    for name in (*SEARCH_FILES, *(name for name in MAY_BE_THERE if source.has(name))):
        if name == names.CURVES:
            (target / name).unlink(missing_ok=True)
            for line in _search_lines(source / name):
                target.log_curves(line.pop("phase"), line.pop("step"), line)
        elif name == names.PHASE_TIMES:
            (target / name).unlink(missing_ok=True)
            for line in _search_lines(source / name):
                files.append_json_line(target / name, line)
        else:
            data = (source / name).read_bytes()
            files.write_whole(target / name, lambda file, data=data: file.write(data))


def _search_lines(path):
    return [
        line
        for line in files.read_report_lines(path, {"phase": str})
        if line["phase"] in SEARCH_PHASES
    ]
