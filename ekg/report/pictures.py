"""The picture of a run. Numbers come from the caller.

Importing this module imports matplotlib.
"""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib import ticker

from ekg.io import files
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
    """Draws a run: the search, the widths it ends with, the training curves.

    Args:
        path: of the PNG.
        run: page.FinishedRun.
    """
    has_latency = any("latency" in (entry.costs or {}) for entry in run.history)
    figure = plt.figure(figsize=(13, 13 if has_latency else 9.5), layout="constrained")
    parts = figure.add_gridspec(3 + has_latency, 2)
    metric = metric_named(run.metric)
    _draw_search(
        figure.add_subplot(parts[0, 0]), figure.add_subplot(parts[0, 1]), run.history, metric
    )
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
    """Draws rate, and loss with accuracy or another metric, over the search steps, on two axes."""
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
    """Draws the latency of the interim sub-networks against their FLOPs: predicted, and measured
    where it was.
    """
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
        spreads = [
            [one["ratio"] - one["ratio_low"] for _, one in measured],
            [one["ratio_high"] - one["ratio"] for _, one in measured],
        ]
        axes.errorbar(
            [rate for rate, _ in measured],
            [one["ratio"] for _, one in measured],
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
    """Draws how many channels of each group the sub-network of a history entry keeps."""
    subnetwork = entry.subnetwork
    places, sizes = range(len(subnetwork.names)), [len(channels) for channels in subnetwork.order]
    axes.bar(places, sizes, color="#cfd8e3", label="unpruned")
    axes.bar(places, [subnetwork.num_kept(i) for i in places], color=COLOURS[0], label="kept")
    axes.set_xticks(places, subnetwork.names, rotation=90, fontsize=8 if len(sizes) < 40 else 6)
    axes.set(
        ylabel="channels of the group",
        title=f"widths at rate {entry.rate:.4f}",
        xlim=(-0.6, len(sizes) - 0.4),
    )
    axes.legend()


def _draw_curve(axes, curves, value, factor, label):
    """Draws a value of the training curves over the epochs of baseline training and fine-tuning."""
    for phase, colour in zip(("baseline", "fine-tune"), COLOURS):
        lines = [line for line in curves if line["phase"] == phase]
        for name, style, what in (
            (value, "-", ""),
            (f"val_{value}", "--", ", D_val"),
            (f"test_{value}", ":", ", test"),
        ):
            points = [(line["step"], factor * line[name]) for line in lines if name in line]
            if points:
                axes.plot(
                    *zip(*points),
                    style,
                    marker="o" if len(points) < 20 else None,
                    color=colour,
                    label=f"{phase}{what}",
                )
    axes.set(xlabel="epoch", ylabel=label, title=label)
    if axes.get_lines():
        axes.legend()
        axes.set_xlim(0.5, max(line.get_xdata()[-1] for line in axes.get_lines()) + 0.5)
    axes.grid(alpha=0.3)
