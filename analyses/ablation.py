"""The ablation of the paper: search teacher x fine-tuning teacher, with several seeds.

Training with labels alone has two rows: with one view per image, as published, and with the two
views that teachers get, so that the effects of views and teachers can be told apart.
"""

import numpy as np

from analyses import published
from analyses.records import counted
from analyses.results import mean_and_deviation, write_results
from ekg.errors import EkgError

VIEWS = {1: "one view", 2: "two views"}


def compare_teachers(runs, seeds, out):
    """Prunes with the teachers of each row and each seed; writes, draws and returns the rows.

    Rows with the same search teacher share their searches.

    Args:
        runs: runs.PruningRuns.
        seeds: list of seeds.
        out: pathlib.Path of the folder for the results.

    Raises:
        EkgError: the flags of the runs set the number of views, in which the rows differ.
    """
    if any(flag.split("=")[0] == "--num_views" for flag in runs.more_flags):
        raise EkgError("`num_views`: rows of the ablation differ in it; leave it out.")
    rows = []
    for configuration in _configurations():
        finished = [_finish(runs, *configuration, seed) for seed in seeds]
        rows.append(_row(*configuration, finished))
    title = f"{runs}, {counted(len(seeds), 'seed')}"
    names = [f"{row['search']} / {row['fine_tuning']}, {VIEWS[row['views']]}" for row in rows]
    _draw(out / "ablation.png", title, names, rows)
    texts = []
    for name, row in zip(names, rows):
        deviation = f" ± {row['deviation']:.2f}" if len(seeds) > 1 else ""
        texts.append(f"{name} {row['top1']:.2f}{deviation} %")
    text = f"{title}, search / fine-tuning teacher: {'; '.join(texts)}"
    write_results(out, "ablation", rows, text)
    return rows


def _configurations():
    """Yields (search teacher, fine-tuning teacher, views per image) of every row."""
    for search_teacher, finetune_teacher in published.TEACHERS:
        for num_views in (1, 2) if finetune_teacher == "none" else (2,):
            yield search_teacher, finetune_teacher, num_views


def all_run_flags(seeds):
    """Returns a list with the flags of every run."""
    return [_run_flags(*row, seed) for row in _configurations() for seed in seeds]


def _run_flags(search_teacher, finetune_teacher, num_views, seed):
    return [
        "--search_teacher",
        search_teacher,
        "--finetune_teacher",
        finetune_teacher,
        "--seed",
        str(seed),
        "--num_views",
        str(num_views),
    ]


def _finish(runs, search_teacher, finetune_teacher, num_views, seed):
    """Returns the FinishedRun of a row and seed.

    The row without teacher in fine-tuning and with one view searches; the others reuse its search.
    """
    first = f"{search_teacher}-none-{seed}"
    flags = _run_flags(search_teacher, finetune_teacher, num_views, seed)
    if (finetune_teacher, num_views) == ("none", 1):
        return runs.finish(first, *flags)
    views = "-2" if finetune_teacher == "none" else ""
    name = f"{search_teacher}-{finetune_teacher}{views}-{seed}"
    return runs.finish(name, *flags, "--search_from", str(runs.path / first))


def _row(search_teacher, finetune_teacher, num_views, finished):
    """Returns the row for the FinishedRuns of all seeds."""
    mean, deviation = mean_and_deviation([100 * run.table[2].top1 for run in finished])
    return {
        "search": search_teacher,
        "fine_tuning": finetune_teacher,
        "views": num_views,
        "seeds": len(finished),
        "top1": mean,
        "deviation": deviation,
        "search_seconds": np.mean([run.seconds("search") for run in finished]),
        "finetune_seconds": np.mean([run.seconds("bank", "fine-tune") for run in finished]),
        "baseline_top1": 100 * finished[0].table[0].top1,
    }


def _draw(path, title, names, rows):
    from analyses import pictures  # imports matplotlib

    pictures.draw_comparison(
        path,
        title,
        names,
        [
            (
                "top-1 after fine-tuning, %",
                [row["top1"] for row in rows],
                [row["deviation"] for row in rows],
            ),
            ("search, s", [row["search_seconds"] for row in rows], None),
            ("bank and fine-tuning, s", [row["finetune_seconds"] for row in rows], None),
        ],
    )
