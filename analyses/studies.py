"""Studies: what `analyze.py condition`, `correlation` and `landscape` found, kept as evidence, and
the tables made of it.
"""

import dataclasses
import shlex
import shutil

from analyses import published
from analyses.records import GIVEN, Kept, came_of, data_name, flag
from analyses.results import markdown_table
from ekg.errors import EkgError
from ekg.io import files
from ekg.run.folder import SUMMARY

ANALYSES = ("correlation", "condition", "landscape")
# of the arguments of a study
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
class Study(Kept):
    """What an analysis found.

    Attributes:
        name: of its folder.
        analysis: one of ANALYSES.
        arguments: all that its rows depend on.
        minutes: that the rows took together.
        rows: list of a dict for each network, each with its "origin" and "versions".
        statistics: of a correlation {name of PREDICTORS: the coefficients of
            correlation.correlate()}; earlier studies have the first two alone.
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
        """Returns the study in a folder of analyze.py; whole surfaces stay there.

        Raises:
            EkgError: the file is damaged, or holds no such study.
        """
        place = results_of(path)
        found = files.read_json(place)
        try:
            rows = [
                {name: value for name, value in row.items() if not isinstance(value, list)}
                for row in found["rows"]
            ]
            return cls(
                path.resolve().name,
                place.stem,
                found["arguments"],
                found["minutes"],
                rows,
                found.get("statistics", {}),
            )
        except KeyError:
            raise EkgError(
                f"{place}: is no {cls.KIND} of this version; run the analysis again."
            ) from None

    @property
    def arch(self):
        return self.arguments["arch"]

    @property
    def data(self):
        """What the data is called; see records.data_name()."""
        return data_name(self.arguments["data"][16:], self.arguments["dataset"])

    @property
    def count(self):
        """How many sub-networks there are, and of how many the condition number is not as exact as
        was asked for.
        """
        left = sum(not row["converged"] for row in self.rows)
        return f"{len(self.rows)}" + (f", {left} not converged" if left else "")

    @property
    def command(self):
        """The command line of the study, without the places of files."""
        given = " ".join(map(shlex.quote, self.arguments.get("networks", ()))) or (
            f"--trained_param {GIVEN} --subnetworks {len(self.rows)}"
        )
        if "norms_of" in self.arguments:
            given = f"{given} --norms_of {GIVEN}"
        flags = (
            flag(name, value)
            for name, value in self.arguments.items()
            if name not in NO_FLAGS and value is not False
        )  # which has no flag
        return f"python analyze.py {self.analysis} {given} {' '.join(flags)}"


def results_of(folder):
    """Returns the path of the results of one of ANALYSES in a folder, or None if there are none, as
    in a run folder.

    Raises:
        EkgError: there are several.
    """
    places = [place for name in ANALYSES if (place := folder / f"{name}.json").is_file()]
    if (
        not places or (folder / SUMMARY).exists()
    ):  # a run may hold the condition number of its network
        return None
    if len(places) > 1:
        raise EkgError(
            f"{folder}: holds {' and '.join(place.name for place in places)}; give each analysis "
            "an `out` of its own."
        )
    return places[0]


def collect(paths, out=None):
    """Returns the Studies in folders of analyze.py, and in files that were kept of such.

    Args:
        paths: pathlib.Path each.
        out: pathlib.Path of a folder that keeps those of folders as NAME.json and NAME.png, or
            None.

    Raises:
        EkgError: there is no study, or another one of this name is kept already.
    """
    studies = []
    for path in paths:
        studies.append(Study.of_folder(path) if path.is_dir() else Study.read(path))
        if path.is_dir() and out is not None:
            studies[-1].keep(out)
            shutil.copyfile(results_of(path).with_suffix(".png"), out / f"{studies[-1].name}.png")
    return studies


# ---------------------------------------------------------------- tables


def format_studies(studies, pictures):
    """Returns Markdown tables of studies, with their pictures.

    Args:
        studies: list of Study.
        pictures: where these lie, from the page on, as text.
    """
    parts = []
    for analysis, (head, rows) in TABLES.items():
        own = [study for study in studies if study.analysis == analysis]
        if own:
            parts += [
                markdown_table(head, [row for study in own for row in rows(study)]),
                *(f"![{analysis}: {study.name}]({pictures}/{study.name}.png)" for study in own),
            ]
    return "\n\n".join([*parts, markdown_table(EACH, map(_each, studies))])


def _correlations(study):
    """Returns a row for each of the PREDICTORS: how the loss after fine-tuning goes with it."""
    arguments, rows = study.arguments, []
    count = study.count + ", ends of searches" * ("choices" in arguments)  # before: random widths
    for name, found in study.statistics.items():
        coefficients = (
            f"{found[kind]:.2f} ({found[f'{kind}_interval'][0]:.2f} to "
            f"{found[f'{kind}_interval'][1]:.2f})"
            for kind in ("pearson", "spearman")
        )
        paper, reported = published.CORRELATION, ""
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
    """Returns the cells of MEASURED."""
    statistics = (
        "statistics of the batch" if study.arguments["batch_statistics"] else "moving statistics"
    )
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
        *came_of([(row["origin"], row["versions"]) for row in study.rows]),
        f"`{study.command}`",
    ]


TABLES = {
    "correlation": (CORRELATIONS, _correlations),
    "condition": (CONDITIONS, _conditions),
    "landscape": (SURFACES, _surfaces),
}
