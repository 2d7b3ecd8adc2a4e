"""What stays of a finished run or study as evidence: a small JSON file that tells what was run, how it ended, where and how
long."""

import dataclasses
import shlex
import shutil
from pathlib import Path

import op_utils
from analyses.published import ILSVRC
from ekg import files
from ekg.errors import EkgError
from ekg.run.folder import RunFolder

NETWORK, GIVEN = ("arch", "dataset"), "PARAMS"
# Images that bear a data set's name and are not the original ones, by the start of the hash of some of them.
ALTERED = {"3d6231d845eb6f21": "CIFAR10 after JPEG compression"}


@dataclasses.dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        name: of its folder.
        arguments: all that its result depends on.
        table: list of the rows of its final table, dicts: baseline, slimmed and, unless the run ends there, fine-tuned.
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

    @classmethod
    def of_run(cls, path):
        """Returns the record of a run folder.

        Raises:
            EkgError: it holds no finished run.
        """
        return cls.of_finished(Path(path).resolve().name, RunFolder(path).read_finished())

    @classmethod
    def of_finished(cls, name, run, **changes):
        """Returns the record of a page.FinishedRun; `changes` are attributes that it gets in place of the run's."""
        measured = f"val_{run.metric}"
        curve = [line[measured] for line in run.curves if line["phase"] == "fine-tune" and measured in line]
        return cls(**{"name": name, "arguments": run.arguments, "table": [dataclasses.asdict(row) for row in run.table],
                      "steps": len(run.history) - 1, "phases": run.phases, "curve": curve, "origin": run.origin,
                      "val_loss": run.history[-1].loss} | changes)

    @classmethod
    def read(cls, path):
        """Returns the record in a file of write().

        Raises:
            EkgError: the file is damaged, or holds no record.
        """
        try:
            return cls(**files.read_json(path))
        except TypeError:
            raise EkgError(f"{path}: is no record of a run.") from None

    def write(self, path):
        files.write_json(path, dataclasses.asdict(self))

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
        return " / ".join(filter(None, (self.arguments[name] for name in ("search_teacher", "finetune_teacher"))))

    @property
    def minutes(self):
        """{phase: minutes}."""
        return {phase: value["seconds"] / 60 for phase, value in self.phases.items()}

    @property
    def data(self):
        """What the data is called; images that are not the original ones are told from those."""
        return _data_name(self.arguments["dataset"], self.arguments.get("data", {}).get("sample", "")[:16])

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
            flags += [_flag(field, self.arguments[field.name]) for field in dataclasses.fields(cls)
                      if field.name in self.arguments and field.name != "trained_param"
                      and _plain(self.arguments[field.name]) != _plain(field.default)]
        return f"python {script} {' '.join(flags)}"


def _data_name(dataset, mark):
    return ALTERED.get(mark, dataset)


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def _flag(field, value):
    if isinstance(value, bool):
        return f"--{field.name}" if value else f"--no-{field.name}"
    return f"--{field.name} {' '.join(shlex.quote(str(entry)) for entry in (value if isinstance(value, list) else [value]))}"


def collect(paths, out=None):
    """Returns the Records of run folders and of files; with `out`, those of folders are kept there as NAME.json.

    Args:
        paths: run folders and files of Record.write, pathlib.Path each.
        out: pathlib.Path of a folder, or None.
    """
    records = []
    for path in paths:
        if path.is_file():
            records.append(Record.read(path))
            continue
        records.append(Record.of_run(path))
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            records[-1].write(out / f"{records[-1].name}.json")
    return records


# ---------------------------------------------------------------- studies of sub-networks

STUDY = "correlation.json"  # in the folder of `analyze.py correlation`; beside it lies its picture


@dataclasses.dataclass(frozen=True)
class Study:
    """What `analyze.py correlation` found.

    Attributes:
        name: of its folder.
        arguments: all that its rows depend on.
        statistics: {"val_loss" and "condition": the coefficients of correlation.correlate()}.
        count: of sub-networks.
        minutes: that they took together.
        origin: {"revision", "machine", "cores"}.
        versions: {package: version}.
    """
    name: str
    arguments: dict
    statistics: dict
    count: int
    minutes: float
    origin: dict
    versions: dict

    @classmethod
    def read(cls, path):
        """Returns the study in a file STUDY, or in a copy of it whose name is that of the folder.

        Raises:
            EkgError: the file is damaged, or holds no study.
        """
        found, name = files.read_json(path), path.parent.resolve().name if path.name == STUDY else path.stem
        try:
            return cls(name, found["arguments"], found["statistics"], len(found["rows"]),
                       sum(row["seconds"] for row in found["rows"]) / 60, found["origin"], found["versions"])
        except (KeyError, TypeError):
            raise EkgError(f"{path}: is no study of sub-networks.") from None

    @property
    def data(self):
        """What the data is called; see Record."""
        return _data_name(self.arguments["dataset"], self.arguments["data"][16:32])

    @property
    def command(self):
        """The command line of the study, without the places of files."""
        asked = {name: self.arguments[name] for name in ("arch", "dataset", "target_rate", "train_epoch", "max_products",
                                                         "tolerance")}
        return (f"python analyze.py correlation --trained_param {GIVEN} --subnetworks {self.count} "
                + " ".join(f"--{name} {value}" for name, value in asked.items()))


def collect_studies(paths, out=None):
    """Returns the Studies in folders and files; with `out`, those of folders are kept there as NAME.json and NAME.png.

    Args:
        paths: folders of `analyze.py correlation`, and files that were kept of such, pathlib.Path each.
        out: pathlib.Path of a folder, or None.
    """
    studies = []
    for path in paths:
        studies.append(Study.read(path if path.is_file() else path / STUDY))
        if path.is_dir() and out is not None:
            out.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path / STUDY, out / f"{studies[-1].name}.json")
            shutil.copyfile((path / STUDY).with_suffix(".png"), out / f"{studies[-1].name}.png")
    return studies
