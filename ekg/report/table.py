"""The final table of a run."""

import dataclasses

from ekg.tasks import METRICS


@dataclasses.dataclass(frozen=True)
class Row:
    """One network of the final table.

    Attributes:
        name: of the network.
        loss: mean loss on the test images, of a classification the cross-entropy in nats.
        metrics: {name of a figure of merit: its mean on the test images}; see tasks.METRICS.
        params: number of parameters.
        flops: multiply-accumulates of one image.
        file_size: of its parameter file, bytes.
        latency_1: median milliseconds of a batch of one image; latency_256: of 256.
    """
    name: str
    loss: float
    metrics: dict[str, float]
    params: int
    flops: int
    file_size: int
    latency_1: float
    latency_256: float

    @property
    def top1(self):
        """Share of right answers of a classification, in [0, 1]."""
        return self.metrics["top1"]

    @property
    def top5(self):
        """Share of labels among the five highest logits, in [0, 1]."""
        return self.metrics["top5"]

    @classmethod
    def from_json(cls, value):
        """Returns the row that dataclasses.asdict() turned into this dict; those of version 0.2 are understood."""
        if "metrics" not in value:
            value = {name: entry for name, entry in value.items() if name not in ("top1", "top5")} | {
                "metrics": {"top1": value["top1"], "top5": value["top5"]}}
        return cls(**value)


def format_table(rows, whole_flops=None):
    """Returns the rows as a Markdown table; images/s are those of batch 256.

    Args:
        rows: list of Row.
        whole_flops: FLOPs of the unpruned network, against which the rates stand; None takes those of the first row.
    """
    whole_flops = whole_flops or next((row.flops for row in rows), None)
    metrics = [name for name in METRICS if all(name in row.metrics for row in rows)]
    head = ["network", "loss", *(METRICS[name].title for name in metrics), "params", "FLOPs", "rate", "file KiB",
            "ms, batch 1", "ms, batch 256", "images/s"]
    lines = [[row.name, f"{row.loss:.4f}", *(METRICS[name].text(row.metrics[name]) for name in metrics), f"{row.params:,}",
              f"{row.flops:,}", f"{row.flops / whole_flops:.4f}", f"{row.file_size / 1024:,.0f}",
              f"{row.latency_1:.2f}", f"{row.latency_256:.1f}", f"{256_000 / row.latency_256:,.0f}"] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *lines)]
    text = [" | ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in [head, *lines]]
    rule = "-|-".join("-" * width for width in widths)
    return "\n".join(f"| {line} |" for line in [text[0], rule, *text[1:]])
