"""The final table of a run."""

import dataclasses
import math
import re

from ekg.tasks.metrics import has_metric, metric_named

MOST_SPREAD = (
    0.2  # from the first to the last decile, as a share; beyond it something else was running
)
BUSY = "machine busy"
LATENCY_NOTE = (
    "ms: median of the rounds = its ratio to the first network's median [first and last decile of "
    "the ratio "
    f'in one round]; "{BUSY}": these are more than {MOST_SPREAD:.0%} apart, so measure again'
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One network of the final table.

    Attributes:
        name: of the network.
        loss: mean loss on the test images, of a classification the cross-entropy in nats.
        metrics: {name of a figure of merit: its mean on the test images}; see metrics.METRICS.
        params: number of parameters.
        flops: multiply-accumulates of one image.
        file_size: of its parameter file, bytes.
        latencies: {timing.Conditions in words: timing.Timing as a dict}; ratios are to the first
            network of the table.
        exports: {name of a format: bytes of the exported file}.
        examples: number of test images; 0 in tables of earlier versions.
        errors: {"loss" or name of a figure of merit: its standard error}; empty in tables of
            earlier versions.
    """

    name: str
    loss: float
    metrics: dict[str, float]
    params: int
    flops: int
    file_size: int
    latencies: dict[str, dict] = dataclasses.field(default_factory=dict)
    exports: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: int = 0
    errors: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def top1(self):
        """Share of right answers of a classification, in [0, 1]."""
        return self.metrics["top1"]

    @property
    def top5(self):
        """Share of labels among the five highest logits, in [0, 1]; of ten classes or more."""
        return self.metrics["top5"]

    def text(self, name):
        """Returns the loss or a figure of merit as it stands in a cell, with its standard error:
        "93.75 ±0.54".
        """
        show = metric_named(name).text if has_metric(name) else "{:.4f}".format
        value = show(self.loss if name == "loss" else self.metrics[name])
        error = self.errors.get(name)
        return value if error is None or not math.isfinite(error) else f"{value} ±{show(error)}"

    @classmethod
    def from_json(cls, value):
        """Returns the row that dataclasses.asdict() turned into this dict; those of earlier
        versions are understood.
        """
        value = dict(value)
        if "metrics" not in value:
            value = {
                name: entry for name, entry in value.items() if name not in ("top1", "top5")
            } | {"metrics": {"top1": value["top1"], "top5": value["top5"]}}
        former = {name: value.pop(name) for name in ("latency_1", "latency_256") if name in value}
        return cls(
            **{
                "latencies": {
                    f"tensorflow, batch {name.rpartition('_')[2]}": {"milliseconds": ms}
                    for name, ms in former.items()
                },
                **value,
            }
        )


def format_table(rows, whole_flops=None, with_ratios=None):
    """Returns the rows as a Markdown table.

    Losses and figures of merit are means over the test images, with their standard errors.
    Latencies are those of LATENCY_NOTE, all networks measured in turn.

    Args:
        rows: list of Row.
        whole_flops: FLOPs of the unpruned network, against which the rates stand; None takes those
            of the first row.
        with_ratios: whether ratios of latencies are shown; None shows them where there are several
            networks.
    """
    with_ratios = len(rows) > 1 if with_ratios is None else with_ratios
    whole_flops = whole_flops or next((row.flops for row in rows), None)
    metrics = {
        name: metric_named(name)
        for name in (rows[0].metrics if rows else ())
        if has_metric(name) and all(name in row.metrics for row in rows)
    }
    conditions = [
        name
        for name in (rows[0].latencies if rows else ())
        if all(name in row.latencies for row in rows)
    ]
    exports = [
        name
        for name in (rows[0].exports if rows else ())
        if all(name in row.exports for row in rows)
    ]
    titles = [metric.title for metric in metrics.values()]
    head = [
        "network",
        "loss",
        *titles,
        "params",
        "FLOPs",
        "rate",
        "file KiB",
        *(f"{name} KiB" for name in exports),
        *(f"ms, {name}" for name in conditions),
        *(f"images/s, {name}" for name in conditions if _batch_of(name) > 1),
    ]
    lines = [
        [
            row.name,
            *map(row.text, ("loss", *metrics)),
            f"{row.params:,}",
            f"{row.flops:,}",
            f"{row.flops / whole_flops:.4f}",
            f"{row.file_size / 1024:,.0f}",
            *(f"{row.exports[name] / 1024:,.0f}" for name in exports),
            *(latency_text(row.latencies[name], with_ratios) for name in conditions),
            *(
                f"{1000 * _batch_of(name) / row.latencies[name]['milliseconds']:,.0f}"
                for name in conditions
                if _batch_of(name) > 1
            ),
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *lines)]
    text = [
        " | ".join(cell.rjust(width) for cell, width in zip(line, widths))
        for line in [head, *lines]
    ]
    rule = "-|-".join("-" * width for width in widths)
    return "\n".join(f"| {line} |" for line in [text[0], rule, *text[1:]])


def _batch_of(conditions):
    """Returns the batch of timing.Conditions in words."""
    return int(re.search(r"batch (\d+)", conditions)[1])


def milliseconds_text(value):
    """Returns milliseconds to three digits, and without an exponent."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def latency_text(timing, with_ratio=True):
    """Returns a timing.Timing as a dict as the text of a cell: "4.31 = .62 [.61, .64]"; see
    LATENCY_NOTE.
    """
    text = milliseconds_text(timing["milliseconds"])
    if with_ratio and "ratio" in timing:
        text += f" = {timing['ratio']:.3f} [{timing['ratio_low']:.3f}, {timing['ratio_high']:.3f}]"
    return f"{text} ({BUSY})" if _is_busy(timing) else text


def _is_busy(timing):
    """Returns whether rounds differ so much that something else was running: in the ratio, or in
    the only network's time.
    """
    spreads = [
        (timing[high] - timing[low], timing[middle])
        for low, middle, high in (
            ("ratio_low", "ratio", "ratio_high"),
            ("low", "milliseconds", "high"),
        )
        if {low, middle, high} <= set(timing)
    ]
    if not spreads:
        return False
    spread, middle = next((pair for pair in spreads if pair[0]), spreads[-1])
    return spread > MOST_SPREAD * middle
