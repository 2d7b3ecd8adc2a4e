"""Compares criteria: prunes with each at one rate, and fine-tunes with labels alone."""

from analyses import published
from analyses.conditions import check_converged, kept_spectrum_values
from analyses.results import write_results
from ekg.run.folder import CONDITION, SLIMMED, SUPERNET


def compare_criteria(subject, runs, names, settings, out):
    """Prunes with each criterion; writes, draws and returns a row per criterion.

    Args:
        subject: Subject.
        runs: runs.PruningRuns.
        names: names of the criteria.
        settings: SpectrumSettings of the condition numbers of the pruned networks.
        out: pathlib.Path of the folder for the results.

    Raises:
        NotConverged: an eigenvalue is not known to the tolerance.
    """
    batches = subject.batches()
    rows = []
    figures = {}
    for name in names:
        run = runs.finish(name, *run_flags(name))
        folder = runs.folder(name)
        slimmed = subject.load(folder / SLIMMED)
        original = subject.load(folder / SUPERNET)
        spectrum = kept_spectrum_values(folder / CONDITION, slimmed, original, batches, settings)
        rows.append(
            {
                "criterion": name,
                "val_loss": run.history[-1].loss,
                "condition": spectrum["condition"],
                **spectrum,
                "top1": 100 * run.table[2].top1,
                "rate": run.rate,
                "search_seconds": run.seconds("search"),
                "steps": len(run.history) - 1,
            }
        )
        paper = published.find(run.arguments)
        if paper is not None and paper.condition is not None:
            figures[name] = (paper.val_loss, paper.condition, paper.top1)
    _draw(out / "criteria.png", str(runs), rows)
    best = max(rows, key=lambda row: row["top1"])
    texts = [
        f"{row['criterion']} loss {row['val_loss']:.4f}, κ {row['condition']:.4f}, top-1 "
        f"{row['top1']:.2f} %"
        for row in rows
    ]
    text = f"{runs}: {'; '.join(texts)}. Best after fine-tuning: {best['criterion']}"
    write_results(out, "criteria", rows, text, published=figures)
    check_converged(rows, "criterion", out)
    return rows


def run_flags(criterion):
    """Returns the flags of the run with a criterion."""
    return ["--criterion", criterion, "--finetune_teacher", "none"]


def _draw(path, title, rows):
    from analyses import pictures  # imports matplotlib

    labels = {
        "val_loss": "validation loss, nats",
        "condition": "condition number",
        "top1": "top-1 after fine-tuning, %",
    }
    pictures.draw_comparison(
        path,
        title,
        [row["criterion"] for row in rows],
        [(label, [row[name] for row in rows], None) for name, label in labels.items()],
    )
