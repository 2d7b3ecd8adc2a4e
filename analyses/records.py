"""What stays of a finished run as evidence: a small JSON file that tells what was run, how it
ended, where and how long.
"""

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

NETWORK, GIVEN = ("arch", "dataset"), "PARAMS"
RECORD = "record.json"  # in the folder of a benchmark that is no run of the training scripts
# Images that bear a data set's name and are not the original ones, by the start of the hash of some
# of them.
ALTERED = {
    "3d6231d845eb6f21": "CIFAR10 after JPEG compression",
    "04ee99b9bbe58ee7": "CIFAR10 after JPEG compression, 1 000 of each class",
}


def data_name(sample, dataset):
    """Returns what data is called: a data set's name, unless the hash of some of its images is that
    of altered ones.
    """
    return ALTERED.get(sample[:16], dataset)


class NoRecord(EkgError):
    """A run of which there is no record, for a reason that leaves others as they are."""


class Kept:
    """What is kept in a file of its own: a dataclass with a name and with the arguments that it
    depends on.
    """

    KIND: str  # in words

    @classmethod
    def read(cls, path):
        """Returns what write() wrote.

        Raises:
            EkgError: the file is damaged, or holds something else.
        """
        try:
            return cls(**files.read_json(path))
        except TypeError:
            raise EkgError(f"{path}: is no {cls.KIND}.") from None

    def write(self, path):
        files.write_json(path, dataclasses.asdict(self))

    def keep(self, folder):
        """Writes it into a folder as NAME.json.

        Raises:
            EkgError: another one of this name is kept there.
        """
        place = folder / f"{self.name}.json"
        if place.exists() and (old := self.read(place)).arguments != self.arguments:
            differing = ", ".join(
                name
                for name in self.arguments | old.arguments
                if self.arguments.get(name) != old.arguments.get(name)
            )
            raise EkgError(
                f"{place}: another {self.name} is kept there, with other {differing}; rename a "
                "folder, or remove that file first."
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.write(place)


@dataclasses.dataclass(frozen=True)
class Record(Kept):
    """A finished run.

    Attributes:
        name: of its folder.
        arguments: all that its result depends on.
        table: list of the rows of its final table, dicts: baseline, slimmed and, unless the run
            ends there, fine-tuned.
        steps: of the search.
        phases: {phase: {"seconds", "peak_memory_mib"}}.
        curve: list of the first metric on D_val behind every epoch of fine-tuning.
        origin: {"revision", "machine", "cores"}; empty of a run that did not keep them.
        given_command: command line, where it is none of the training scripts.
        val_loss: of the search's last sub-network, nats; None where nothing was searched.
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
        """Returns the record of a run folder.

        Raises:
            Unfinished: its run is not finished.
            NoRecord: its run is none of a training script.
            EkgError: it is no run folder, or a damaged one.
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
        """Returns the record of a page.FinishedRun; `changes` are attributes that it gets in place
        of the run's.
        """
        measured = f"val_{run.metric}"
        curve = [
            line[measured]
            for line in run.curves
            if line["phase"] == "fine-tune" and measured in line
        ]
        return cls(
            **{
                "name": name,
                "arguments": run.arguments,
                "table": [dataclasses.asdict(row) for row in run.table],
                "steps": len(run.history) - 1,
                "phases": run.phases,
                "curve": curve,
                "origin": run.origin,
                "val_loss": run.history[-1].loss,
            }
            | changes
        )

    # ---------------------------------------------------------------- what tables show

    @property
    def rate(self):
        """Share of the FLOPs that is kept."""
        return self.table[-1]["flops"] / self.table[0]["flops"]

    def top1(self, row):
        """Returns the top-1 of a row of the table in %."""
        return 100 * self.table[row]["metrics"]["top1"]

    @property
    def method(self):
        """What found the sub-network and what taught it, in words."""
        return f"{self.arguments['criterion']}, {self.teachers}"

    @property
    def teachers(self):
        """Those of search and fine-tuning; of what was not searched that of fine-tuning alone."""
        return " / ".join(
            filter(None, (self.arguments[name] for name in ("search_teacher", "finetune_teacher")))
        )

    @property
    def minutes(self):
        """{phase: minutes}."""
        return {phase: value["seconds"] / 60 for phase, value in self.phases.items()}

    @property
    def data(self):
        """What the data is called; images that are not the original ones are told from those."""
        return data_name(
            self.arguments.get("data", {}).get("sample", ""), self.arguments["dataset"]
        )

    @property
    def is_original(self):
        return self.data == self.arguments["dataset"]

    @property
    def command(self):
        """The command line of the run, without the places of files."""
        if self.given_command is not None:
            return self.given_command
        script = "train_imagenet.py" if self.arguments["dataset"] == ILSVRC else "train_cifar.py"
        flags = [f"--{name} {self.arguments[name]}" for name in NETWORK]
        if self.arguments["trained_param"]:
            flags.append(f"--trained_param {GIVEN}")
        for cls in op_utils.SHARED_FLAGS.values():
            flags += [
                flag(field.name, self.arguments[field.name])
                for field in dataclasses.fields(cls)
                if field.name in self.arguments
                and field.name != "trained_param"
                and _plain(self.arguments[field.name]) != _plain(field.default)
            ]
        return f"python {script} {' '.join(flags)}"


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def device_name(origin):
    """Returns the GPUs of an arguments.origin(), or its cores and processor, as text; "" of an
    empty one.
    """
    if not origin:
        return ""
    machine = origin["machine"]
    return (
        ", ".join(machine["gpus"]) or f"{counted(origin['cores'], 'core')}, {machine['processor']}"
    )


def came_of(origins):
    """Returns the cells of machine, versions and revision of a list of (origin, versions)."""
    cells = []
    for origin, versions in origins:
        cells.append(
            (
                device_name(origin),
                ", ".join(f"{name} {value}" for name, value in versions.items()),
                (origin.get("revision") or "")[:7],
            )
        )
    return ["; ".join(dict.fromkeys(column)) for column in zip(*cells)]


def counted(number, noun):
    """Returns a number of things in words, "1 core" or "2 cores"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def flag(name, value):
    """Returns an argument of a command line, as text."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    entries = value if isinstance(value, list) else [value]
    return f"--{name} {shlex.join(map(str, entries))}"


# ---------------------------------------------------------------- what is kept


def collect(paths, out=None):
    """Returns the Records of run folders, of folders that hold a record, and of files.

    Args:
        paths: folders, and files of Record.write, pathlib.Path each.
        out: pathlib.Path of a folder that keeps each as NAME.json, or None.

    Folders that hold no finished run of a training script are left out with a warning.

    Raises:
        EkgError: there is no record, or another one of this name is kept already; all paths were
            left out.
    """
    records, left_out = [], []
    for path in paths:
        try:
            records.append(_record_of(path))
        except (NoRecord, Unfinished) as reason:
            left_out.append(str(reason))
            continue
        if out is not None:
            records[-1].keep(out)
    if left_out and not records:
        raise EkgError(left_out[0])
    for reason in left_out:
        logger.warning("left out: %s", reason)
    return records


def _record_of(path):
    """Returns the Record of a run folder, of a folder that holds a record, or of a file."""
    place = path / RECORD if path.is_dir() and (path / RECORD).exists() else path
    return Record.read(place) if place.is_file() else Record.of_run(place)
