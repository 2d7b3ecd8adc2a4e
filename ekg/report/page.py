"""A finished run as one page: a picture and tables."""

import base64
import dataclasses
import html
from pathlib import Path

from ekg.io import files
from ekg.report.table import latency_text
from ekg.tasks.metrics import metric_named


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedRun:
    """What a finished run left.

    Attributes:
        arguments: as in its arguments.json.
        history: list of HistoryEntry.
        curves: list of {"phase", "step", ...}, a line a search step or epoch.
        table: list of table.Row: baseline, slimmed and, unless the run ends there, fine-tuned.
        phases: {phase: {"seconds", "peak_memory_mib", "peak_gpu_mib"}}.
        origin: {"revision", "machine", "cores"}; empty of a run of an earlier version.
        choice: choice.Choice of the network that the run hands out as a dict; None where there was
            none.
    """

    arguments: dict
    history: list
    curves: list
    table: list
    phases: dict
    origin: dict = dataclasses.field(default_factory=dict)
    choice: dict | None = None

    @property
    def name(self):
        return f"{self.arguments['arch']} on {self.arguments['dataset']}"

    @property
    def metric(self):
        """Name of the task's first figure of merit."""
        return next(iter(self.table[0].metrics))

    @property
    def result(self):
        """Row of the network that the run hands out: the last, or the better one on the search's
        images.
        """
        if self.choice is None:
            return self.table[-1]
        return next(row for row in self.table if row.name == self.choice["name"])

    @property
    def rate(self):
        """Share of the FLOPs that the pruned network keeps."""
        return self.result.flops / self.table[0].flops

    def seconds(self, *phases):
        """Returns the seconds of some phases; one that was killed each time before its end left
        none.
        """
        return sum(self.phases.get(phase, {}).get("seconds", 0.0) for phase in phases)


def write_report(run, picture, page):
    """Writes the picture and the self-contained page of a FinishedRun, and returns a line of text.

    Args:
        run: FinishedRun.
        picture: path of the PNG.
        page: path of the HTML page.
    """
    from ekg.report import pictures  # imports matplotlib

    pictures.draw_run(picture, run)
    metrics = {name: metric_named(name) for name in run.table[0].metrics}
    titles = [metric.title for metric in metrics.values()]
    head = ["network", "loss", *titles, "parameters", "FLOPs", "rate"]
    rows = [
        [
            row.name,
            *map(row.text, ("loss", *metrics)),
            f"{row.params:,}",
            f"{row.flops:,}",
            f"{row.flops / run.table[0].flops:.4f}",
        ]
        for row in run.table
    ]
    costs = _costs_of(run.table)
    phases = [
        [
            name,
            f"{value['seconds']:,.0f}",
            f"{value['peak_memory_mib']:,}",
            f"{value.get('peak_gpu_mib', 0):,}",
        ]
        for name, value in run.phases.items()
    ]
    title = f"{run.name}, {run.rate:.1%} of the FLOPs"
    write_page(
        page,
        title,
        picture,
        {
            "Networks": (head, rows),
            **costs,
            "Phases": (["phase", "seconds", "peak memory, MiB", "of a GPU, MiB"], phases),
        },
    )
    metric = metric_named(run.metric)
    before, after = (
        metric.text(row.metrics[run.metric]) + " %" * metric.is_share
        for row in (run.table[0], run.result)
    )
    return (
        f"{title}: {metric.words} {before} before and {after} after, {len(run.history) - 1} "
        "search steps"
    )


def _costs_of(table):
    """Returns {heading: table} of latencies and exported files, where there are any."""
    conditions, exports = list(table[0].latencies), list(table[0].exports)
    tables = {}
    if conditions:
        rows = [
            [row.name, *(latency_text(row.latencies[name]) for name in conditions)] for row in table
        ]
        tables["Latency, ms = ratio to the unpruned network [first, last decile]"] = (
            ["network", *conditions],
            rows,
        )
    if exports:
        tables["Exported files, bytes"] = (
            ["network", *exports],
            [[row.name, *(f"{row.exports[name]:,}" for name in exports)] for row in table],
        )
    return tables


def write_page(path, title, picture, tables):
    """Writes a self-contained HTML page: a title, a picture, tables.

    Args:
        path: of the page.
        title: text.
        picture: path of a PNG, which goes into the page.
        tables: {heading: (list of column names, list of rows of texts)}.
    """
    data = base64.b64encode(Path(picture).read_bytes()).decode()
    parts = [
        "<!doctype html><html lang='en'><head><meta "
        f"charset='utf-8'><title>{html.escape(title)}</title><style>body{{font:15px/1.45 "
        "system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 "
        "1em;color:#222}img{max-width:100%}table{border-collapse:collapse;margin:1em "
        "0}td,th{padding:.3em .8em;border-bottom:1px solid "
        f"#ddd;text-align:right}}td:first-child,th:first-child{{text-align:left}}</style></head><body><h1>{html.escape(title)}</h1>"
    ]
    for heading, (head, rows) in tables.items():
        cells = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
        parts.append(f"<h2>{html.escape(heading)}</h2><table><tr>{names}</tr>{cells}</table>")
    parts.append(
        "<img alt='search, widths and training curves' "
        f"src='data:image/png;base64,{data}'></body></html>"
    )
    files.write_whole(path, lambda file: file.write("\n".join(parts).encode()))
