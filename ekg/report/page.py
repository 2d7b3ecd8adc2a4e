"""The report of a finished run: an HTML page with a picture and tables."""

import base64
import contextlib
import dataclasses
import html
from pathlib import Path

from ekg.errors import EkgError
from ekg.io import files
from ekg.report.table import latency_text, notes
from ekg.tasks.metrics import metric_named

STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;"
    "color:#222} img{max-width:100%} table{border-collapse:collapse;margin:1em 0} "
    "td,th{padding:.3em .8em;border-bottom:1px solid #ddd;text-align:right} "
    "td:first-child,th:first-child{text-align:left}"
)


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedRun:
    """The results of a finished run.

    Attributes:
        arguments: contents of its arguments.json.
        history: list of HistoryEntry.
        curves: list of {"phase", "step", ...}, one entry per search step or epoch.
        table: list of table.Row: baseline, slimmed network and, if it was trained, fine-tuned one.
        phases: {phase: {"seconds", "peak_memory_mib", "peak_gpu_mib"}}.
        origin: {"revision", "machine", "cores"}; empty for runs of earlier versions.
        choice: choice.Choice of the resulting network as a dict; None if there was no choice.
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
        """Name of the task's first metric."""
        return next(iter(self.table[0].metrics))

    @property
    def result(self):
        """Row of the resulting network: the chosen one, or else the last."""
        if self.choice is None:
            return self.table[-1]
        return next(row for row in self.table if row.name == self.choice["name"])

    @property
    def rate(self):
        """Share of the FLOPs that the pruned network keeps."""
        return self.result.flops / self.table[0].flops

    def seconds(self, *phases):
        """Returns the total duration of some phases, in seconds; unfinished phases count as 0."""
        return sum(self.phases.get(phase, {}).get("seconds", 0.0) for phase in phases)


@contextlib.contextmanager
def report_folder(folder):
    """Gives the pathlib.Path of a folder that a report is written into; it is made if missing.

    Args:
        folder: path.

    Raises:
        EkgError: a package that draws is not installed, or the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except ModuleNotFoundError as error:
        raise EkgError(
            f"a report needs {error.name}; install it with: pip install {error.name}"
        ) from None
    except OSError as error:
        raise EkgError(f"{folder}: cannot be written ({error.strerror}).") from None


def write_report(run, picture, page):
    """Writes the picture and the self-contained page of a run, and returns a one-line summary.

    Args:
        run: FinishedRun.
        picture: path of the PNG file to write.
        page: path of the HTML page to write.
    """
    from ekg.report import pictures  # imports matplotlib

    pictures.draw_run(picture, run)
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
    tables = {
        "Networks": networks_table(run.table),
        **_cost_tables(run.table),
        "Phases": (["phase", "seconds", "peak memory, MiB", "of a GPU, MiB"], phases),
    }
    write_page(page, title, picture, tables, notes(run.table))
    metric = metric_named(run.metric)
    percent = " %" if metric.is_share else ""
    before = metric.text(run.table[0].metrics[run.metric]) + percent
    after = metric.text(run.result.metrics[run.metric]) + percent
    return (
        f"{title}: {metric.words} {before} before and {after} after, {len(run.history) - 1} "
        "search steps"
    )


def _cost_tables(table):
    """Returns {heading: (column names, rows)} of latencies and exported files, if there are any."""
    conditions = list(table[0].latencies)
    exports = list(table[0].exports)
    tables = {}
    if conditions:
        rows = [
            [row.name, *(latency_text(row.latencies[name]) for name in conditions)] for row in table
        ]
        heading = "Latency, ms = ratio to the unpruned network [first, last decile]"
        tables[heading] = (["network", *conditions], rows)
    if exports:
        rows = [[row.name, *(f"{row.exports[name]:,}" for name in exports)] for row in table]
        tables["Exported files, bytes"] = (["network", *exports], rows)
    return tables


def write_page(path, title, picture, tables, sentences=()):
    """Writes a self-contained HTML page with a title, tables and a picture.

    Args:
        path: path of the page to write.
        title: title of the page.
        picture: path of a PNG file to embed.
        tables: {heading: (list of column names, list of rows of cells)}.
        sentences: further texts, each a paragraph of its own before the picture.
    """
    data = base64.b64encode(Path(picture).read_bytes()).decode()
    title = html.escape(title)
    parts = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>",
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>",
    ]
    for heading, (head, rows) in tables.items():
        parts.append(f"<h2>{html.escape(heading)}</h2>{table_html(head, rows)}")
    parts += [f"<p>{html.escape(sentence)}</p>" for sentence in sentences]
    parts.append(f"<img alt='{title}' src='data:image/png;base64,{data}'></body></html>")
    files.write_whole(path, lambda file: file.write("\n".join(parts).encode()))


def table_html(head, rows):
    """Returns an HTML table.

    Args:
        head: list of column names.
        rows: list of rows of cells.
    """
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    cells = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><tr>{names}</tr>{cells}</table>"


def networks_table(table):
    """Returns (column names, rows of cells) of the networks of a run, without latencies.

    Args:
        table: list of table.Row, the unpruned network first.
    """
    metrics = {name: metric_named(name) for name in table[0].metrics}
    titles = [metric.title for metric in metrics.values()]
    head = ["network", "loss", *titles, "parameters", "FLOPs", "rate"]
    rows = [
        [
            row.name,
            *map(row.text, ("loss", *metrics)),
            f"{row.params:,}",
            f"{row.flops:,}",
            f"{row.flops / table[0].flops:.4f}",
        ]
        for row in table
    ]
    return head, rows
