"""Reads and writes the folder of a run: arguments.json first, then what each phase makes.

The names of its files and of the phases stand here and nowhere else.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import time
from pathlib import Path

from ekg.errors import EkgError
from ekg.io import files
from ekg.process.memory import Peak
from ekg.report.page import FinishedRun
from ekg.report.table import Row
from ekg.run.arguments import TEST_DATA, differences
from ekg.run.choice import CUT
from ekg.run.events import EventFiles
from ekg.run.lock import LOCK, held
from ekg.searching.history import HistoryEntry
from ekg.train.checkpoints import Checkpoints

logger = logging.getLogger(__name__)

ARGUMENTS = "arguments.json"  # all that the result depends on
ENVIRONMENTS = "environments.jsonl"  # a line per machine it ran on, which sets the last digits
BASELINE = "baseline_param.pkl"  # the trained network, if none was given
SUPERNET = "supernet_param.pkl"  # the weights that were searched
HISTORY = "history.jsonl"  # a line per search step
SEARCH_STATE = "search_state.npz"  # the knowledge of the ensemble, for a search that resumes
# The knowledge after the last step that a search toward less has as well
SHARED_STATE = "shared_state.npz"
LATENCY_TABLE = "latency_table.json"  # times of the network's kernels, where latency is aimed at
BANK = "memory_bank"
SLIMMED = "slimmed_param.pkl"  # Θ* before training
SLIMMED_KERAS = "slimmed_param.keras"  # the same, where that is the result
TRAINED = "trained_param.pkl"  # Θ* after training
TRAINED_KERAS = "trained_param.keras"
UNFINISHED_KERAS = "unfinished.keras"
UNFINISHED_PARAM = "unfinished_param.pkl"
CURVES = "curves.jsonl"
EVENTS = "events"
PHASE_TIMES = "phases.jsonl"  # seconds and memory of each phase
CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"
EXPORTED = "exported"  # the networks in deployment formats
REPORT_PICTURE = "report.png"
REPORT_PAGE = "report.html"
CONDITION = "condition.json"  # of an analysis


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of a run.

    Attributes:
        name: its name in logs, curves and checkpoints.
        files: names of all that it leaves in the folder besides checkpoints.
        last_file: name of the file that says that it is over.
        less_memory: advice that lowers the memory that it needs.
        is_search: whether it belongs to the search, which another run may take over.
    """

    name: str
    files: tuple[str, ...]
    last_file: str
    less_memory: str
    is_search: bool = False


_LESS_FOR_SEARCH = "lower `search_batch_size` or raise `accum`"
_LESS_FOR_TRAINING = "lower `batch_size` or raise `accum`"
_FINE_TUNED = (TRAINED, TRAINED_KERAS, UNFINISHED_KERAS, UNFINISHED_PARAM)
# All phases in the order in which they run. The history of a search says nothing about its end: the
# network that is cut out after it does.
PHASES = {
    phase.name: phase
    for phase in (
        Phase("baseline", (BASELINE,), BASELINE, _LESS_FOR_TRAINING),
        Phase("subset", (SUPERNET,), SUPERNET, _LESS_FOR_SEARCH, is_search=True),
        Phase(
            "search",
            (HISTORY, SEARCH_STATE, SHARED_STATE, LATENCY_TABLE),
            SLIMMED,
            _LESS_FOR_SEARCH,
            is_search=True,
        ),
        Phase("slim", (SLIMMED, SLIMMED_KERAS), SLIMMED, _LESS_FOR_SEARCH, is_search=True),
        Phase("bank", (BANK,), BANK, _LESS_FOR_SEARCH),
        Phase("fine-tune", _FINE_TUNED, TRAINED, _LESS_FOR_TRAINING),
        Phase(
            "report",
            (SUMMARY, EXPORTED, REPORT_PICTURE, REPORT_PAGE),
            SUMMARY,
            "lower `val_batch_size`",
        ),
    )
}
# What the lines of a file must hold.
CURVE_ENTRIES, PHASE_ENTRIES = {"phase": str, "step": int}, {"phase": str, "seconds": (int, float)}
STEP_ENTRIES = {
    "step": int,
    "rate": (int, float),
    "loss": (int, float),
    "accuracy": (int, float),
    "reward": (int, float),
    "seconds": (int, float),
}
LEGACY_FILES = ("search_state.pkl",)  # written by earlier versions
ARGUMENTS_ADDED_LATER = (TEST_DATA,)  # arguments that folders of earlier versions lack
# What starting from scratch removes; anything else that a user put into the folder stays.
# arguments.json is the last to go.
OWN_NAMES = (
    *(name for phase in PHASES.values() for name in phase.files),
    CURVES,
    EVENTS,
    PHASE_TIMES,
    CHECKPOINTS,
    CONDITION,
    ENVIRONMENTS,
    *LEGACY_FILES,
    ARGUMENTS,
)


class Unfinished(EkgError):
    """A run that is not finished and may resume."""


class RunFolder:
    """Everything a run leaves. Making this object neither reads nor writes the folder.

    Attributes:
        path: pathlib.Path of the folder.
    """

    def __init__(self, path):
        self.path, self._events, self._logged, self._lock = Path(path), None, None, None

    @classmethod
    def create(cls, path, arguments):
        """Returns the RunFolder of a new run in a new or empty folder.

        Args:
            path: the folder.
            arguments: {name: value that goes to JSON} of everything that changes the result.

        Raises:
            EkgError: the folder holds something, or cannot be written.
        """
        folder = cls(path)
        files.check_name(path)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            if folder.holds_run():
                raise EkgError(f"{path}: is not empty, it holds a run; name a new folder.")
            folder.check_may_begin()
            files.write_json(folder / ARGUMENTS, arguments)
        except OSError as error:
            raise EkgError(f"{path}: cannot be written ({error.strerror}).") from None
        return folder

    @classmethod
    def open(cls, path, arguments=None, advice="name another folder"):
        """Returns the RunFolder of a run that is there.

        Args:
            path: the folder.
            arguments: those that the run must have; None takes any.
            advice: what to do besides repeating the arguments.

        Raises:
            EkgError: the folder holds no run, or one of other arguments: each that differs is
                named.
        """
        folder = cls(path)
        if not folder.holds_run():
            folder._check_not_damaged()
            raise EkgError(f"{path}: is no run folder: there is no {ARGUMENTS} in it.")
        if arguments is not None:
            old = folder.arguments()
            differing = differences(
                old,
                {
                    name: value
                    for name, value in arguments.items()
                    if name in old or name not in ARGUMENTS_ADDED_LATER
                },
            )
            if differing:
                raise EkgError(
                    f"{path}: holds a run with other arguments; repeat those, or "
                    f"{advice}:{differing}"
                )
        return folder

    @classmethod
    def prepare(cls, path, arguments, overwrite=False, advice="name another folder"):
        """Returns the RunFolder of a run that begins or resumes here; see create() and open().

        What a killed run left of files it was writing goes.

        Args:
            path: the folder.
            arguments: of the run.
            overwrite: whether a run that is there is removed first.
            advice: see open().
        """
        folder = cls(path)
        try:
            is_run = folder.holds_run()
            if is_run and not overwrite:
                cls.open(path, arguments, advice)  # before anything is removed
            folder.remove_unfinished_files()
            if is_run and overwrite:
                folder.remove_run()
                files.write_json(folder / ARGUMENTS, arguments)
            if is_run:
                return folder
        except OSError as error:
            raise EkgError(f"{path}: cannot be written ({error.strerror}).") from None
        return cls.create(path, arguments)

    def __truediv__(self, name):
        return self.path / name

    def has(self, name):
        return (self / name).exists()

    def holds_run(self):
        """Returns whether a run was begun in this folder."""
        path = self / ARGUMENTS
        return path.is_file() and f'"{files.CHECKSUM}"'.encode() in path.read_bytes()

    def check_may_begin(self):
        """Raises EkgError unless a run may begin or resume here: the folder is not there, or empty,
        or holds one.
        """
        files.check_name(self.path)
        if self.holds_run() or not self.path.exists():
            return
        if not self.path.is_dir():
            raise EkgError(f"{self.path}: cannot be written (Not a directory).")
        self._check_not_damaged()
        if not all(path.name == LOCK or _is_unfinished(path.name) for path in self.path.iterdir()):
            raise EkgError(f"{self.path}: is not empty and holds no run; name a new folder.")

    def _check_not_damaged(self):
        """Raises EkgError where there is a run whose arguments cannot be read."""
        if self.has(ARGUMENTS) and any(map(self.has, (LOCK, ENVIRONMENTS, SUPERNET, HISTORY))):
            raise EkgError(
                f"{self / ARGUMENTS}: damaged, so that the run cannot be resumed; put the file "
                "back, or name a new folder."
            )

    @contextlib.contextmanager
    def locked(self):
        """Holds the lock of the folder, which is made if it is not there, while it lasts; see
        lock.held().

        Raises:
            EkgError: no run may begin or resume here, or another one works here.
        """
        self.check_may_begin()
        with held(self.path) as self._lock:
            try:
                yield
            finally:
                self._lock = None

    def check_place(self):
        """Raises EkgError if this process has locked the folder and another one, or none, is at its
        path now.
        """
        if self._lock is not None:
            self._lock.check_place()

    def arguments(self):
        """Returns the arguments of the run.

        Raises:
            EkgError: their file is damaged.
        """
        return files.read_json(self / ARGUMENTS)

    def is_searched(self):
        """Returns whether the search has finished."""
        return (
            any(self.has(name) for name in (SLIMMED, TRAINED, SUMMARY))
            or self.checkpoints("fine-tune").exists()
        )

    def checkpoints(self, phase):
        """Returns the pathlib.Path where the checkpoints of a phase lie."""
        return self / CHECKPOINTS / phase

    # ---------------------------------------------------------------- what goes

    def remove_unfinished_files(self):
        """Removes what a killed run left of files it was writing."""
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if _is_unfinished(path.name):
                path.unlink()
        for name in (BANK, CHECKPOINTS, EXPORTED, EVENTS):
            for path in [
                *(self / name).rglob(".*.*"),
                *(self / name).rglob("ckpt-*_temp"),
            ]:  # the last are TensorFlow's
                files.remove(path)

    def remove_run(self):
        """Removes the run, but for arguments.json, which says that this is a run, and is written
        over.
        """
        for name in OWN_NAMES[:-1]:
            files.remove(self / name)

    def restart(self, phase):
        """Removes what a phase and all after it left, so that they begin again.

        Args:
            phase: one of PHASES.
        """
        order = list(PHASES)
        gone = order[order.index(phase) :]
        for file in (self / CURVES, self / PHASE_TIMES):
            if file.exists():
                files.write_json_lines(
                    file,
                    [
                        line
                        for line in files.read_report_lines(file, {"phase": str})
                        if line["phase"] not in gone
                    ],
                )
        # The last first: a run that is killed here lacks the end and not the middle.
        for name in reversed(gone):
            for path in (*(self / file for file in PHASES[name].files), self.checkpoints(name)):
                files.remove(path)
        self._logged = None

    # ------------------------------------------ what is written and read line by line

    def history(self):
        """Returns the list of HistoryEntry that is there by now.

        Raises:
            EkgError: the file is damaged, or its steps do not follow one another, as where two runs
                wrote it.
        """
        lines = (
            files.read_json_lines(self / HISTORY, kinds=STEP_ENTRIES) if self.has(HISTORY) else []
        )
        steps = [line["step"] for line in lines]
        if steps != list(range(len(lines))):
            wrong = next(i for i, step in enumerate(steps) if step != i)
            raise EkgError(
                f"{self / HISTORY}: line {wrong + 1} holds step {steps[wrong]} where step {wrong} "
                "is due; was it written by two runs? Put a good copy there, or start again in "
                "another folder."
            )
        return [self._entry_of(line) for line in lines]

    def _entry_of(self, line):
        try:
            return HistoryEntry.from_json(line)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            raise EkgError(
                f"{self / HISTORY}: line {line['step'] + 1} holds no search step of this program; "
                "put the file back, or start again in another folder."
            ) from None

    def append_history(self, entry):
        files.append_json_line(self / HISTORY, entry.to_json())

    @contextlib.contextmanager
    def timed(self, phase, is_kept=True):
        """Keeps what a phase took, even if it is stopped.

        Gives a dict that has "seconds" and "peak" after the block.

        Args:
            phase: its name.
            is_kept: whether it is written into the folder: of several processes the chief alone
                writes.
        """
        start, taken = time.perf_counter(), {"peak": Peak()}

        def keep():
            taken["seconds"] = time.perf_counter() - start
            if is_kept:
                self.log_phase(phase, **taken)

        try:
            with taken["peak"]:
                yield taken
        except BaseException:
            with contextlib.suppress(EkgError):  # what ended the phase is what matters
                keep()
            raise
        self.check_place()
        keep()

    def log_phase(self, phase, seconds, peak):
        """Appends what a phase, or a part of it, took: seconds and memory.Peak."""
        files.append_json_line(
            self / PHASE_TIMES,
            {
                "phase": phase,
                "seconds": round(seconds, 1),
                "peak_memory_mib": round(peak.host_mib),
                "peak_gpu_mib": round(peak.gpu_mib),
            },
        )

    def phases(self):
        """Returns {phase: {"seconds", "peak_memory_mib", "peak_gpu_mib"}}, its parts taken
        together.
        """
        phases = {}
        for line in files.read_report_lines(self / PHASE_TIMES, PHASE_ENTRIES):
            phase = phases.setdefault(
                line["phase"], {"seconds": 0.0, "peak_memory_mib": 0, "peak_gpu_mib": 0}
            )
            phase["seconds"] = round(phase["seconds"] + line["seconds"], 1)
            for name in ("peak_memory_mib", "peak_gpu_mib"):
                value = line.get(name)  # earlier versions did not keep that of a GPU
                phase[name] = max(phase[name], value if isinstance(value, int | float) else 0)
        return phases

    def log_curves(self, phase, step, values):
        """Appends {name: number} of one step or epoch to curves.jsonl and to the TensorBoard event
        files, once.

        A run that resumes calls it again for the last thing it finished: it may have been killed
        before its line was there.
        """
        file = self / CURVES
        if self._logged is None:
            lines = files.read_report_lines(file, CURVE_ENTRIES)
            self._logged = {(line["phase"], line["step"]) for line in lines}
            has_tensorboard = importlib.util.find_spec("tensorboard") is not None
            self._events = EventFiles(self / EVENTS, lines) if has_tensorboard else None
        line = {"phase": phase, "step": step, **values}
        if (phase, step) not in self._logged:
            files.append_json_line(file, line)
            self._logged.add((phase, step))
            if self._events is not None:
                self._events.add(line)

    # ---------------------------------------------------------------- a finished run

    def table(self):
        """Returns the rows of the final table.

        Raises:
            EkgError: its file is damaged.
        """
        try:
            return [
                Row.from_json(row)
                for row in files.read_json(self / SUMMARY, {"table": list})["table"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise EkgError(
                f"{self / SUMMARY}: holds no table of this program; put the file back, or start "
                "again in another folder."
            ) from None

    def describe_progress(self):
        """Returns in words what a run has done that is not finished, as "search step 12"."""
        position = Checkpoints(self.checkpoints("fine-tune")).restore()
        if self.has(TRAINED):
            return "the fine-tuning"
        if position is not None:
            epoch, step = position["epoch"], position["step"]
            return (
                f"step {step} of epoch {epoch + 1} of the fine-tuning"
                if step
                else f"epoch {epoch} of the fine-tuning"
            )
        history = self.history()
        if self.has(SLIMMED):
            return f"all {len(history) - 1} steps of the search"
        return f"search step {len(history) - 1}" if history else "its start, before the search"

    def hands_out_cut(self):
        """Returns whether a finished run hands out the network that was cut out, as fine-tuning
        made it worse.
        """
        choice = files.read_json(self / SUMMARY).get("choice") if self.has(SUMMARY) else None
        return choice is not None and choice["name"] == CUT

    def read_finished(self):
        """Returns the FinishedRun of the folder.

        Raises:
            Unfinished: the run is not finished.
            EkgError: it is no run folder.
        """
        arguments = RunFolder.open(self.path).arguments()
        if not self.has(SUMMARY):
            raise Unfinished(
                f"{self.path}: the run is not finished; start it again with the same command."
            )
        if not all(isinstance(arguments.get(name), str) for name in ("arch", "dataset")):
            raise EkgError(
                f"{self / ARGUMENTS}: names no network and no data set; put the file back."
            )
        summary = files.read_json(self / SUMMARY, {"phases": dict})
        return FinishedRun(
            arguments,
            self.history(),
            files.read_report_lines(self / CURVES, CURVE_ENTRIES),
            self.table(),
            summary["phases"],
            summary.get("origin", {}),
            summary.get("choice"),
        )


def _is_unfinished(name):
    """Returns whether this is the name of a file that was being written; see
    files.write_whole().
    """
    return any(name.startswith(f".{own}.") for own in OWN_NAMES)
