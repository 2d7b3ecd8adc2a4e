"""The trade-off between accuracy and cost of several finished runs: a table, a picture, a page."""

import dataclasses

from ekg.report.page import FinishedRun, write_page
from ekg.report.table import common_names, latency_text, notes
from ekg.tasks.metrics import has_metric, metric_named


@dataclasses.dataclass(frozen=True, eq=False)
class FrontPoint:
    """One target of a front and the run that reached it.

    Attributes:
        target: what was asked for, in words.
        run: FinishedRun, whose table holds the unpruned network, the network that was cut out and,
            unless the run ends there, the fine-tuned one.
        is_repaired: whether the network that was cut out is repaired.
        notes: tuple of sentences on this run, besides those on the times in its table.
    """

    target: str
    run: FinishedRun
    is_repaired: bool
    notes: tuple = ()

    @property
    def unpruned(self):
        """table.Row of the unpruned network."""
        return self.run.table[0]

    @property
    def rows(self):
        """{what was done to the pruned network: its table.Row}, in that order."""
        names = ["repaired" if self.is_repaired else "cut", "fine-tuned"]
        return dict(zip(names, self.run.table[1:]))


def table_of(points):
    """Returns (list of column names, list of rows of texts) of the points of a front.

    The first row is the unpruned network. Every further row is a pruned network as it is handed out
    after all that was done to it; the accuracies before that are columns of their own.

    Args:
        points: list of FrontPoint of one network and one data set.
    """
    unpruned = points[0].unpruned
    metrics = [name for name in unpruned.metrics if has_metric(name)]
    steps = list(dict.fromkeys(step for point in points for step in point.rows))
    conditions = common_names([row for point in points for row in point.run.table], "latencies")
    head = [
        "target",
        "FLOPs kept",
        "parameters kept",
        *(f"{metric_named(name).title}, {step}" for name in metrics for step in steps),
        *(f"ms, {name}" for name in conditions),
    ]
    rows = [
        [
            "unpruned",
            "1.0000",
            "1.0000",
            *(unpruned.text(name) for name in metrics for _ in steps),
            *(latency_text(unpruned.latencies[name]) for name in conditions),
        ]
    ]
    for point in points:
        result = point.run.result
        rows.append(
            [
                point.target,
                f"{result.flops / unpruned.flops:.4f}",
                f"{result.params / unpruned.params:.4f}",
                *(
                    point.rows[step].text(name) if step in point.rows else ""
                    for name in metrics
                    for step in steps
                ),
                *(latency_text(result.latencies[name]) for name in conditions),
            ]
        )
    return head, rows


def format_front(points):
    """Returns the table of a front as Markdown; see table_of()."""
    head, rows = table_of(points)
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = [
        " | ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in [head, *rows]
    ]
    rule = "-|-".join("-" * width for width in widths)
    return "\n".join(f"| {line} |" for line in [lines[0], rule, *lines[1:]])


def notes_of(points):
    """Returns the list of the sentences on a front: those on all of its points once, and each
    other one with the target that it is about.

    Args:
        points: list of FrontPoint.
    """
    of_each = [[*point.notes, *notes(point.run.table)] for point in points]
    common = [note for note in of_each[0] if all(note in others for others in of_each)]
    return common + [
        f"{point.target}: {note}"
        for point, own in zip(points, of_each)
        for note in own
        if note not in common
    ]


def write_front(points, picture, page):
    """Writes the picture and the self-contained page of a front.

    Args:
        points: list of FrontPoint.
        picture: path of the PNG.
        page: path of the HTML page.
    """
    from ekg.report import pictures  # imports matplotlib

    pictures.draw_front(picture, points)
    title = f"{points[0].run.name}: accuracy and cost"
    write_page(page, title, picture, {"Networks": table_of(points)}, notes_of(points))
