"""Markdown tables of finished runs, next to the figures that the paper reports of such runs."""

import dataclasses

from analyses import drawings, published, repetitions, studies
from analyses.records import came_of, collect, counted
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
RECORDS, PAGE = (
    "results",
    "results.md",
)  # in the folder of --out: files of records, and the page made of them
STUDIED = "studies"  # in the folder of the records: files and pictures of studies
BEGIN, END = "<!-- results, made by analyze.py tables -->", "<!-- end of results -->"


def write_tables(paths, out=None, readme=None):
    """Prints the tables of finished runs and returns them.

    Args:
        paths: run folders, folders and files of records.Record, and folders of studies.ANALYSES.
        out: pathlib.Path of the folder that keeps a record of each run folder and study in
            results/, and gets results.md, of all records there; None writes nothing.
        readme: pathlib.Path of a page whose table of published figures, between BEGIN and END, is
            rewritten; or None.

    Raises:
        EkgError: a folder holds no finished run, or a page has no place for its table.
    """
    studied = [path for path in paths if studies.results_of(path)]
    records = collect([path for path in paths if path not in studied], out and out / RECORDS)
    found = studies.collect(studied, out and out / RECORDS / STUDIED)
    if out is not None:
        records, found = kept(out)
    text = format_page(records, found)
    if out is not None:
        drawings.draw(records, out / RECORDS)
        replace_part(out / PAGE, text)
    if readme is not None:
        replace_part(readme, format_readme(records))
    print(text)
    return text


def kept(folder):
    """Returns (Records, Studies) that the folder of --out keeps."""
    return (
        collect(sorted((folder / RECORDS).glob("*.json"))),
        studies.collect(sorted((folder / RECORDS / STUDIED).glob("*.json"))),
    )


def replace_part(page, text):
    """Puts text between the lines BEGIN and END of a page; a page that is not there is made.

    Raises:
        EkgError: the page lacks the lines.
    """
    old = page.read_text() if page.exists() else f"{BEGIN}\n{END}\n"
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise EkgError(f"{page}: must hold the lines {BEGIN} and {END} once, in this order.")
    new = f"{old[: old.index(BEGIN)]}{BEGIN}\n\n{text}\n\n{old[old.index(END) :]}"
    files.write_whole(page, lambda file: file.write(new.encode()))


# ---------------------------------------------------------------- tables


def format_page(records, found=()):
    """Returns the part of a page that is made of Records and Studies: tables, and pictures that lie
    beside these.
    """
    parts = []
    if records:
        parts += [
            format_runs(records),
            *(f"![{drawings.TEXTS[name]}]({RECORDS}/{name})" for name in drawings.shown(records)),
        ]
    of_method = [record for record in records if _is_method(record.arguments)]
    if any(map(_costs, of_method)):
        parts.append(format_costs(of_method))
    if found:
        parts.append(studies.format_studies(found, f"{RECORDS}/{STUDIED}"))
    if records:
        parts.append(format_each(records))
    return "\n\n".join(parts) or "Nothing was run yet."


def format_runs(records):
    """Returns a Markdown table with a row for each kind of run; of repeated ones it has mean ±
    deviation.
    """
    return markdown_table(COLUMNS, [_cells(group) for group in repetitions.group(records)])


def format_each(records):
    """Returns a Markdown table with a row for each run: how long, where, and by which command."""
    return markdown_table(EACH, [_each(record) for record in records])


def format_costs(records):
    """Returns a Markdown table of latency and exported files, before and after, of the runs that
    measured them.
    """
    return markdown_table(COSTS, [row for record in records for row in _costs(record)])


def format_headlines(records):
    """Returns the paper's main figures beside our runs of the same on the original images, as a
    Markdown table, and one sentence that names those that were not run.
    """
    rows, missing, groups = [], [], repetitions.group(records)
    for figures in published.FIGURES:
        if not _is_method(dataclasses.asdict(figures)):
            continue
        ours = [
            group
            for group in groups
            if published.find(group.arguments) == figures and group.first.is_original
        ]
        network, rate = f"{figures.arch}, {figures.dataset}", f"{100 * figures.rate:.1f} %"
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
                "; ".join(map(_headline, ours)),
            ]
        )
    parts = [markdown_table(HEADLINES, rows)] if rows else []
    if missing:
        parts.append(f"Not run yet on the paper's images and schedule: {'; '.join(missing)}.")
    return "\n\n".join(parts)


def _headline(group):
    """Returns the accuracy of Repetitions, with their seeds and epochs."""
    epochs = counted(group.arguments["train_epoch"], "epoch")
    facts = (group.top1(-1), counted(len(group.records), "seed"), epochs, group.special)
    return ", ".join(filter(None, facts))


def format_readme(records):
    """Returns the published figures beside our runs of the same, and before them the runs of the
    method and of its peers on the largest other network that was run.

    Smaller networks, other teachers and other criteria are in the page of results alone.
    """
    others = [
        group
        for group in repetitions.group(records)
        if not (published.find(group.arguments) and group.first.is_original)
        and _is_method_or_peer(group.arguments)
    ]
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
    """Returns whether a run is of the whole method, or of something that is compared with it and
    searches nothing.
    """
    return not arguments["search_teacher"] or _is_method(arguments)


def _is_method(arguments):
    return (
        arguments["search_teacher"],
        arguments["finetune_teacher"],
        arguments["criterion"],
    ) == METHOD


def _cells(group):
    """Returns the cells of Repetitions."""
    first, arguments = group.first, group.arguments
    rate, before = group.mean(lambda record: record.rate), group.mean(lambda record: record.top1(0))
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
    """Returns what the paper reports of the baseline and of the pruned network; empty texts where
    it says nothing.
    """
    if paper is None:
        return "", ""
    baseline = published.BASELINES.get((paper.arch, paper.dataset))
    return "" if baseline is None else f"{baseline:.2f}", f"{paper.top1:.2f} at {paper.rate:.3f}"


def _costs(record):
    """Returns the rows of format_costs() of one record: of its latencies, and of its exported
    files.
    """
    before, after = record.table[0], record.table[-1]
    rows = []
    for where, timing in after["latencies"].items():
        old, new = before["latencies"][where]["milliseconds"], timing["milliseconds"]
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
        *came_of([(record.origin, record.arguments.get("versions", {}))]),
        f"`{record.command}`",
    ]
