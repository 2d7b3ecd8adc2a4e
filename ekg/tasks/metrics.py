"""Metrics: their names and number formats in tables."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
        words: its name in words.
        is_share: whether it is a share, which is shown in percent.
    """

    words: str
    is_share: bool

    @property
    def title(self):
        """The heading of a table column."""
        return self.words + " %" * self.is_share

    @property
    def factor(self):
        """The factor by which a value is multiplied before it is shown."""
        return 100 if self.is_share else 1

    def text(self, value):
        """Formats a value for a table column."""
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
    """Returns whether a name is known to metric_named()."""
    return name.rpartition("/")[2] in METRICS


def metric_named(name):
    """Returns the Metric with a name of METRICS, or "output/name" for one of several outputs."""
    output, _, metric_name = name.rpartition("/")
    metric = METRICS[metric_name]
    if not output:
        return metric
    return dataclasses.replace(metric, words=f"{output} {metric.words}")
