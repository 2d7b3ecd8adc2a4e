"""Records of finished runs: small JSON files with arguments, results, machine and durations."""

import dataclasses
import logging
import shlex
from pathlib import Path

import op_utils
from analyses.published import ILSVRC
from ekg.errors import EkgError
from ekg.io import files
from ekg.run.folder import RunFolder, Unfinished

logger = logging.getLogger(__name__)

NETWORK = ("arch", "dataset")
GIVEN = "PARAMS"  # placeholder of a parameter file in a command line
RECORD = "record.json"  # in the folder of a benchmark that is no run of the training scripts
# Images with the name of a data set that are not the original ones: start of a hash -> description
ALTERED = {
    "3d6231d845eb6f21": "CIFAR10 after JPEG compression",
    "04ee99b9bbe58ee7": "CIFAR10 after JPEG compression, 1 000 of each class",
}

# What a teacher of search or fine-tuning is called in tables
TAUGHT_BY = {"ensemble": "ensemble", "single": "unpruned network", "none": "labels alone"}


def data_name(sample, dataset):
    """Returns the name of a data set, or the description of its altered images.

    Args:
        sample: hash of some of its images.
        dataset: name of the data set.
    """
    return ALTERED.get(sample[:16], dataset)


class NoRecord(EkgError):
    """A run that has no record, and that can be skipped."""


class JsonRecord:
    """Base class of dataclasses with `name` and `arguments` that are stored as JSON files."""

    KIND: str  # description for messages

    @classmethod
    def read(cls, path):
        """Returns the object in a file of write().

        Raises:
            EkgError: the file is damaged, or holds something else.
        """
        try:
            return cls(**files.read_json(path))
        except TypeError:
            raise EkgError(f"{path}: is no {cls.KIND}.") from None

    def write(self, path):
        """Writes the object to a JSON file."""
        files.write_json(path, dataclasses.asdict(self))

    def keep(self, folder):
        """Writes the object into a folder, as NAME.json.

        Raises:
            EkgError: the folder has a different object with this name.
        """
        path = folder / f"{self.name}.json"
        old_arguments = self.read(path).arguments if path.exists() else self.arguments
        if old_arguments != self.arguments:
            differing = ", ".join(
                name
                for name in self.arguments | old_arguments
                if self.arguments.get(name) != old_arguments.get(name)
            )
            raise EkgError(
                f"{path}: another {self.name} is kept there, with other {differing}; rename a "
                "folder, or remove that file first."
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.write(path)


@dataclasses.dataclass(frozen=True)
class Record(JsonRecord):
    """The record of a finished run.

    Attributes:
        name: name of its folder.
        arguments: all arguments on which its result depends.
        table: rows of its final table, list of dicts: baseline, slimmed network and, if it was
            trained, fine-tuned one.
        steps: number of search steps.
        phases: {phase: {"seconds", "peak_memory_mib"}}.
        curve: first metric on D_val after every epoch of fine-tuning, list.
        origin: {"revision", "machine", "cores"}; empty if the run did not record them.
        given_command: command line, if the run is none of the training scripts.
        val_loss: validation loss of the last sub-network in nats; None without a search.
    """

    name: str
    arguments: dict
    table: list
    steps: int
    phases: dict
    curve: list
    origin: dict
    given_command: str | None = None
    val_loss: float | None = None

    KIND = "record of a run"

    @classmethod
    def of_run(cls, path):
        """Returns the Record of a run folder.

        Raises:
            Unfinished: the run is not finished.
            NoRecord: the run is none of the training scripts.
            EkgError: the folder is no run folder, or it is damaged.
        """
        run = RunFolder(path).read_finished()
        if "trained_param" not in run.arguments:
            raise NoRecord(
                f"{path}: is a run of `ekg.prune`, and the tables are of the training scripts; "
                f"its report is drawn by: python analyze.py run {path}"
            )
        return cls.of_finished(Path(path).resolve().name, run)

    @classmethod
    def of_finished(cls, name, run, **changes):
        """Returns the Record of a page.FinishedRun, with `changes` instead of its attributes."""
        measured = f"val_{run.metric}"
        curve = [
            line[measured]
            for line in run.curves
            if line["phase"] == "fine-tune" and measured in line
        ]
        attributes = {
            "name": name,
            "arguments": run.arguments,
            "table": [dataclasses.asdict(row) for row in run.table],
            "steps": len(run.history) - 1,
            "phases": run.phases,
            "curve": curve,
            "origin": run.origin,
            "val_loss": run.history[-1].loss,
        }
        return cls(**attributes | changes)

    # ---------------------------------------------------------------- contents of tables

    @property
    def rate(self):
        """Share of the FLOPs that is kept."""
        return self.table[-1]["flops"] / self.table[0]["flops"]

    def top1(self, row):
        """Returns the top-1 of a row of the table in %."""
        return 100 * self.table[row]["metrics"]["top1"]

    @property
    def method(self):
        """Criterion and teachers, as text; a teacher of both search and fine-tuning comes once."""
        names = (self.arguments["search_teacher"], self.arguments["finetune_teacher"])
        search, fine_tuning = (TAUGHT_BY.get(name) for name in names)
        if search in (None, fine_tuning):
            return f"{self.arguments['criterion']}, {fine_tuning}"
        return f"{self.arguments['criterion']}, search with {search}, then {fine_tuning}"

    @property
    def teachers(self):
        """Teachers of search and fine-tuning, as text; without a search, of fine-tuning alone."""
        teachers = (self.arguments["search_teacher"], self.arguments["finetune_teacher"])
        return " / ".join(filter(None, teachers))

    @property
    def minutes(self):
        """{phase: minutes}."""
        return {phase: value["seconds"] / 60 for phase, value in self.phases.items()}

    @property
    def data(self):
        """The name of the data; altered images have another name than the original ones."""
        sample = self.arguments.get("data", {}).get("sample", "")
        return data_name(sample, self.arguments["dataset"])

    @property
    def is_original(self):
        """Whether the images are the original ones of the data set."""
        return self.data == self.arguments["dataset"]

    @property
    def command(self):
        """The command line of the run, without paths."""
        if self.given_command is not None:
            return self.given_command
        script = "train_imagenet.py" if self.arguments["dataset"] == ILSVRC else "train_cifar.py"
        flags = [f"--{name} {self.arguments[name]}" for name in NETWORK]
        if self.arguments["trained_param"]:
            flags.append(f"--trained_param {GIVEN}")
        for cls in op_utils.SHARED_FLAGS.values():
            for field in dataclasses.fields(cls):
                name = field.name
                if name == "trained_param" or name not in self.arguments:
                    continue
                if _as_json(self.arguments[name]) != _as_json(field.default):
                    flags.append(flag(name, self.arguments[name]))
        return f"python {script} {' '.join(flags)}"


def _as_json(value):
    """Returns a tuple as a list, which JSON has instead."""
    return list(value) if isinstance(value, tuple) else value


def device_name(origin):
    """Returns the GPUs of an arguments.origin(), or else its cores and processor, as text."""
    if not origin:
        return ""
    machine = origin["machine"]
    if machine["gpus"]:
        return ", ".join(machine["gpus"])
    return f"{counted(origin['cores'], 'core')}, {machine['processor']}"


def provenance_cells(origins):
    """Returns the cells for machine, versions and revision of a list of (origin, versions)."""
    cells = []
    for origin, versions in origins:
        version_texts = [f"{name} {value}" for name, value in versions.items()]
        revision = (origin.get("revision") or "")[:7]
        cells.append((device_name(origin), ", ".join(version_texts), revision))
    return ["; ".join(dict.fromkeys(column)) for column in zip(*cells)]


def counted(number, noun):
    """Returns a number with its noun, as in "1 core" and "2 cores"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def flag(name, value):
    """Returns an argument as it is written on a command line."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    entries = value if isinstance(value, list) else [value]
    return f"--{name} {shlex.join(map(str, entries))}"


# ---------------------------------------------------------------- collecting records


def collect(paths, out=None):
    """Returns the Records of run folders, folders with a record, and record files.

    Folders without a finished run of a training script are skipped with a warning.

    Args:
        paths: list of folders and files, pathlib.Path.
        out: pathlib.Path of a folder in which each is stored as NAME.json, or None.

    Raises:
        EkgError: a path has no record, a different record with the same name is stored already, or
            all paths were skipped.
    """
    records = []
    reasons = []
    for path in paths:
        try:
            record = _record_of(path)
        except (NoRecord, Unfinished) as reason:
            reasons.append(str(reason))
            continue
        records.append(record)
        if out is not None:
            record.keep(out)
    if reasons and not records:
        raise EkgError(reasons[0])
    for reason in reasons:
        logger.warning("left out: %s", reason)
    return records


def _record_of(path):
    """Returns the Record of a run folder, of a folder with a record, or of a file."""
    if path.is_dir() and (path / RECORD).exists():
        path = path / RECORD
    return Record.read(path) if path.is_file() else Record.of_run(path)
