"""Figures of merit: how each is named in tables, and how it is shown."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a figure of merit is shown: its name in words, and whether it is a share, in percent."""

    words: str
    is_share: bool

    @property
    def title(self):
        """The head of a table's column."""
        return self.words + " %" * self.is_share

    @property
    def factor(self):
        """What a value is multiplied by before it is shown."""
        return 100 if self.is_share else 1

    def text(self, value):
        """Returns a value as it stands in a column."""
        return f"{100 * value:.2f}" if self.is_share else f"{value:.4f}"


METRICS = {
    "top1": Metric("top-1", True),
    "top5": Metric("top-5", True),
    "accuracy": Metric("accuracy", True),
    "pixel_accuracy": Metric("pixel accuracy", True),
    "mae": Metric("mean abs. error", False),
    "agreement": Metric("agreement", True),
    "difference": Metric("mean abs. difference", False),
}


def has_metric(name):
    """Returns whether a name is that of a figure of merit; see metric_named()."""
    return name.rpartition("/")[2] in METRICS


def metric_named(name):
    """Returns the Metric of a name: one of METRICS, after "output/" for one of several outputs."""
    output, _, own = name.rpartition("/")
    metric = METRICS[own]
    return dataclasses.replace(metric, words=f"{output} {metric.words}") if output else metric
