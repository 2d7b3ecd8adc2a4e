"""The final table of a run."""

import dataclasses
import math
import re

from ekg.tasks.metrics import has_metric, metric_named

# Share from the first to the last decile beyond which something else must have been running
MOST_SPREAD = 0.2
BUSY = "machine busy"
LITERT_INT8 = "litert int8"  # the runtime, in a row's latencies, of networks in 8 bits
INT8_IMAGES = 512  # test images, at most, that a network in 8 bits is measured on
SLOWER = 0.02  # share of its time that a network may take longer before it is reported
BATCHES_OF_EARLIER_VERSIONS = (1, 256)  # whose latencies had entries of their own
LATENCY_NOTE = (
    "ms: median of the rounds = its ratio to the first network's median [first and last decile of "
    "the ratio "
    f'in one round]; "{BUSY}": these are more than {MOST_SPREAD:.0%} apart, so measure again'
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One network of the final table.

    Attributes:
        name: name of the network.
        loss: mean loss on the test images; for classification the cross-entropy in nats.
        metrics: {name of a metric: its mean on the test images}; see metrics.METRICS.
        params: number of parameters.
        flops: multiply-accumulates per image.
        file_size: size of its parameter file, in bytes.
        latencies: {timing.Conditions as text: timing.Timing as a dict}; ratios are relative to the
            first network of the table.
        exports: {name of a format: size of the exported file in bytes}.
        examples: number of test images; 0 in tables of earlier versions.
        errors: {"loss" or name of a metric: its standard error}; empty in tables of earlier
            versions.
        int8: {name of a metric: its mean over INT8_IMAGES test images, computed by LiteRT in 8
            bits}, if the network was exported so.
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
    int8: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def top1(self):
        """Top-1 accuracy of a classification, in [0, 1]."""
        return self.metrics["top1"]

    @property
    def top5(self):
        """Top-5 accuracy, in [0, 1], of a classification with at least ten classes."""
        return self.metrics["top5"]

    def text(self, name):
        """Formats the loss or a metric for a cell, with its standard error: "93.75 ±0.54"."""
        show = metric_named(name).text if has_metric(name) else "{:.4f}".format
        value = show(self.loss if name == "loss" else self.metrics[name])
        error = self.errors.get(name)
        if error is None or not math.isfinite(error):
            return value
        return f"{value} ±{show(error)}"

    @classmethod
    def from_json(cls, value):
        """Returns the Row for a dict from dataclasses.asdict(), also one of an earlier version."""
        value = dict(value)
        if "metrics" not in value:
            value["metrics"] = {name: value.pop(name) for name in ("top1", "top5")}
        latencies = {}
        for batch in BATCHES_OF_EARLIER_VERSIONS:
            if f"latency_{batch}" in value:
                milliseconds = value.pop(f"latency_{batch}")
                latencies[f"tensorflow, batch {batch}"] = {"milliseconds": milliseconds}
        return cls(**{"latencies": latencies, **value})


def format_table(rows, whole_flops=None, with_ratios=None):
    """Formats rows as a Markdown table.

    Losses and metrics are means over the test images, with standard errors. LATENCY_NOTE explains
    the latencies, for which all networks are measured in turn.

    Args:
        rows: list of Row.
        whole_flops: FLOPs of the unpruned network, the denominator of rates; None takes those of
            the first row.
        with_ratios: whether to show ratios of latencies; None shows them if there are several
            networks.
    """
    if with_ratios is None:
        with_ratios = len(rows) > 1
    whole_flops = whole_flops or next((row.flops for row in rows), None)
    common = [name for name in common_names(rows, "metrics") if has_metric(name)]
    metrics = {name: metric_named(name) for name in common}
    exports, int8 = common_names(rows, "exports"), common_names(rows, "int8")
    conditions = common_names(rows, "latencies")
    in_batches = [name for name in conditions if _batch_of(name) > 1]
    head = [
        "network",
        "loss",
        *(metric.title for metric in metrics.values()),
        "params",
        "FLOPs",
        "rate",
        "file KiB",
        *(f"{name} KiB" for name in exports),
        *(f"int8 {metric_named(name).title}" for name in int8),
        *(f"ms, {name}" for name in conditions),
        *(f"images/s, {name}" for name in in_batches),
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
            *(metric_named(name).text(row.int8[name]) for name in int8),
            *(latency_text(row.latencies[name], with_ratios) for name in conditions),
            *(f"{_images_per_second(row, name):,.0f}" for name in in_batches),
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


def notes(rows):
    """Returns a list of sentences on what a user should know about the networks of a table: which
    are slower than the unpruned network, and where 8 bits are slower than 32.

    Args:
        rows: list of Row, the unpruned network first.
    """
    found = []
    for conditions in common_names(rows, "latencies"):
        if conditions.startswith(LITERT_INT8):
            found += _slower_in_8_bits(rows, conditions)
        else:
            found += _slower_than_unpruned(rows, conditions)
    return found


def _slower_than_unpruned(rows, conditions):
    """Returns a list with a sentence on the slowest network, if one is slower than the first."""
    slower = [row for row in rows[1:] if _is_slower(row.latencies[conditions])]
    if not slower:
        return []
    row = max(slower, key=lambda row: row.latencies[conditions]["ratio"])
    return [
        f"{row.name} takes {row.latencies[conditions]['ratio']:.2f} of the unpruned network's time "
        f"in {conditions}: kernels there need not be faster at fewer channels; "
        f'`multiple_of="auto"` keeps numbers of channels that are, and a target for the latency in '
        f"{conditions.partition(',')[0]} measures it."
    ]


def _slower_in_8_bits(rows, conditions):
    """Returns a list with a sentence per network that is slower in 8 bits than in 32."""
    found, in_32_bits = [], conditions.replace(LITERT_INT8, "litert", 1)
    if any(in_32_bits not in row.latencies for row in rows):
        return []
    for row in rows:
        int8, full = row.latencies[conditions], row.latencies[in_32_bits]
        is_slower = int8["milliseconds"] > (1 + SLOWER) * full["milliseconds"]
        if is_slower and not _is_busy(int8):
            found.append(
                f"{row.name} is slower in 8 bits than in 32 in LiteRT on this machine: "
                f"{milliseconds_text(int8['milliseconds'])} and "
                f"{milliseconds_text(full['milliseconds'])} ms."
            )
    return found


def _is_slower(timing):
    """Returns whether a network surely takes longer than the first one of the table."""
    ratio = timing.get("ratio", 0.0)
    return ratio > 1 + SLOWER and timing["ratio_low"] > 1


def common_names(rows, attribute):
    """Returns the keys of a dict attribute that all rows have, in the first row's order."""
    if not rows:
        return []
    dicts = [getattr(row, attribute) for row in rows]
    return [name for name in dicts[0] if all(name in values for values in dicts)]


def _batch_of(conditions):
    """Returns the batch size in the text of timing.Conditions."""
    return int(re.search(r"batch (\d+)", conditions)[1])


def _images_per_second(row, conditions):
    return 1000 * _batch_of(conditions) / row.latencies[conditions]["milliseconds"]


def milliseconds_text(value):
    """Formats milliseconds with three digits, without an exponent."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def latency_text(timing, with_ratio=True):
    """Formats a latency for a cell, as in "4.31 = .62 [.61, .64]"; see LATENCY_NOTE.

    Args:
        timing: timing.Timing as a dict.
        with_ratio: whether to show the ratio to the first network.
    """
    text = milliseconds_text(timing["milliseconds"])
    if with_ratio and "ratio" in timing:
        text += f" = {timing['ratio']:.3f} [{timing['ratio_low']:.3f}, {timing['ratio_high']:.3f}]"
    return f"{text} ({BUSY})" if _is_busy(timing) else text


def _is_busy(timing):
    """Returns whether rounds differ so much that something else must have been running.

    The ratio decides; the times themselves do if there is only one network, whose ratio is always
    1.
    """
    spreads = []
    for low, middle, high in (
        ("ratio_low", "ratio", "ratio_high"),
        ("low", "milliseconds", "high"),
    ):
        if {low, middle, high} <= set(timing):
            spreads.append((timing[high] - timing[low], timing[middle]))
    if not spreads:
        return False
    spread, middle = next((pair for pair in spreads if pair[0]), spreads[-1])
    return spread > MOST_SPREAD * middle
