"""The picture of a run: search, widths, training curves and latency.

Importing this module imports matplotlib.
"""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib import ticker

from ekg.io import files
from ekg.report.table import common_names
from ekg.tasks.metrics import metric_named

DPI = 110
COLOURS = ("#1f6fb4", "#d9822b", "#3a9a5b", "#b03a48", "#7a5ca8", "#6b6b6b")


def save(figure, path):
    """Writes a figure and closes it."""
    files.write_whole(
        path, lambda file: figure.savefig(file, dpi=DPI, bbox_inches="tight", format="png")
    )
    plt.close(figure)


def draw_run(path, run):
    """Draws the search of a run, the widths it ends with, and the training curves.

    Args:
        path: path of the PNG file to write.
        run: page.FinishedRun.
    """
    has_latency = any("latency" in (entry.costs or {}) for entry in run.history)
    figure = plt.figure(figsize=(13, 13 if has_latency else 9.5), layout="constrained")
    parts = figure.add_gridspec(3 + has_latency, 2)
    metric = metric_named(run.metric)
    rates = figure.add_subplot(parts[0, 0])
    losses = figure.add_subplot(parts[0, 1])
    _draw_search(rates, losses, run.history, metric)
    _draw_widths(figure.add_subplot(parts[1, :]), run.history[-1])
    shown = (("loss", 1, "loss"), (run.metric, metric.factor, metric.title.replace(" %", ", %")))
    for column, (value, factor, label) in enumerate(shown):
        _draw_curve(figure.add_subplot(parts[2, column]), run.curves, value, factor, label)
    if has_latency:
        _draw_latency(figure.add_subplot(parts[3, :]), run.history)
    for axes in figure.axes:
        if axes.get_xlabel() in ("search step", "epoch"):
            axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    figure.suptitle(
        ",  ".join(
            f"{row.name}: {metric.text(row.metrics[run.metric])}{' %' * metric.is_share} "
            f"{metric.words}, {_flops_text(row.flops)} FLOPs"
            for row in run.table
        )
    )
    save(figure, path)


def _flops_text(flops):
    return f"{flops / 1e6:,.1f} M" if flops >= 1e5 else f"{flops:,}"


def _draw_search(rates, losses, history, metric):
    """Draws the rate on one axis, and loss and metric on another, over the search steps."""
    steps = [entry.step for entry in history]
    rates.plot(steps, [entry.rate for entry in history], color=COLOURS[0])
    rates.set(xlabel="search step", ylabel="rate of FLOPs kept", title="search", ylim=(0, 1.02))
    losses.plot(steps, [entry.loss for entry in history], color=COLOURS[0], label="loss (left)")
    losses.set(xlabel="search step", ylabel="validation loss", title="interim sub-networks")
    accuracies = losses.twinx()
    words = "accuracy" if metric.words == "top-1" else metric.words
    accuracies.plot(
        steps,
        [metric.factor * entry.accuracy for entry in history],
        color=COLOURS[1],
        label=f"{words} (right)",
    )
    accuracies.set_ylabel(f"validation {words}" + ", %" * metric.is_share)
    lines = [*losses.get_lines(), *accuracies.get_lines()]
    losses.legend(lines, [line.get_label() for line in lines], loc="center left")


def _draw_latency(axes, history):
    """Draws predicted and measured latencies of the interim sub-networks over their FLOPs."""
    costs = [
        (entry.rate, entry.costs["latency"])
        for entry in history
        if "latency" in (entry.costs or {})
    ]
    axes.plot(
        [rate for rate, _ in costs],
        [cost["predicted"] for _, cost in costs],
        color=COLOURS[0],
        label="predicted",
    )
    measured = [(rate, cost["measured"]) for rate, cost in costs if "measured" in cost]
    if measured:
        timings = [timing for _, timing in measured]
        spreads = [
            [timing["ratio"] - timing["ratio_low"] for timing in timings],
            [timing["ratio_high"] - timing["ratio"] for timing in timings],
        ]
        axes.errorbar(
            [rate for rate, _ in measured],
            [timing["ratio"] for timing in timings],
            spreads,
            fmt="o",
            capsize=3,
            color=COLOURS[1],
            label="measured, with the first and last decile",
        )
    axes.plot([0, 1], [0, 1], ":", color=COLOURS[-1], label="as the FLOPs")
    axes.set(
        xlabel="rate of FLOPs kept",
        ylabel="share of the unpruned latency",
        title=costs[-1][1]["conditions"],
        xlim=(0, 1.02),
        ylim=(0, 1.08),
    )
    axes.legend()
    axes.grid(alpha=0.3)


def _draw_widths(axes, entry):
    """Draws the number of channels of each group that a history entry's sub-network keeps."""
    subnetwork = entry.subnetwork
    groups = range(len(subnetwork.names))
    sizes = [len(channels) for channels in subnetwork.order]
    axes.bar(groups, sizes, color="#cfd8e3", label="unpruned")
    axes.bar(groups, [subnetwork.num_kept(i) for i in groups], color=COLOURS[0], label="kept")
    axes.set_xticks(groups, subnetwork.names, rotation=90, fontsize=8 if len(sizes) < 40 else 6)
    axes.set(
        ylabel="channels of the group",
        title=f"widths at rate {entry.rate:.4f}",
        xlim=(-0.6, len(sizes) - 0.4),
    )
    axes.legend()


def _draw_curve(axes, curves, value, factor, label):
    """Draws one value of the training curves over the epochs of baseline and fine-tuning."""
    variants = (
        (value, "-", ""),
        (f"val_{value}", "--", ", D_val"),
        (f"test_{value}", ":", ", test"),
    )
    for phase, colour in zip(("baseline", "fine-tune"), COLOURS):
        epochs = [entry for entry in curves if entry["phase"] == phase]
        for name, style, suffix in variants:
            points = [(epoch["step"], factor * epoch[name]) for epoch in epochs if name in epoch]
            if points:
                marker = "o" if len(points) < 20 else None
                text = f"{phase}{suffix}"
                axes.plot(*zip(*points), style, marker=marker, color=colour, label=text)
    axes.set(xlabel="epoch", ylabel=label, title=label)
    if axes.get_lines():
        axes.legend()
        axes.set_xlim(0.5, max(line.get_xdata()[-1] for line in axes.get_lines()) + 0.5)
    axes.grid(alpha=0.3)


def draw_front(path, points):
    """Draws the first figure of merit of a front over FLOPs, and over each latency measured.

    Latencies are shares of the unpruned network's: it was timed in turn with each point, while the
    machine may have been faster for one point than for another.

    Args:
        path: of the PNG.
        points: list of front.FrontPoint.
    """
    unpruned = points[0].unpruned
    conditions = common_names([row for point in points for row in point.run.table], "latencies")
    figure, (row,) = plt.subplots(
        1,
        1 + len(conditions),
        figsize=(6.5 * (1 + len(conditions)), 5),
        squeeze=False,
        layout="constrained",
    )
    _draw_front_over(row[0], points, lambda row: row.flops / unpruned.flops)
    row[0].set_xlabel("share of the FLOPs")
    for axes, name in zip(row[1:], conditions):
        _draw_front_over(axes, points, lambda row, name=name: row.latencies[name]["ratio"])
        axes.set_xlabel(f"share of the time, {name}")
    save(figure, path)


def _draw_front_over(axes, points, cost):
    """Draws accuracy over a cost: one line for each thing that was done to the pruned networks."""
    unpruned, name = points[0].unpruned, points[0].run.metric
    metric = metric_named(name)
    steps = list(dict.fromkeys(step for point in points for step in point.rows))
    for step, colour in zip(steps, COLOURS):
        rows = [point.rows[step] for point in points if step in point.rows]
        axes.errorbar(
            [cost(row) for row in rows],
            [metric.factor * row.metrics[name] for row in rows],
            [metric.factor * row.errors.get(name, 0.0) for row in rows],
            fmt="o-",
            capsize=3,
            color=colour,
            label=step,
        )
    axes.plot(cost(unpruned), metric.factor * unpruned.metrics[name], "k*", ms=12, label="unpruned")
    axes.set(ylabel=metric.title.replace(" %", ", %"))
    axes.grid(alpha=0.3)
    axes.legend()


def draw_sensitivity(path, sensitivity):
    """Draws the loss with each channel group narrowed alone.

    Args:
        path: of the PNG.
        sensitivity: searching.sensitivity.Sensitivity.
    """
    groups = sensitivity.groups
    figure, axes = plt.subplots(figsize=(max(6, 0.3 * len(groups) + 3), 5), layout="constrained")
    positions = range(len(groups))
    for index, (share, colour) in enumerate(zip(sensitivity.shares, COLOURS)):
        losses = [group.losses[index] for group in groups]
        axes.plot(positions, losses, "o-", color=colour, label=f"{share:g} of the channels")
    axes.axhline(sensitivity.loss, color="k", linestyle=":", label="unpruned")
    axes.set_xticks(positions, [group.name for group in groups], rotation=90)
    axes.set(ylabel="validation loss", title="one group narrowed, before any training")
    axes.legend()
    axes.grid(alpha=0.3)
    save(figure, path)
