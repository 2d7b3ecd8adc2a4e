"""Studies: stored results of `analyze.py condition`, `correlation` and `landscape`, and tables."""

import dataclasses
import shlex
import shutil

from analyses import published
from analyses.records import GIVEN, JsonRecord, data_name, flag, provenance_cells
from analyses.results import markdown_table
from ekg.errors import EkgError
from ekg.io import files
from ekg.run.folder import SUMMARY

ANALYSES = ("correlation", "condition", "landscape")
# Arguments of a study that are no flags of analyze.py, or that its command line gives otherwise
NO_FLAGS = ("trained_param", "networks", "data", "use_xla", "format", "norms_of")
PREDICTORS = {
    "val_loss": "validation loss",
    "condition": "condition number",
    "val_loss_given_condition": "validation loss, condition number held fixed",
    "condition_given_val_loss": "condition number, validation loss held fixed",
}

CORRELATIONS = (
    "study",
    "network",
    "data",
    "sub-networks",
    "FLOPs kept",
    "epochs",
    "before fine-tuning",
    "Pearson, 95 %",
    "Spearman, 95 %",
    "published",
)
MEASURED = ("study", "network", "file", "data", "images", "batch norms take")
CONDITIONS = (
    *MEASURED,
    "parameters",
    "loss",
    "condition number",
    "smallest eigenvalue",
    "largest eigenvalue",
    "residuals",
)
SURFACES = (*MEASURED, "loss at the network", "lowest on the grid", "highest on the grid")
EACH = ("study", "minutes", "machine", "versions", "revision", "command")


@dataclasses.dataclass(frozen=True)
class Study(JsonRecord):
    """The results of an analysis.

    Attributes:
        name: name of its folder.
        analysis: one of ANALYSES.
        arguments: all arguments on which its rows depend.
        minutes: total duration of the measurements in minutes.
        rows: list with a dict per network, which includes "origin" and "versions".
        statistics: {name of PREDICTORS: coefficients from correlation.correlate()} of a
            correlation; earlier studies have only the first two predictors.
    """

    name: str
    analysis: str
    arguments: dict
    minutes: float
    rows: list
    statistics: dict = dataclasses.field(default_factory=dict)

    KIND = "study of networks"

    @classmethod
    def of_folder(cls, path):
        """Returns the Study in a folder of analyze.py, without the grids of surfaces.

        Raises:
            EkgError: the file is damaged, or holds no such study.
        """
        file = results_of(path)
        results = files.read_json(file)
        try:
            rows = [
                {name: value for name, value in row.items() if not isinstance(value, list)}
                for row in results["rows"]
            ]
            return cls(
                path.resolve().name,
                file.stem,
                results["arguments"],
                results["minutes"],
                rows,
                results.get("statistics", {}),
            )
        except KeyError:
            raise EkgError(
                f"{file}: is no {cls.KIND} of this version; run the analysis again."
            ) from None

    @property
    def arch(self):
        return self.arguments["arch"]

    @property
    def data(self):
        """The name of the data; see records.data_name()."""
        return data_name(self.arguments["data"][16:], self.arguments["dataset"])

    @property
    def count(self):
        """Number of sub-networks, and of those whose condition number did not converge, as text."""
        num_unsure = sum(not row["converged"] for row in self.rows)
        if not num_unsure:
            return str(len(self.rows))
        return f"{len(self.rows)}, {num_unsure} not converged"

    @property
    def command(self):
        """The command line of the study, without paths."""
        if self.arguments.get("networks"):
            networks = " ".join(map(shlex.quote, self.arguments["networks"]))
        else:
            networks = f"--trained_param {GIVEN} --subnetworks {len(self.rows)}"
        if "norms_of" in self.arguments:
            networks = f"{networks} --norms_of {GIVEN}"
        flags = [
            flag(name, value)
            for name, value in self.arguments.items()
            if name not in NO_FLAGS and value is not False  # False is the absence of a flag
        ]
        return f"python analyze.py {self.analysis} {networks} {' '.join(flags)}"


def results_of(folder):
    """Returns the path of the results of one of ANALYSES in a folder, or None without results.

    Raises:
        EkgError: there are several.
    """
    results = [folder / f"{name}.json" for name in ANALYSES]
    results = [file for file in results if file.is_file()]
    is_run = (folder / SUMMARY).exists()  # which may hold the condition number of its network
    if not results or is_run:
        return None
    if len(results) > 1:
        raise EkgError(
            f"{folder}: holds {' and '.join(file.name for file in results)}; give each analysis "
            "an `out` of its own."
        )
    return results[0]


def collect(paths, out=None):
    """Returns the Studies in folders of analyze.py and in files of earlier calls.

    Args:
        paths: list of folders and files, pathlib.Path.
        out: pathlib.Path of a folder in which studies of folders are stored as NAME.json and
            NAME.png, or None.

    Raises:
        EkgError: a path has no study, or a different study with the same name is stored already.
    """
    studies = []
    for path in paths:
        study = Study.of_folder(path) if path.is_dir() else Study.read(path)
        studies.append(study)
        if path.is_dir() and out is not None:
            study.keep(out)
            shutil.copyfile(results_of(path).with_suffix(".png"), out / f"{study.name}.png")
    return studies


# ---------------------------------------------------------------- tables


def format_studies(studies, pictures):
    """Returns Markdown tables of studies, with their pictures.

    Args:
        studies: list of Study.
        pictures: path of the folder of their pictures, relative to the page.
    """
    parts = []
    for analysis, (head, rows_of) in TABLES.items():
        members = [study for study in studies if study.analysis == analysis]
        if members:
            rows = [row for study in members for row in rows_of(study)]
            parts.append(markdown_table(head, rows))
            parts += [
                f"![{analysis}: {study.name}]({pictures}/{study.name}.png)" for study in members
            ]
    parts.append(markdown_table(EACH, map(_each, studies)))
    return "\n\n".join(parts)


def _correlations(study):
    """Returns a row per predictor: its correlation with the loss after fine-tuning."""
    arguments = study.arguments
    count = study.count
    if "choices" in arguments:  # earlier studies had random widths
        count += ", ends of searches"
    paper = published.CORRELATION
    rows = []
    for name, statistics in study.statistics.items():
        coefficients = []
        for kind in ("pearson", "spearman"):
            low, high = statistics[f"{kind}_interval"]
            coefficients.append(f"{statistics[kind]:.2f} ({low:.2f} to {high:.2f})")
        reported = ""
        if name in paper:
            reported = f"{paper[name]:.2f}, {paper['subnetworks']} sub-networks"
        rows.append(
            [
                study.name,
                study.arch,
                study.data,
                count,
                f"{arguments['target_rate']:.2f}",
                arguments["train_epoch"],
                PREDICTORS[name],
                *coefficients,
                reported,
            ]
        )
    return rows


def _measured(study, row):
    """Returns the cells of MEASURED for a row of a study."""
    statistics = "moving statistics"
    if study.arguments["batch_statistics"]:
        statistics = "statistics of the batch"
    return [
        study.name,
        study.arch,
        row["network"],
        study.data,
        study.arguments["images"],
        statistics,
    ]


def _conditions(study):
    rows = []
    for row in study.rows:
        residuals = f"{row['residual_smallest']:.2g}, {row['residual_largest']:.2g}"
        norms = ", at the norms before the cut" if row.get("former_norms", False) else ""
        parameters = row["parameters"] + norms
        rows.append(
            [
                *_measured(study, row),
                parameters,
                f"{row['loss']:.4f}",
                f"{row['condition']:.4f}",
                f"{row['smallest']:.4g}",
                f"{row['largest']:.4g}",
                residuals if row["converged"] else f"{residuals}, not converged",
            ]
        )
    return rows


def _surfaces(study):
    return [
        [*_measured(study, row), *(f"{row[name]:.3g}" for name in ("loss", "lowest", "highest"))]
        for row in study.rows
    ]


def _each(study):
    return [
        study.name,
        f"{study.minutes:.1f}",
        *provenance_cells([(row["origin"], row["versions"]) for row in study.rows]),
        f"`{study.command}`",
    ]


TABLES = {
    "correlation": (CORRELATIONS, _correlations),
    "condition": (CONDITIONS, _conditions),
    "landscape": (SURFACES, _surfaces),
}
