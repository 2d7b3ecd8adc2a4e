"""Search teacher x fine-tuning teacher, the rows of the paper, with several seeds."""

import numpy as np

from analyses import published
from analyses.results import mean_and_deviation, write_results


def compare_teachers(runs, seeds, out):
    """Prunes with the teachers of each row and each seed; writes and draws what comes of it, returns the rows.

    Rows of one search share it.

    Args:
        runs: runs.PruningRuns.
        seeds: list of the seeds.
        out: pathlib.Path of the folder for the results.
    """
    rows = [_row(search_teacher, finetune_teacher,
                 [_finish(runs, search_teacher, finetune_teacher, seed) for seed in seeds])
            for search_teacher, finetune_teacher in published.TEACHERS]
    several = len(seeds) > 1
    title = f"{runs}, {len(seeds)} seed{'s' * several}"
    names = [f"{row['search']} / {row['fine_tuning']}" for row in rows]
    _draw(out / "ablation.png", title, names, rows)
    text = f"{title}, search / fine-tuning teacher: " + "; ".join(
        f"{name} {row['top1']:.2f}" + f" ± {row['deviation']:.2f}" * several + " %" for name, row in zip(names, rows))
    write_results(out, "ablation", rows, text)
    return rows


def _finish(runs, search_teacher, finetune_teacher, seed):
    """Returns the FinishedRun of a row and seed; one that fine-tunes with a teacher takes the search of one without."""
    searched = runs.path / f"{search_teacher}-none-{seed}"
    shared_search = () if finetune_teacher == "none" else ("--search_from", str(searched))
    return runs.finish(f"{search_teacher}-{finetune_teacher}-{seed}", "--search_teacher", search_teacher,
                       "--finetune_teacher", finetune_teacher, "--seed", str(seed), *shared_search)


def _row(search_teacher, finetune_teacher, finished):
    """Returns the row of the FinishedRuns of all seeds."""
    mean, deviation = mean_and_deviation([100 * run.table[2].top1 for run in finished])
    return {"search": search_teacher, "fine_tuning": finetune_teacher, "seeds": len(finished), "top1": mean,
            "deviation": deviation, "search_seconds": np.mean([run.seconds("search") for run in finished]),
            "finetune_seconds": np.mean([run.seconds("bank", "fine-tune") for run in finished]),
            "baseline_top1": 100 * finished[0].table[0].top1}


def _draw(path, title, names, rows):
    from analyses import pictures  # imports matplotlib

    pictures.draw_comparison(path, title, names, [
        ("top-1 after fine-tuning, %", [row["top1"] for row in rows], [row["deviation"] for row in rows]),
        ("search, s", [row["search_seconds"] for row in rows], None),
        ("bank and fine-tuning, s", [row["finetune_seconds"] for row in rows], None)])
