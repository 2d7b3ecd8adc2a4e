"""What predicts the loss of a pruned network after fine-tuning: its validation loss or its
condition number?
"""

import dataclasses
import logging
import math

import keras
import numpy as np

from analyses import published
from analyses.conditions import check_converged, spectrum_values
from analyses.records import counted
from analyses.results import data_key, known_rows, tells_sign, write_results
from analyses.search_ends import num_best, search_end
from analyses.subject import TrainedSettings
from ekg import phases
from ekg.devices.compute import DTYPES
from ekg.io import files
from ekg.landscape.subnetworks import MaskedLandscapes
from ekg.network.supernet import Supernet
from ekg.run.arguments import VERSIONS, origin
from ekg.run.folder import HISTORY, RunFolder
from ekg.searching.objective import Objective
from ekg.searching.settings import SearchSettings
from ekg.searching.targets import Flops
from ekg.settings import COUNT, SEARCH, Range, setting
from ekg.train.evaluate import evaluate

logger = logging.getLogger(__name__)

FORMAT = 6  # of the lines in the folder; an older folder is refused, never mixed
BOOTSTRAP_SAMPLES = 2000
# What is correlated with the loss after fine-tuning:
# {name: (entry of a row, entry that is held fixed, or None)}
PREDICTORS = {
    "val_loss": ("val_loss", None),
    "condition": ("condition", None),
    "val_loss_given_condition": ("val_loss", "condition"),
    "condition_given_val_loss": ("condition", "val_loss"),
}
FULLY_EXPLAINED = 1e-12  # share of a variance: what is left of it is rounding


@dataclasses.dataclass(frozen=True)
class StudySettings(TrainedSettings):
    """What is asked of the sub-networks of a trained network, the ends of searches."""

    subnetworks: int = setting(50, "how many", SEARCH, range=COUNT)
    choices: int = setting(
        4,
        "best candidates of a step that searches choose among by chance, at most; the first "
        "takes the best one, the others choose among 2, 3, ... in turn",
        SEARCH,
        range=Range(2),
    )
    train_epoch: int = setting(1, "epochs of fine-tuning, labels alone", SEARCH, range=COUNT)
    precision: str = setting(
        "float32", "number format of activations in fine-tuning", SEARCH, choices=DTYPES
    )


def study_correlation(subject, study, spectrum, out, compute):
    """Measures what searches end at, before and after fine-tuning; writes, draws and returns it.

    Args:
        subject: Subject.
        study: StudySettings.
        spectrum: SpectrumSettings of the condition numbers.
        out: pathlib.Path of the folder for the results; the same study resumes there.
        compute: Compute of fine-tuning and test, but for the precision, which the study has.

    Raises:
        EkgError: no sub-network keeps so little, or the folder holds another study.
        NotConverged: an eigenvalue is not known to the tolerance.
    """
    from analyses import pictures  # imports matplotlib

    supernet = Supernet(subject.load(study.trained_param))
    Flops(study.target_rate).check(supernet)
    compute = dataclasses.replace(compute, dtype=study.precision)
    arguments = _arguments(subject, study, spectrum, compute)
    folder = RunFolder.prepare(out, arguments, advice="name a new `out`")
    rows = measure_subnetworks(supernet, subject, study, spectrum, folder, compute)
    columns = {
        name: [row[name] for row in rows] for name in ("val_loss", "condition", "tuned_loss")
    }
    statistics = {
        name: correlate(columns[predictor], columns["tuned_loss"], columns.get(fixed))
        for name, (predictor, fixed) in PREDICTORS.items()
    }
    title = (
        f"{subject}: {len(rows)} ends of searches at {study.target_rate:.0%} of the FLOPs, "
        f"{counted(study.train_epoch, 'epoch')} of fine-tuning"
    )
    pictures.draw_correlation(out / "correlation.png", title, rows, statistics)
    paper = published.CORRELATION
    text = (
        f"{title}: correlation with the loss after fine-tuning: validation loss "
        f"{_text(statistics['val_loss'])}, "
        f"condition number {_text(statistics['condition'])}, where the other is held fixed "
        f"{_text(statistics['val_loss_given_condition'])} and "
        f"{_text(statistics['condition_given_val_loss'])}; published for "
        f"{paper['subnetworks']} sub-networks: "
        f"{paper['val_loss']:.2f} and {paper['condition']:.2f}"
    )
    write_results(
        out,
        "correlation",
        rows,
        text,
        statistics=statistics,
        arguments=arguments,
        minutes=sum(phase["seconds"] for phase in folder.phases().values()) / 60,
    )
    check_converged(rows, "number", out, "raise `max_products` and name a new `out`")
    return rows


def _arguments(subject, study, spectrum, compute):
    """Returns what the rows of a study depend on, as its folder keeps it."""
    return {
        "trained_param": files.sha256(study.trained_param),
        "target_rate": study.target_rate,
        "arch": subject.arch,
        "dataset": subject.data.name,
        "data": data_key(subject.data.train),
        "choices": study.choices,
        "train_epoch": study.train_epoch,
        "precision": compute.dtype,
        "use_xla": compute.use_xla,
        "batch_size": subject.batch_size,
        **dataclasses.asdict(spectrum),
        "format": FORMAT,
    }


# ---------------------------------------------------------------- sub-networks


def measure_subnetworks(supernet, subject, study, spectrum, folder, compute):
    """Returns a row for each sub-network; those that an earlier call left in the folder are not
    measured again.

    Args:
        supernet: Supernet of the trained network.
        subject: Subject.
        study: StudySettings.
        spectrum: SpectrumSettings of the condition numbers.
        folder: RunFolder; its history keeps every sub-network.
        compute: Compute of fine-tuning and test.
    """
    known = known_rows(folder / HISTORY, "number")
    missing = [number for number in range(study.subnetworks) if number not in known]
    if missing:
        batches = subject.batches()
        objective = Objective(supernet, batches)
        make_landscape = MaskedLandscapes(supernet, batches)
        settings = SearchSettings(target_rate=study.target_rate)
    for number in missing:
        with folder.timed("sub-networks"):
            end = search_end(objective, supernet, batches, settings, number, study.choices)
            ends = make_landscape(end.subnetwork).spectrum(**dataclasses.asdict(spectrum))
            tuned = fine_tune(
                supernet,
                end.subnetwork,
                subject,
                study.train_epoch,
                folder.checkpoints(f"subnetwork{number}"),
                compute,
            )
        known[number] = {
            "number": number,
            "num_best": num_best(number, study.choices),
            "rate": end.rate,
            "val_loss": end.loss,
            "condition": ends.condition,
            **spectrum_values(ends),
            "tuned_loss": tuned.loss,
            "tuned_top1": tuned.top1,
            "origin": origin(),
            "versions": VERSIONS,
        }
        files.append_json_line(folder / HISTORY, known[number])
        logger.info(
            "sub-network %d: validation loss %.4f, condition number %.4f, test loss after "
            "fine-tuning %.4f",
            number,
            end.loss,
            ends.condition,
            tuned.loss,
        )
    return [known[number] for number in range(study.subnetworks)]


def fine_tune(supernet, subnetwork, subject, num_epochs, path, compute):
    """Returns the test Metrics of a sub-network that was slimmed and fine-tuned with the labels
    alone.

    Args:
        supernet: Supernet of the trained network.
        subnetwork: Subnetwork.
        subject: Subject.
        num_epochs: of fine-tuning.
        path: folder of its checkpoints.
        compute: Compute.
    """
    keras.utils.set_random_seed(0)
    options = {"compute": compute, "search_batch_size": subject.batch_size}
    model = phases.slim(supernet, subnetwork, subject.data, **options)
    RunFolder.prepare(path, {})
    phases.fine_tune(model, subject.data, epochs=num_epochs, folder=path, **options)
    return evaluate(model, subject.batches("test"), compute)


# ---------------------------------------------------------------- coefficients


def correlate(first, second, given=None, seed=0):
    """Returns {"pearson", "spearman": coefficient, "…_interval": 95 % bootstrap interval} of two
    rows of numbers.

    Pairs are drawn with replacement BOOTSTRAP_SAMPLES times; the interval holds the middle 95 % of
    the coefficients. What pairs that are all the same leave undefined is NaN.

    Args:
        first: numbers.
        second: as many numbers.
        given: as many numbers that are held fixed: the coefficients are partial ones, those of what
            a straight line through these (of ranks through ranks) does not explain; None holds
            nothing.
        seed: of the drawing.
    """
    rows, result = np.array([first, second, *([] if given is None else [given])], float), {}
    size, rng = rows.shape[1], np.random.default_rng(seed)
    draws = rng.integers(0, size, (BOOTSTRAP_SAMPLES, size))
    for name, function in (("pearson", _pearson), ("spearman", _spearman)):
        sampled = [_partial(function, *rows[:, draw]) for draw in draws]
        result[name] = _partial(function, *rows)
        defined = [value for value in sampled if not np.isnan(value)] or [float("nan")]
        result[f"{name}_interval"] = np.percentile(defined, [2.5, 97.5]).tolist()
    return result


def _partial(function, first, second, given=None):
    """Returns the coefficient of two rows by a function of two; a third may be held fixed."""
    coefficient = function(first, second)
    if given is None:
        return coefficient
    explained = [function(row, given) for row in (first, second)]
    left = [1 - value**2 for value in explained]
    if not min(left) > FULLY_EXPLAINED:  # nor where one is NaN
        return float("nan")
    return (coefficient - math.prod(explained)) / math.sqrt(math.prod(left))


def _text(coefficients):
    """Returns Pearson's coefficient of correlate() with its interval, as text."""
    low, high = coefficients["pearson_interval"]
    text = f"{coefficients['pearson']:.2f} (95 % {low:.2f} to {high:.2f}"
    return f"{text})" if tells_sign((low, high)) else f"{text}; not significant)"


def _pearson(first, second):
    first, second = first - first.mean(), second - second.mean()
    size = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / size) if size > 0 else float("nan")


def _spearman(first, second):
    from scipy import stats  # SciPy is needed for this alone

    return _pearson(stats.rankdata(first), stats.rankdata(second))
