"""What analyses read from run folders, and the figures that the paper reports beside them."""

import dataclasses

import numpy as np
from scipy import stats

import utils
from ekg import figures
from ekg.greedy_search import HistoryEntry

BOOTSTRAP_SAMPLES = 2000

# Lee and Song 2022, top-1 in % of the baseline and of the pruned network, and the share of FLOPs that is kept.
PUBLISHED = {("ResNet-56", "CIFAR10"): (93.84, 94.09, 0.45), ("ResNet-56", "CIFAR100"): (72.62, 72.93, 0.45),
             ("MobileNet-v2", "CIFAR10"): (94.21, 94.52, 0.45), ("MobileNet-v2", "CIFAR100"): (76.07, 76.29, 0.45),
             ("ResNet-18", "ILSVRC2012"): (None, 69.39, 0.499), ("ResNet-34", "ILSVRC2012"): (None, 73.51, 0.549),
             ("ResNet-50", "ILSVRC2012"): (None, 75.93, 0.45)}
# (search teacher, fine-tuning teacher) -> top-1 in % of ResNet-56 on CIFAR-10 and CIFAR-100
PUBLISHED_ABLATION = {("none", "none"): (93.78, 71.63), ("single", "none"): (93.54, 71.66),
                      ("ensemble", "none"): (93.85, 71.82), ("ensemble", "single"): (94.02, 72.62),
                      ("ensemble", "ensemble"): (94.09, 72.93)}
# criterion -> (validation loss, condition number, top-1 in %) of ResNet-56 on CIFAR-10
PUBLISHED_CRITERIA = {"l1": (0.1569, 0.4078, 93.57), "fpgm": (0.1066, 0.1461, 93.57), "gbn": (0.0710, 0.0414, 93.70),
                      "ekg": (0.0713, 0.0211, 93.85)}


@dataclasses.dataclass(frozen=True)
class Run:
    """What a finished run left.

    Attributes:
        folder: pathlib.Path.
        arguments: as in arguments.json.
        history: list of HistoryEntry.
        curves: list of {"phase", "step", ...}, a line a search step or epoch.
        table: list of utils.Row: baseline, slimmed, fine-tuned.
        phases: {phase: {"seconds", "peak_memory_mib"}}.
    """
    folder: object
    arguments: dict
    history: list
    curves: list
    table: list
    phases: dict

    @property
    def name(self):
        return f"{self.arguments['arch']} on {self.arguments['dataset']}"


def read_run(folder):
    """Returns the Run of a folder.

    Raises:
        utils.UserError: it is no run folder, or the run is not finished.
    """
    if not (folder / "arguments.json").is_file():
        raise utils.UserError(f"{folder}: is no run folder: there is no arguments.json in it.")
    if not (folder / "summary.json").is_file():
        raise utils.UserError(f"{folder}: the run is not finished; start it again with the same command.")
    summary = utils.read_json(folder / "summary.json")
    return Run(folder, utils.read_json(folder / "arguments.json"),
               [HistoryEntry.from_json(line) for line in utils.read_json_lines(folder / "history.jsonl")],
               utils.read_json_lines(folder / "curves.jsonl"), [utils.Row(**row) for row in summary["table"]],
               summary["phases"])


def seconds_of(run, *phases):
    """Returns the seconds of some phases; one that was killed each time before its end left none."""
    return sum(run.phases.get(phase, {}).get("seconds", 0.0) for phase in phases)


def write_report(folder):
    """Writes report.png and the self-contained report.html of a finished run into its folder, and returns a line of text."""
    run = read_run(folder)
    last = run.history[-1].subnetwork
    sizes = {name: len(order) for name, order in zip(last.names, last.order)}
    figures.draw_run(folder / "report.png", run.history, sizes, run.curves, run.table)
    head = ["network", "loss", "top-1 %", "top-5 %", "parameters", "FLOPs", "rate"]
    rows = [[row.name, f"{row.loss:.4f}", f"{100 * row.top1:.2f}", f"{100 * row.top5:.2f}", f"{row.params:,}",
             f"{row.flops:,}", f"{row.flops / run.table[0].flops:.4f}"] for row in run.table]
    phases = [[name, f"{value['seconds']:,.0f}", f"{value['peak_memory_mib']:,}"] for name, value in run.phases.items()]
    title = f"{run.name}, {run.table[2].flops / run.table[0].flops:.1%} of the FLOPs"
    figures.write_page(folder / "report.html", title, folder / "report.png",
                       {"Networks": (head, rows), "Phases": (["phase", "seconds", "peak memory, MiB"], phases)})
    return (f"{title}: top-1 {100 * run.table[0].top1:.2f} % before and {100 * run.table[2].top1:.2f} % after, "
            f"{len(run.history) - 1} search steps")


def correlate(first, second, seed=0):
    """Returns {"pearson", "spearman": coefficient, "…_interval": 95 % bootstrap interval} of two rows of numbers.

    Pairs are drawn with replacement BOOTSTRAP_SAMPLES times; the interval holds the middle 95 % of the coefficients. What
    pairs that are all the same leave undefined is NaN.
    """
    first, second, result = np.asarray(first, float), np.asarray(second, float), {}
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(first), (BOOTSTRAP_SAMPLES, len(first)))
    for name, function in (("pearson", _pearson), ("spearman", _spearman)):
        sampled = [function(first[draw], second[draw]) for draw in draws]
        result[name] = function(first, second)
        known = [value for value in sampled if not np.isnan(value)] or [float("nan")]
        result[f"{name}_interval"] = np.percentile(known, [2.5, 97.5]).tolist()
    return result


def interval_text(found):
    """Returns the interval of Pearson's coefficient that correlate() found, as text."""
    low, high = found["pearson_interval"]
    return f"{low:.2f} to {high:.2f}"


def _pearson(first, second):
    first, second = first - first.mean(), second - second.mean()
    size = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / size) if size > 0 else float("nan")


def _spearman(first, second):
    return _pearson(stats.rankdata(first), stats.rankdata(second))


def mean_and_deviation(values):
    """Returns (mean, sample standard deviation) of a list; the deviation of one value is 0."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def random_subnetwork(supernet, scores, rate, rng):
    """Returns a sub-network of random widths whose rate is as close below `rate` as one factor on all widths gets it.

    Args:
        supernet: the Supernet.
        scores: importance of every channel, float array [num_channels]; the most important ones stay.
        rate: share of the FLOPs.
        rng: numpy Generator.
    """
    ranked = supernet.whole().ranked([scores[supernet.layout.channels(i)] for i in range(len(supernet.groups))])
    widths = rng.uniform(0.2, 1.0, len(supernet.groups))

    def scaled(factor):
        return ranked.with_widths({group.name: min(factor * width, 1.0) for group, width in zip(supernet.groups, widths)})
    low, high = 0.0, 5.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if supernet.rate(scaled(middle)) <= rate else (low, middle)
    return scaled(low)


def tables(runs):
    """Returns Markdown tables of runs, next to the published figures, and of repeated ones with mean ± deviation."""
    head = ("| network | data | search / fine-tuning teacher | criterion | seeds | epochs | baseline top-1 % | published | "
            "rate | pruned top-1 % | published | hours |")
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    groups = {}
    for run in runs:
        names = ("arch", "dataset", "search_teacher", "finetune_teacher", "criterion", "target_rate", "train_epoch",
                 "trained_param")
        groups.setdefault(tuple(run.arguments[name] for name in names), []).append(run)
    for (arch, dataset, search, tune, criterion, _, epochs, _), own in groups.items():
        before, _ = mean_and_deviation([100 * run.table[0].top1 for run in own])
        after, deviation = mean_and_deviation([100 * run.table[2].top1 for run in own])
        rate, _ = mean_and_deviation([run.table[2].flops / run.table[0].flops for run in own])
        hours, _ = mean_and_deviation([sum(phase["seconds"] for phase in run.phases.values()) / 3600 for run in own])
        published = PUBLISHED.get((arch, dataset), (None, None, None))
        pruned = f"{after:.2f}" + (f" ± {deviation:.2f}" if len(own) > 1 else "")
        cells = [arch, dataset, f"{search} / {tune}", criterion, len(own), epochs, f"{before:.2f}", _cell(published[0]),
                 f"{rate:.3f}", pruned, _cell(published[1], published[2]), f"{hours:.2f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _cell(value, rate=None):
    return "" if value is None else f"{value:.2f}" + (f" at {rate:.3f}" if rate else "")
