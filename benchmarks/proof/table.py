"""What the records of the proof say: means, paired differences, and the readings that were fixed
before the runs.
"""

import dataclasses
import math
import statistics

from analyses.results import markdown_table, mean_and_deviation
from ekg.io import files

from benchmarks.proof import execute, runs
from benchmarks.proof.runs import BEST_TEACHER, FEW_EPOCHS, RATES, Run

COLUMNS = (
    "arm",
    "n",
    "FLOPs",
    "parameters",
    "cut top-1 %",
    "top-1 %",
    "to labels on two views",
    "teachers in G, first and last epoch",
)
PAIRS = ("difference", "seeds", "top-1 points", "more than two standard errors", "reading")
MANY = 2.0  # standard errors


@dataclasses.dataclass(frozen=True)
class Difference:
    """Paired differences of two arms, in points of top-1.

    Attributes:
        seeds: those that both arms have.
        mean: of the differences; NaN where there is no seed.
        error: standard error of the mean; NaN of fewer than two seeds.
    """

    seeds: tuple[int, ...]
    mean: float
    error: float

    @property
    def is_sure(self):
        """Whether the mean is more than MANY standard errors above 0; None where no error is
        known.
        """
        return None if math.isnan(self.error) else self.mean > MANY * self.error

    def __str__(self):
        if not self.seeds:
            return ""
        error = "" if math.isnan(self.error) else f" ± {self.error:.2f}"
        return f"{self.mean:+.2f}{error}"


def difference(minuend, subtrahend):
    """Returns the Difference of two arms.

    Args:
        minuend: {seed: top-1 in %}; likewise subtrahend.
    """
    seeds = tuple(sorted(set(minuend) & set(subtrahend)))
    values = [minuend[seed] - subtrahend[seed] for seed in seeds]
    mean = statistics.fmean(values) if values else math.nan
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Difference(seeds, mean, error)


@dataclasses.dataclass(frozen=True)
class Question:
    """Two arms and what their difference was to mean, fixed before the runs.

    Attributes:
        title: in words.
        minuend: Run of the one arm, of any seed; likewise subtrahend.
        if_sure: what more than two standard errors say.
        if_not: what fewer say.
    """

    title: str
    minuend: Run
    subtrahend: Run
    if_sure: str
    if_not: str

    def read(self, answer):
        """Returns the reading of a Difference."""
        if answer.is_sure is None:
            return "too few seeds"
        return self.if_sure if answer.is_sure else self.if_not


def _ours(teacher, rate=0.45, **changes):
    return Run("ekg", teacher, 0, rate, **changes)


def questions():
    """Returns the Questions that were fixed before the runs."""
    bank = _ours("bank")
    asked = [
        Question(
            "bank − labels on two views",
            bank,
            _ours("labels"),
            "the ensemble helps in the paper's regime",
            "the ensemble does not show to help",
        ),
        Question(
            "bank − Θ₀ on the clean image",
            bank,
            _ours("clean"),
            "the ensemble itself helps, not distillation as such",
            "the ensemble is not shown to give more than Θ₀ alone",
        ),
        Question(
            "five teachers on views − bank",
            _ours("five"),
            bank,
            "a bank of views is worth building",
            "no bank of views is built",
        ),
        Question(
            "Θ₀ on each view − bank",
            _ours("single"),
            bank,
            "Θ₀ on each view is better",
            "the bank is not shown to be worse",
        ),
        Question(
            "labels on two views − on one view",
            _ours("labels"),
            _ours("labels", num_views=1),
            "two views are better than one",
            "two views are not shown to be better",
        ),
    ]
    asked += [
        Question(
            f"bank − labels on two views, {rate:g}",
            _ours("bank", rate),
            _ours("labels", rate),
            "the ensemble helps",
            "the ensemble does not show to help",
        )
        for rate in RATES[1:]
    ]
    asked += [
        _about_peer(cut, teacher, rate)
        for rate in RATES
        for teacher in ("labels", BEST_TEACHER)
        for cut in runs.PEERS
    ]
    asked += [
        _about_peer(cut, teacher, rate, epochs=FEW_EPOCHS, is_repaired=is_repaired)
        for rate in RATES
        for teacher, is_repaired in runs.STARTS
        for cut in runs.PEERS
    ]
    asked += [_about_defaults(cut, rate) for rate in RATES for cut in runs.PEERS]
    asked += [
        Question(
            f"ours at group Taylor's share of parameters − group Taylor, {rate:g}",
            Run("params", BEST_TEACHER, 0, rate),
            Run("group-taylor", BEST_TEACHER, 0, rate),
            "ours is better at the same parameters",
            "ours is not shown to be better",
        )
        for rate in RATES
    ]
    asked += [
        _about_repair(teacher, rate, epochs)
        for epochs in (FEW_EPOCHS, runs.EPOCHS)
        for rate in RATES
        for teacher in ("labels", BEST_TEACHER)
    ]
    asked += [
        Question(
            "the search − the released program's rule, bank",
            bank,
            Run("published", "bank", 0),
            "the rule of the text is better",
            "the rule of the text is not shown to be better",
        )
    ]
    asked += [
        Question(
            f"{name} − bank",
            _ours("bank", change=change),
            bank,
            "becomes a setting",
            "leaves no code",
        )
        for change, name in runs.CHANGES.items()
        if change
    ]
    asked += [
        Question(
            f"{runs.CUTS[cut]} − bank",
            Run(cut, "bank", 0),
            bank,
            "becomes a setting",
            "leaves no code",
        )
        for cut in ("viewed", "unseen")
    ]
    return asked


def _about_peer(cut, teacher, rate, **changes):
    ours = _ours(teacher, rate, **changes)
    parts = (
        f"ours − {runs.CUTS[cut]}",
        "both repaired" * ours.is_repaired,
        runs.TEACHERS[teacher],
        f"{rate:g}",
        f"{ours.epochs} epochs" * (ours.epochs != runs.EPOCHS),
    )
    return Question(
        ", ".join(filter(None, parts)),
        ours,
        Run(cut, teacher, 0, rate, **changes),
        "ours is better",
        "ours is not shown to be better",
    )


def _about_defaults(cut, rate):
    """Returns the Question of two programs as they come: ours with repair and a teacher."""
    return Question(
        f"ours, repaired, {runs.TEACHERS[BEST_TEACHER]} − {runs.CUTS[cut]}, labels alone, "
        f"{rate:g}, {FEW_EPOCHS} epochs",
        _ours(BEST_TEACHER, rate, epochs=FEW_EPOCHS, is_repaired=True),
        Run(cut, "labels", 0, rate, epochs=FEW_EPOCHS),
        "ours is better",
        "ours is not shown to be better",
    )


def _about_repair(teacher, rate, epochs):
    return Question(
        f"repaired − plain start, {runs.TEACHERS[teacher]}, {rate:g}, {epochs} epochs",
        _ours(teacher, rate, epochs=epochs, is_repaired=True),
        _ours(teacher, rate, epochs=epochs),
        "the repair helps",
        "the repair is not shown to help",
    )


# ---------------------------------------------------------------- tables


def load(place):
    """Returns {arm: {seed: ProofRecord}} of the finished runs of the queue, in its order."""
    found = {}
    for run in runs.queue():
        if place.record(run).exists():
            found.setdefault(run.arm, {})[run.seed] = execute.ProofRecord.read(place.record(run))
    return found


def format_page(place):
    """Returns all tables as Markdown."""
    records = load(place)
    tops = {
        arm: {seed: record.top1(-1) for seed, record in own.items()} for arm, own in records.items()
    }
    parts = [_format_baselines(place), _format_arms(records, tops), _format_questions(tops)]
    return "\n\n".join(filter(None, parts)) or "No run is finished yet."


def _format_baselines(place):
    lines = []
    for path in sorted(place.records.glob("baseline*.json")):
        known = files.read_json(path)
        lines.append(
            f"- {path.stem}: {known['train_top1']:.2f} % of its clean training images, "
            f"{known['test_top1']:.2f} % of the test images"
        )
    return "\n".join(lines)


def _format_arms(records, tops):
    runs_of = {run.arm: run for run in reversed(runs.queue())}
    rows = []
    for arm, own in records.items():
        run, found = runs_of[arm], list(own.values())
        labels = dataclasses.replace(
            run, teacher="labels", num_views=2, is_repaired=False, change=""
        )
        mean, deviation = mean_and_deviation(list(tops[arm].values()))
        beside = "" if labels.arm == arm else str(difference(tops[arm], tops.get(labels.arm, {})))
        rows.append(
            [
                run.title,
                len(found),
                f"{_mean(found, lambda record: record.rate):.3f}",
                f"{_mean(found, _share_of_params):.3f}",
                f"{_mean(found, lambda record: record.top1(1)):.2f}",
                f"{mean:.2f}" + f" ± {deviation:.2f}" * (len(found) > 1),
                beside,
                _teachers_in_g(found),
            ]
        )
    return markdown_table(COLUMNS, rows) if rows else ""


def _format_questions(tops):
    rows = []
    for question in questions():
        answer = difference(
            tops.get(question.minuend.arm, {}), tops.get(question.subtrahend.arm, {})
        )
        if answer.seeds:
            sure = {True: "yes", False: "no", None: ""}[answer.is_sure]
            rows.append(
                [
                    question.title,
                    " ".join(map(str, answer.seeds)),
                    str(answer),
                    sure,
                    question.read(answer),
                ]
            )
    return markdown_table(PAIRS, rows) if rows else ""


def _mean(records, value):
    return statistics.fmean(map(value, records))


def _share_of_params(record):
    return record.table[-1]["params"] / record.table[0]["params"]


def _teachers_in_g(records):
    counts = [record.num_teachers for record in records if record.num_teachers]
    if not counts:
        return ""
    first, last = (statistics.fmean(own[place] for own in counts) for place in (0, -1))
    return f"{first:.1f}, {last:.1f}"
