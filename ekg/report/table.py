"""The final table of a run."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """One network of the final table.

    Attributes:
        name: of the network.
        loss: mean cross-entropy on the test images, nats.
        top1: share of right answers, in [0, 1]; likewise top5.
        params: number of parameters.
        flops: multiply-accumulates of one image.
        file_size: of its parameter file, bytes.
        latency_1: median milliseconds of a batch of one image; latency_256: of 256.
    """
    name: str
    loss: float
    top1: float
    top5: float
    params: int
    flops: int
    file_size: int
    latency_1: float
    latency_256: float


def format_table(rows, whole_flops=None):
    """Returns the rows as a Markdown table; images/s are those of batch 256.

    Args:
        rows: list of Row.
        whole_flops: FLOPs of the unpruned network, against which the rates stand; None takes those of the first row.
    """
    whole_flops = whole_flops or next((row.flops for row in rows), None)
    head = ["network", "loss", "top-1 %", "top-5 %", "params", "FLOPs", "rate", "file KiB", "ms, batch 1", "ms, batch 256",
            "images/s"]
    lines = [[row.name, f"{row.loss:.4f}", f"{100 * row.top1:.2f}", f"{100 * row.top5:.2f}", f"{row.params:,}",
              f"{row.flops:,}", f"{row.flops / whole_flops:.4f}", f"{row.file_size / 1024:,.0f}",
              f"{row.latency_1:.2f}", f"{row.latency_256:.1f}", f"{256_000 / row.latency_256:,.0f}"] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *lines)]
    text = [" | ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in [head, *lines]]
    rule = "-|-".join("-" * width for width in widths)
    return "\n".join(f"| {line} |" for line in [text[0], rule, *text[1:]])
