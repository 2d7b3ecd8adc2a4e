"""Markdown tables of finished runs, next to the figures that the paper reports of such runs."""

from analyses import published
from analyses.results import mean_and_deviation
from ekg.run.folder import RunFolder

COLUMNS = ("network", "data", "search / fine-tuning teacher", "criterion", "seeds", "epochs", "baseline top-1 %",
           "published", "rate", "pruned top-1 %", "published", "hours")
# Runs that differ in none of these are repetitions of each other.
REPEATED = ("arch", "dataset", "search_teacher", "finetune_teacher", "criterion", "target_rate", "train_epoch",
            "trained_param")


def write_tables(paths, out=None):
    """Prints the table of finished runs and returns it.

    Args:
        paths: run folders.
        out: pathlib.Path of the folder that gets tables.md; None writes none.

    Raises:
        EkgError: a folder holds no finished run.
    """
    text = format_runs([RunFolder(path).read_finished() for path in paths])
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "tables.md").write_text(text + "\n")
    print(text)
    return text


def format_runs(runs):
    """Returns a Markdown table with a row for each kind of run; of repeated ones it has mean ± deviation.

    Args:
        runs: list of page.FinishedRun.
    """
    groups = {}
    for run in runs:
        groups.setdefault(tuple(run.arguments[name] for name in REPEATED), []).append(run)
    lines = [_line(COLUMNS), "|" + "---|" * len(COLUMNS)]
    return "\n".join(lines + [_line(_cells(group)) for group in groups.values()])


def _line(cells):
    return "| " + " | ".join(map(str, cells)) + " |"


def _cells(group):
    """Returns the cells of a list of repeated runs."""
    arguments, paper = group[0].arguments, published.find(group[0].arguments)
    before, _ = mean_and_deviation([100 * run.table[0].top1 for run in group])
    after, deviation = mean_and_deviation([100 * run.table[2].top1 for run in group])
    rate, _ = mean_and_deviation([run.rate for run in group])
    hours, _ = mean_and_deviation([run.seconds(*run.phases) / 3600 for run in group])
    pruned = f"{after:.2f}" + (f" ± {deviation:.2f}" if len(group) > 1 else "")
    paper_baseline, paper_pruned = _published_cells(paper)
    return [arguments["arch"], arguments["dataset"], f"{arguments['search_teacher']} / {arguments['finetune_teacher']}",
            arguments["criterion"], len(group), arguments["train_epoch"], f"{before:.2f}", paper_baseline, f"{rate:.3f}",
            pruned, paper_pruned, f"{hours:.2f}"]


def _published_cells(paper):
    """Returns what the paper reports of the baseline and of the pruned network; empty texts where it says nothing."""
    if paper is None:
        return "", ""
    baseline = published.BASELINES.get((paper.arch, paper.dataset))
    return "" if baseline is None else f"{baseline:.2f}", f"{paper.top1:.2f} at {paper.rate:.3f}"
