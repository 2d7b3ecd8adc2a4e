"""Pictures of analyses: every function draws one PNG file from numbers that the caller passes.

Importing this module imports matplotlib.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from analyses.results import mean_and_deviation, tells_sign
from ekg.report.pictures import COLOURS, save

MARKERS = "osD^vPX*<>"
LINES = ("solid", "dashed", "dotted")
SURFACES_IN_A_ROW = 5
MOST_GAP = 2.0  # gap to outliers beyond which they are not drawn, in ranges of the other values
IN_A_LEGEND = 6  # lines; longer legends stand next to the axes so as not to hide curves
LOWEST = 1e-6  # lowest loss on a logarithmic scale, as a share of the highest


def draw_conditions(path, names, conditions):
    """Draws condition numbers as bars, one per network."""
    figure, axes = plt.subplots(figsize=(7, 0.45 * len(names) + 1.6))
    positions = np.arange(len(names))
    axes.barh(positions, conditions, color=COLOURS[0])
    axes.set_yticks(positions, names)
    for position, value in zip(positions, conditions):
        axes.text(value, position, f" {value:.4g}", va="center", fontsize=9)
    axes.set_xlim(0, 1.18 * max(conditions))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("condition number |λmin / λmax| of the loss (smaller is smoother)")
    save(figure, path)


def draw_surfaces(path, names, steps, surfaces, scale="log"):
    """Draws loss surfaces of several networks on one scale: in 3-D, and as contours below.

    Args:
        path: path of the PNG file to write.
        names: names of the networks.
        steps: multiples of the two filter-normalised directions.
        surfaces: list of arrays [len(steps), len(steps)] of losses of at least 0.
        scale: "log" or "linear"; the logarithmic scale ends at LOWEST times the highest loss.
    """
    columns = min(len(names), SURFACES_IN_A_ROW)
    rows = -(-len(names) // columns)
    losses = [surface[len(steps) // 2, len(steps) // 2] for surface in surfaces]
    if scale == "log":
        highest = max(surface.max() for surface in surfaces)
        floor = max(LOWEST * highest, np.finfo(float).tiny)
        surfaces = [np.log10(np.maximum(surface, floor)) for surface in surfaces]
        label = "cross-entropy, nats, logarithmic scale"

        def shown(exponent, _=None):
            return f"{10**exponent:.3g}"
    else:
        label = "cross-entropy, nats"

        def shown(loss, _=None):
            return f"{loss:.3g}"

    low = min(surface.min() for surface in surfaces)
    high = max(low + 1e-6, *(surface.max() for surface in surfaces))
    figure = plt.figure(figsize=(4.4 * columns + 0.6, 8 * rows + 0.8), layout="constrained")
    cells = figure.add_gridspec(2 * rows, columns)
    grid = np.meshgrid(steps, steps, indexing="ij")
    for i, (name, loss, surface) in enumerate(zip(names, losses, surfaces)):
        row = 2 * (i // columns)
        column = i % columns
        axes = figure.add_subplot(cells[row, column], projection="3d")
        axes.plot_surface(*grid, surface, cmap="viridis", vmin=low, vmax=high, linewidth=0)
        axes.set_zlim(low, high)
        axes.set_title(f"{name}\nloss at the network {loss:.3f}", fontsize=11)
        axes.set_xlabel("first direction")
        axes.set_ylabel("second direction")
        axes.zaxis.set_major_formatter(shown)
        axes = figure.add_subplot(cells[row + 1, column])
        drawn = axes.contourf(*grid, surface, levels=np.linspace(low, high, 25), cmap="viridis")
        axes.contour(
            *grid,
            surface,
            levels=np.linspace(low, high, 13),
            colors="white",
            linewidths=0.5,
            linestyles="solid",
        )
        axes.plot(0, 0, "r+", markersize=10)
        axes.set_aspect("equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(np.linspace(steps[0], steps[-1], 5))
        axes.set_xlabel("first direction")
        axes.set_ylabel("second direction" if column == 0 else "")
    figure.colorbar(
        drawn,
        ax=figure.axes,
        label=label,
        location="bottom",
        format=shown,
        shrink=0.8,
        aspect=20 * columns,
    )
    save(figure, path)


def draw_correlation(path, title, rows, statistics):
    """Draws the loss after fine-tuning over validation loss and over condition number.

    Args:
        path: path of the PNG file to write.
        title: title of the picture.
        rows: list of {"val_loss", "condition", "tuned_loss"}.
        statistics: {"val_loss", "condition", "val_loss_given_condition" and
            "condition_given_val_loss": {"pearson", "pearson_interval", "spearman",
            "spearman_interval"}}.
    """
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 4.6), sharey=True, layout="constrained")
    labels = {
        "val_loss": "validation loss before fine-tuning, nats",
        "condition": "condition number before fine-tuning",
    }
    fixed = {"val_loss": "val_loss_given_condition", "condition": "condition_given_val_loss"}
    for axes, (name, label), colour in zip(panels, labels.items(), COLOURS):
        axes.scatter(
            [row[name] for row in rows],
            [row["tuned_loss"] for row in rows],
            color=colour,
            alpha=0.8,
        )
        texts = [_coefficient_text(statistics[name], kind) for kind in ("Pearson", "Spearman")]
        texts += [f"the other held fixed: {_coefficient_text(statistics[fixed[name]], 'Spearman')}"]
        axes.set_title("\n".join(texts), fontsize=10)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test loss after fine-tuning, nats")
    figure.suptitle(title)
    save(figure, path)


def _coefficient_text(coefficients, kind):
    low, high = coefficients[f"{kind.lower()}_interval"]
    text = f"{kind} {coefficients[kind.lower()]:.2f}, 95 % [{low:.2f}, {high:.2f}]"
    return text if tells_sign((low, high)) else f"{text}: not significant"


def draw_comparison(path, title, names, panels):
    """Draws a panel per figure over all variants, with error bars if there are deviations.

    Args:
        path: path of the PNG file to write.
        title: title of the picture.
        names: names of the variants.
        panels: list of (label, means, standard deviations or None).
    """
    figure, grid = plt.subplots(
        1,
        len(panels),
        figsize=(3.4 * len(panels), 0.42 * len(names) + 1.9),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    positions = np.arange(len(names))
    for axes, (label, means, deviations), colour in zip(grid[0], panels, COLOURS):
        axes.errorbar(means, positions, xerr=deviations, fmt="o", color=colour, capsize=3)
        axes.set_yticks(positions, names)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        axes.margins(x=0.15, y=0.15)
        axes.locator_params(axis="x", nbins=5)
        axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4), useMathText=True)
    grid[0][0].invert_yaxis()
    figure.suptitle(title)
    save(figure, path)


def draw_methods(path, networks):
    """Draws the final accuracy of each method: a panel per network, a line per method.

    Dots are runs; methods with several runs also get their mean and deviation.

    Args:
        path: path of the PNG file to write.
        networks: {title: (top-1 of the unpruned networks in %, list of (method, top-1 of its runs
            in %))}.
    """
    counts = [len(methods) for _, methods in networks.values()]
    figure, grid = plt.subplots(
        len(counts),
        1,
        figsize=(9, 0.3 * sum(counts) + 1.3 * len(counts)),
        layout="constrained",
        squeeze=False,
        height_ratios=[count + 1 for count in counts],
    )
    for axes, (title, (baselines, methods)) in zip(grid[:, 0], networks.items()):
        _draw_baselines(axes.axvline, baselines)
        lowest = _lowest_shown([value for _, runs in methods for value in runs])
        for line, (_, runs) in enumerate(methods):
            mean, deviation = mean_and_deviation(runs)
            axes.plot(runs, [line] * len(runs), "o", color=COLOURS[0], markersize=4, alpha=0.5)
            if mean < lowest:  # an outlier, written at the edge instead of drawn
                axes.text(
                    0.01,
                    line,
                    f"◄ {mean:.2f}",
                    transform=axes.get_yaxis_transform(),
                    va="center",
                    fontsize=9,
                )
            if len(runs) > 1:
                axes.errorbar(
                    mean, line, xerr=deviation, fmt="|", color=COLOURS[1], capsize=4, markersize=11
                )
        labels = [
            f"{method} ({len(runs)})" if len(runs) > 1 else method for method, runs in methods
        ]
        axes.set_yticks(range(len(methods)), labels, fontsize=9)
        axes.set(title=title, xlabel="top-1, %", ylim=(len(methods) - 0.4, -0.6))
        axes.margins(x=0.08)
        axes.ticklabel_format(axis="x", useOffset=False)
        if lowest > -np.inf:
            values = [value for _, runs in methods for value in runs]
            shown = [*baselines, *(value for value in values if value >= lowest)]
            margin = 0.08 * (max(shown) - min(shown))
            axes.set_xlim(min(shown) - margin, max(shown) + margin)
    _finish(figure, grid[:, 0], path)


def _lowest_shown(values):
    """Returns the lowest value to draw; at most a quarter of the values, outliers, lie below it."""
    values = sorted(values)
    after_gaps = [
        high
        for low, high in zip(values, values[1 : len(values) // 4 + 1])
        if high - low > MOST_GAP * (values[-1] - high)
    ]
    return max(after_gaps, default=-np.inf)


def draw_rates(path, networks):
    """Draws accuracy over the FLOPs kept: a panel per network, error bars for several seeds.

    Args:
        path: path of the PNG file to write.
        networks: {title: (top-1 of the unpruned networks in %, {method: list of (rate, top-1 of its
            runs in %)})}.
    """
    figure, panels = _panels(len(networks))
    for axes, (title, (baselines, methods)) in zip(panels, networks.items()):
        _draw_baselines(axes.axhline, baselines)
        for i, (method, points) in enumerate(methods.items()):
            rates, runs = zip(*points)
            means, deviations = zip(*map(mean_and_deviation, runs))
            axes.errorbar(
                rates,
                means,
                yerr=deviations,
                color=COLOURS[i % len(COLOURS)],
                marker=MARKERS[i % len(MARKERS)],
                capsize=3,
                label=method,
            )
        axes.set(title=title, xlabel="share of the FLOPs that is kept", ylabel="top-1, %")
        axes.margins(y=0.15)
    _finish(figure, panels, path)


def _draw_baselines(draw_line, baselines):
    for number, baseline in enumerate(sorted(set(baselines))):
        draw_line(
            baseline, color="0.4", linestyle="--", linewidth=1, label=None if number else "unpruned"
        )


def draw_curves(path, networks):
    """Draws validation accuracy over the epochs: a panel per network, a line per run.

    Args:
        path: path of the PNG file to write.
        networks: {title: list of (method, list with the top-1 after each epoch in % of its runs)}.
    """
    networks = {
        title: [(method, runs) for method, runs in methods if runs]
        for title, methods in networks.items()
    }
    networks = {title: methods for title, methods in networks.items() if methods}
    figure, panels = _panels(max(1, len(networks)))
    for axes, (title, methods) in zip(panels, networks.items()):
        for i, (method, runs) in enumerate(methods):
            for number, curve in enumerate(runs):
                axes.plot(
                    range(1, len(curve) + 1),
                    curve,
                    color=COLOURS[i % len(COLOURS)],
                    linewidth=1.2,
                    linestyle=LINES[i // len(COLOURS) % len(LINES)],
                    label=None if number else method,
                )
        axes.set(title=title, xlabel="epoch of fine-tuning", ylabel="top-1 on D_val, %")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    _finish(figure, panels, path)


def _panels(count):
    """Returns (figure, list of `count` axes side by side)."""
    figure, grid = plt.subplots(
        1, count, figsize=(7.5 * count, 5.5), layout="constrained", squeeze=False
    )
    return figure, grid[0]


def _finish(figure, panels, path):
    for axes in panels:
        axes.grid(alpha=0.3)
        if axes.has_data():
            options = {}
            if len(axes.get_legend_handles_labels()[0]) > IN_A_LEGEND:
                options = {"loc": "upper left", "bbox_to_anchor": (1.01, 1)}
            axes.legend(fontsize=8, **options)
    save(figure, path)
