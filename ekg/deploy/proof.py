"""Compares every channel of an exported network's outputs with the network in memory."""

import dataclasses

import numpy as np

from ekg.errors import EkgError
from ekg.tasks.logits import squash_of
from ekg.tasks.metrics import has_metric, metric_named

# Greatest difference that a channel of an output may have, as a share of its scale; see
# scales_of().
TOLERANCES = {None: 1e-4, "float16": 1e-2, "dynamic": 0.15, "int8": 0.3}
# What floating-point numbers cannot resolve beside larger ones: least scale, as a share of the
# tensor's greatest absolute value. Whole numbers of 8 bits get no such allowance.
FLOORS = {None: 0.01, "float16": 0.1, "dynamic": 0.0, "int8": 0.0}
SMALL = 0.01  # least scale of float32: below it outputs are all but zero
CONSTANT = 1e-6  # a channel that moves by less than this share of its value does not move
# Loss of a quantised network's share of right answers, beyond two standard errors.
METRIC_LOSS = 0.02


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labels of the examples.

    Attributes:
        task: tasks.Task.
        values: labels as the task prepares them, [examples, ...].
        squashes: see squashes_of().
    """

    task: object
    values: np.ndarray
    squashes: dict = dataclasses.field(default_factory=dict)

    def measure(self, outputs):
        """Returns {metric: its value for every example} from a list of the network's outputs."""
        logits = self.task.of(to_logits(outputs, self.squashes))
        measured = self.task.measure(self.values[: len(logits)], logits)
        shown = self.task.metrics_of(logits.shape[1:])
        return {name: np.asarray(measured[name], np.float64) for name in shown}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Differences between the outputs of an exported network and of the network in memory.

    Attributes:
        examples: number of examples that were compared.
        difference: greatest absolute difference of an output.
        largest: greatest absolute output of the network in memory.
        agreement: share of examples, or of positions, with the same greatest output, over outputs
            with several numbers.
        shares: list of one array per output: each channel's difference as a share of its scale.
        scales: likewise the scales.
        metrics: {metric: (value of the network in memory, value of the exported one)}, empty
            without labels.
        losses: {metric: (mean loss of the exported network per example, its standard error)}.
    """

    examples: int
    difference: float
    largest: float
    agreement: float | None
    shares: list
    scales: list
    metrics: dict
    losses: dict

    def worst(self, outputs=None):
        """Returns (share, output, channel) of the channel that differs most; (0, 0, 0) if there is
        none.

        Args:
            outputs: numbers of the outputs to look at; None takes all.
        """
        found = (0.0, 0, 0)
        for number in range(len(self.shares)) if outputs is None else outputs:
            shares = np.nan_to_num(self.shares[number], nan=np.inf)
            channel = int(shares.argmax())
            if not shares[channel] <= found[0]:
                found = float(shares[channel]), number, channel
        return found


def squashes_of(graph, task):
    """Returns {number of an output: "softmax" or "sigmoid"} of the outputs of a calls.Graph whose
    logits a task takes.
    """
    found = {number: squash_of(graph, graph.outputs[number]) for number in task.logits}
    return {number: squash for number, squash in found.items() if squash is not None}


def to_logits(outputs, squashes):
    """Returns a network's outputs, a list of arrays [examples, ...], with logits in place of
    probabilities.
    """
    return [
        _logits_of(values, squashes[number]) if number in squashes else values
        for number, values in enumerate(outputs)
    ]


def _logits_of(values, squash):
    shares = np.clip(np.asarray(values, np.float64), 1e-30, 1.0)
    rest = np.clip(1 - shares, 1e-30, 1.0) if squash == "sigmoid" else 1.0
    return np.log(shares / rest).astype(np.float32)


def compare(ours, theirs, axes, quantize, *, shares_one_scale=(), labels=None):
    """Returns the Comparison of two lists of outputs.

    Args:
        ours: outputs of the network in memory, a list of one array [examples, ...] per output.
        theirs: outputs of the exported network, likewise.
        axes: axis of the channels of each output, or None where there is none.
        quantize: one of format.QUANTIZATIONS, or None.
        shares_one_scale: numbers of the outputs whose channels are shares of one whole, by a
            softmax.
        labels: Labels, or None.
    """
    differences = [np.abs(mine.astype(np.float64) - other) for mine, other in zip(ours, theirs)]
    shares, scales = [], []
    for number, (mine, difference, axis) in enumerate(zip(ours, differences, axes)):
        scale = scales_of(mine, axis, quantize, number in shares_one_scale)
        largest = _of_channels(difference, axis).max(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            shares.append(np.where(largest == 0, 0.0, largest / scale))
        scales.append(scale)
    tops = [
        (mine.argmax(-1) == other.argmax(-1)).ravel()
        for mine, other in zip(ours, theirs)
        if mine.ndim > 1 and mine.shape[-1] > 1
    ]
    metrics, losses = ({}, {}) if labels is None else _compare_metrics(labels, ours, theirs)
    return Comparison(
        len(ours[0]),
        max(float(difference.max()) for difference in differences),
        max(float(np.abs(mine).max()) for mine in ours),
        float(np.mean(np.concatenate(tops))) if tops else None,
        shares,
        scales,
        metrics,
        losses,
    )


def scales_of(output, axis, quantize, shares_one_scale=False):
    """Returns the scale of each channel of an output, to which differences are relative,
    [channels].

    That is the channel's own range over all examples and positions, so that a small channel beside
    large ones counts as much; for a constant channel it is its value. Outputs of a softmax are
    shares of one whole and have its range. See FLOORS and SMALL for what floating-point numbers
    cannot resolve.

    Args:
        output: output of the network in memory, [examples, ...].
        axis: axis of its channels, or None.
        quantize: one of format.QUANTIZATIONS, or None.
        shares_one_scale: whether all channels have the tensor's range.
    """
    rows = _of_channels(output.astype(np.float64), axis)
    if shares_one_scale:
        rows = np.broadcast_to(rows.reshape(-1, 1), (rows.size, rows.shape[1]))
    ranges, largest = rows.max(axis=0) - rows.min(axis=0), np.abs(rows).max(axis=0)
    whole = float(largest.max())
    scales = np.where(ranges > CONSTANT * largest, ranges, np.where(largest > 0, largest, whole))
    return np.maximum(scales, max(FLOORS[quantize] * whole, SMALL if quantize is None else 0.0))


def _of_channels(values, axis):
    """Returns values [examples, ...] as rows, [examples x positions, channels]."""
    if axis is None or values.ndim < 2:
        return values.reshape(-1, 1)
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])


def _compare_metrics(labels, ours, theirs):
    """Returns ({metric: (ours, theirs)}, {metric: (mean loss, its standard error)}), of metrics
    that are shares.
    """
    mine, other = labels.measure(ours), labels.measure(theirs)
    metrics = {name: (float(mine[name].mean()), float(other[name].mean())) for name in mine}
    losses = {}
    for name in mine:
        if has_metric(name) and metric_named(name).is_share:
            lost = mine[name] - other[name]
            losses[name] = float(lost.mean()), float(lost.std() / np.sqrt(len(lost)))
    return metrics, losses


def check(comparison, what, names, quantize, tolerance=None, decided=()):
    """Raises EkgError unless an exported network computes what the one in memory computes.

    Args:
        comparison: Comparison.
        what: name of the file.
        names: names of the outputs.
        quantize: one of format.QUANTIZATIONS, or None.
        tolerance: share of its scale by which a channel may differ; None takes the one in
            TOLERANCES.
        decided: numbers of the outputs of a quantised network that the task's metrics decide,
            unless a tolerance is given.
    """
    by_metric = quantize is not None and tolerance is None and decided and comparison.losses
    if by_metric:
        _check_metrics(comparison, what)
    tolerance = TOLERANCES[quantize] if tolerance is None else tolerance
    others = [number for number in range(len(names)) if not (by_metric and number in decided)]
    share, number, channel = comparison.worst(others)
    if share <= tolerance:
        return
    place = f"output {names[number]!r}"
    if len(comparison.shares[number]) > 1:
        place = f"channel {channel} of {place}"
    scale = comparison.scales[number][channel]
    raise EkgError(
        f"{what}: the exported network differs by {share * scale:.3g} in {place}, whose range is "
        f"{scale:.3g}; {tolerance:g} of it is allowed (`tolerance`). The file is not kept."
    )


def _check_metrics(comparison, what):
    for name, (lost, error) in comparison.losses.items():
        if lost <= METRIC_LOSS + 2 * error:
            continue
        metric, (mine, other) = metric_named(name), comparison.metrics[name]
        raise EkgError(
            f"{what}: the exported network has {metric.title} {metric.text(other)} where the one "
            f"in memory has {metric.text(mine)}, on {comparison.examples} examples; "
            f"{metric.text(METRIC_LOSS)} less is allowed beyond two standard errors. Give more "
            "varied `examples`, or another `quantize`. The file is not kept."
        )
