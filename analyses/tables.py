"""Markdown tables of finished runs, next to the paper's figures for such runs."""

import dataclasses

from analyses import drawings, published, repetitions, studies
from analyses.records import collect, counted, provenance_cells
from analyses.results import markdown_table
from ekg.errors import EkgError
from ekg.io import files
from ekg.report.table import milliseconds_text

COLUMNS = (
    "network",
    "data",
    "search / fine-tuning teacher",
    "criterion",
    "seeds",
    "epochs",
    "baseline top-1 %",
    "published",
    "rate",
    "search's loss",
    "cut top-1 %",
    "fine-tuned top-1 %",
    "published",
    "parameters %",
    "hours",
    "runs",
)
SHORT = (
    "network",
    "data",
    "method",
    "seeds",
    "epochs",
    "FLOPs kept",
    "baseline top-1 %",
    "pruned top-1 %",
)
COSTS = ("run", "where", "unpruned, ms", "pruned, ms", "ratio", "unpruned, bytes", "pruned, bytes")
EACH = ("run", "seed", "top-1 %", "minutes", "machine", "versions", "revision", "command")
METHOD = ("ensemble", "ensemble", "ekg")  # teachers of search and fine-tuning, criterion
HEADLINES = ("network", "baseline", "pruned, published", "FLOPs kept", "ours")
RECORDS = "results"  # folder of the records, in the folder of --out
PAGE = "results.md"  # the page generated from them, in the folder of --out
STUDIED = "studies"  # folder of studies and their pictures, in the folder of the records
BEGIN = "<!-- results, made by analyze.py tables -->"
END = "<!-- end of results -->"


def write_tables(paths, out=None, readme=None):
    """Prints the tables of finished runs and returns them.

    Args:
        paths: run folders, folders and files of records.Record, and folders of studies.ANALYSES.
        out: pathlib.Path of the folder whose results/ stores a record of each run and study, and
            whose results.md is generated from all records there; None writes nothing.
        readme: pathlib.Path of a page whose table of published figures, between BEGIN and END, is
            rewritten; or None.

    Raises:
        EkgError: a folder holds no finished run, or a page has no place for its table.
    """
    study_paths = [path for path in paths if studies.results_of(path)]
    run_paths = [path for path in paths if path not in study_paths]
    records = collect(run_paths, out and out / RECORDS)
    all_studies = studies.collect(study_paths, out and out / RECORDS / STUDIED)
    if out is not None:
        records, all_studies = kept(out)
    text = format_page(records, all_studies)
    if out is not None:
        drawings.draw(records, out / RECORDS)
        replace_part(out / PAGE, text)
    if readme is not None:
        replace_part(readme, format_readme(records))
    print(text)
    return text


def kept(folder):
    """Returns (Records, Studies) stored in the folder of --out."""
    return (
        collect(sorted((folder / RECORDS).glob("*.json"))),
        studies.collect(sorted((folder / RECORDS / STUDIED).glob("*.json"))),
    )


def replace_part(page, text):
    """Replaces the text between the lines BEGIN and END of a page; creates a missing page.

    Raises:
        EkgError: the page lacks the lines.
    """
    old = page.read_text() if page.exists() else f"{BEGIN}\n{END}\n"
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise EkgError(f"{page}: must hold the lines {BEGIN} and {END} once, in this order.")
    new = f"{old[: old.index(BEGIN)]}{BEGIN}\n\n{text}\n\n{old[old.index(END) :]}"
    files.write_whole(page, lambda file: file.write(new.encode()))


# ---------------------------------------------------------------- tables


def format_page(records, all_studies=()):
    """Returns the generated part of a page: tables of Records and Studies, with their pictures."""
    parts = []
    if records:
        parts += [
            format_runs(records),
            *(f"![{drawings.TEXTS[name]}]({RECORDS}/{name})" for name in drawings.shown(records)),
        ]
    of_method = [record for record in records if _is_method(record.arguments)]
    if any(map(_costs, of_method)):
        parts.append(format_costs(of_method))
    if all_studies:
        parts.append(studies.format_studies(all_studies, f"{RECORDS}/{STUDIED}"))
    if records:
        parts.append(format_each(records))
    return "\n\n".join(parts) or "Nothing was run yet."


def format_runs(records):
    """Returns a Markdown table with a row per group of repeated runs, as mean ± deviation."""
    return markdown_table(COLUMNS, [_cells(group) for group in repetitions.group(records)])


def format_each(records):
    """Returns a Markdown table with a row per run: duration, machine and command."""
    return markdown_table(EACH, [_each(record) for record in records])


def format_costs(records):
    """Returns a Markdown table of latencies and exported files, of the runs that measured them."""
    return markdown_table(COSTS, [row for record in records for row in _costs(record)])


def format_headlines(records):
    """Returns the paper's main figures beside our runs, and a sentence on what was not run.

    The figures are a Markdown table; runs on other than the original images do not count.
    """
    groups = repetitions.group(records)
    rows, missing = [], []
    for figures in published.FIGURES:
        if not _is_method(dataclasses.asdict(figures)):
            continue
        ours = [
            _headline(group)
            for group in groups
            if published.find(group.arguments) == figures and group.first.is_original
        ]
        network = f"{figures.arch}, {figures.dataset}"
        rate = f"{100 * figures.rate:.1f} %"
        if not ours:
            missing.append(f"{network} at {rate}")
            continue
        baseline = published.BASELINES.get((figures.arch, figures.dataset))
        deviation = "" if figures.deviation is None else f" ± {figures.deviation:.2f}"
        rows.append(
            [
                network,
                "" if baseline is None else f"{baseline:.2f}",
                f"{figures.top1:.2f}{deviation}",
                rate,
                "; ".join(ours),
            ]
        )
    parts = [markdown_table(HEADLINES, rows)] if rows else []
    if missing:
        parts.append(f"Not run yet on the paper's images and schedule: {'; '.join(missing)}.")
    return "\n\n".join(parts)


def _headline(group):
    """Returns accuracy, seeds and epochs of Repetitions as text."""
    texts = [
        group.top1(-1),
        counted(len(group.records), "seed"),
        counted(group.arguments["train_epoch"], "epoch"),
    ]
    if group.special:
        texts.append(group.special)
    return ", ".join(texts)


def format_readme(records):
    """Returns the runs of method and peers on the largest network, and the paper's figures.

    Smaller networks, other teachers and other criteria are only on the page of results.
    """
    others = []
    for group in repetitions.group(records):
        is_published = published.find(group.arguments) and group.first.is_original
        if not is_published and _is_method_or_peer(group.arguments):
            others.append(group)
    if not others:
        return format_headlines(records)
    largest = max(others, key=_unpruned_flops)
    rows = [_short_cells(group) for group in others if _network(group) == _network(largest)]
    return f"{markdown_table(SHORT, rows)}\n\n{format_headlines(records)}"


def _unpruned_flops(group):
    return group.first.table[0]["flops"]


def _network(group):
    return group.arguments["arch"], group.first.data


def _short_cells(group):
    rate = group.mean(lambda record: record.rate)
    before = group.mean(lambda record: record.top1(0))
    return [
        group.arguments["arch"],
        group.first.data,
        group.method,
        len(group.records),
        group.arguments["train_epoch"],
        f"{100 * rate:.1f} %",
        f"{before:.2f}",
        group.top1(-1),
    ]


def _is_method_or_peer(arguments):
    """Returns whether a run is one of the whole method, or of a peer that does not search."""
    return not arguments["search_teacher"] or _is_method(arguments)


def _is_method(arguments):
    names = ("search_teacher", "finetune_teacher", "criterion")
    return tuple(arguments[name] for name in names) == METHOD


def _cells(group):
    """Returns the cells of COLUMNS for Repetitions."""
    first = group.first
    arguments = group.arguments
    rate = group.mean(lambda record: record.rate)
    before = group.mean(lambda record: record.top1(0))
    params = group.mean(lambda record: 100 * record.table[-1]["params"] / record.table[0]["params"])
    hours = group.mean(lambda record: sum(record.minutes.values()) / 60)
    paper_baseline, paper_pruned = _published_cells(published.find(arguments))
    has_losses = all(record.val_loss is not None for record in group.records)
    loss = f"{group.mean(lambda record: record.val_loss):.3f}" if has_losses else ""
    cut = "" if len(first.table) < 3 else group.top1(1)
    return [
        arguments["arch"],
        first.data,
        first.teachers,
        group.criterion,
        len(group.records),
        arguments["train_epoch"],
        f"{before:.2f}",
        paper_baseline,
        f"{rate:.3f}",
        loss,
        cut,
        group.top1(-1),
        paper_pruned,
        f"{params:.1f}",
        f"{hours:.2f}",
        ", ".join(record.name for record in group.records),
    ]


def _published_cells(paper):
    """Returns (baseline, pruned network) of the paper's Figures as text; empty without figures."""
    if paper is None:
        return "", ""
    baseline = published.BASELINES.get((paper.arch, paper.dataset))
    baseline_cell = "" if baseline is None else f"{baseline:.2f}"
    return baseline_cell, f"{paper.top1:.2f} at {paper.rate:.3f}"


def _costs(record):
    """Returns the rows of COSTS for a record: one per latency and exported file."""
    before = record.table[0]
    after = record.table[-1]
    rows = []
    for where, timing in after["latencies"].items():
        old = before["latencies"][where]["milliseconds"]
        new = timing["milliseconds"]
        ratio = timing.get("ratio", new / old)
        rows.append(
            [
                record.name,
                where,
                milliseconds_text(old),
                milliseconds_text(new),
                f"{ratio:.2f}",
                "",
                "",
            ]
        )
    for form, size in after["exports"].items():
        old = before["exports"][form]
        rows.append(
            [record.name, f"file, {form}", "", "", f"{size / old:.2f}", f"{old:,}", f"{size:,}"]
        )
    return rows


def _each(record):
    minutes = ", ".join(f"{phase} {value:.1f}" for phase, value in record.minutes.items())
    return [
        record.name,
        record.arguments.get("seed", ""),
        f"{record.top1(-1):.2f}",
        minutes,
        *provenance_cells([(record.origin, record.arguments.get("versions", {}))]),
        f"`{record.command}`",
    ]
