"""Pictures of runs and analyses. Every function draws one PNG file; numbers come from the caller."""

import base64
import html
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib import ticker  # noqa: E402

DPI = 110
SURFACES_IN_A_ROW = 5
COLOURS = ("#1f6fb4", "#d9822b", "#3a9a5b", "#b03a48", "#7a5ca8", "#6b6b6b")


def save(figure, path):
    """Writes a figure and closes it."""
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
    plt.close(figure)


def draw_conditions(path, names, conditions):
    """Draws condition numbers as bars, one for each network."""
    figure, axes = plt.subplots(figsize=(7, 0.45 * len(names) + 1.6))
    places = np.arange(len(names))
    axes.barh(places, conditions, color=COLOURS[0])
    axes.set_yticks(places, names)
    for place, value in zip(places, conditions):
        axes.text(value, place, f" {value:.4f}", va="center", fontsize=9)
    axes.set_xlim(0, 1.18 * max(conditions))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("condition number |λmin / λmax| of the loss (smaller is smoother)")
    save(figure, path)


def draw_surfaces(path, names, steps, surfaces):
    """Draws the loss surfaces of several networks with one scale: in three dimensions above, contours below.

    Args:
        path: of the PNG.
        names: of the networks.
        steps: multiples of the two filter-normalised directions.
        surfaces: list of arrays [len(steps), len(steps)].
    """
    columns = min(len(names), SURFACES_IN_A_ROW)
    rows = -(-len(names) // columns)
    low, high = min(surface.min() for surface in surfaces), max(surface.max() for surface in surfaces)
    high = max(high, low + 1e-6)
    figure = plt.figure(figsize=(4.4 * columns + 0.6, 8 * rows + 0.8), layout="constrained")
    places = figure.add_gridspec(2 * rows, columns)
    grid = np.meshgrid(steps, steps, indexing="ij")
    for i, (name, surface) in enumerate(zip(names, surfaces)):
        row, column = 2 * (i // columns), i % columns
        axes = figure.add_subplot(places[row, column], projection="3d")
        axes.plot_surface(*grid, surface, cmap="viridis", vmin=low, vmax=high, linewidth=0)
        axes.set_zlim(low, high)
        axes.set_title(f"{name}\nloss at the network {surface[len(steps) // 2, len(steps) // 2]:.3f}", fontsize=11)
        axes.set_xlabel("first direction")
        axes.set_ylabel("second direction")
        axes.set_zlabel("cross-entropy, nats")
        axes = figure.add_subplot(places[row + 1, column])
        drawn = axes.contourf(*grid, surface, levels=np.linspace(low, high, 25), cmap="viridis")
        axes.contour(*grid, surface, levels=np.linspace(low, high, 13), colors="white", linewidths=0.5)
        axes.plot(0, 0, "r+", markersize=10)
        axes.set_aspect("equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(np.linspace(steps[0], steps[-1], 5))
        axes.set_xlabel("first direction")
        axes.set_ylabel("second direction" if column == 0 else "")
    figure.colorbar(drawn, ax=figure.axes, label="cross-entropy, nats", location="bottom", format="%.3g", shrink=0.8,
                    aspect=20 * columns)
    save(figure, path)


def draw_correlation(path, title, rows, statistics):
    """Draws loss after fine-tuning over validation loss and over condition number.

    Args:
        path: of the PNG.
        title: of the picture.
        rows: list of {"val_loss", "condition", "tuned_loss"}.
        statistics: {"val_loss" and "condition": {"pearson", "pearson_interval", "spearman", "spearman_interval"}}.
    """
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 4.6), sharey=True, layout="constrained")
    labels = {"val_loss": "validation loss before fine-tuning, nats", "condition": "condition number before fine-tuning"}
    for axes, (name, label), colour in zip(panels, labels.items(), COLOURS):
        axes.scatter([row[name] for row in rows], [row["tuned_loss"] for row in rows], color=colour, alpha=0.8)
        found = statistics[name]
        axes.set_title("\n".join(f"{kind} {found[kind.lower()]:.2f}, 95 % [{found[kind.lower() + '_interval'][0]:.2f}, "
                                 f"{found[kind.lower() + '_interval'][1]:.2f}]" for kind in ("Pearson", "Spearman")),
                       fontsize=10)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test loss after fine-tuning, nats")
    figure.suptitle(title)
    save(figure, path)


def draw_comparison(path, title, names, panels):
    """Draws several figures of several variants side by side, with error bars where there are several seeds.

    Args:
        path: of the PNG.
        title: of the picture.
        names: of the variants.
        panels: list of (label, means, standard deviations).
    """
    figure, axes_of = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 0.42 * len(names) + 1.9), sharey=True,
                                   layout="constrained", squeeze=False)
    places = np.arange(len(names))
    for axes, (label, means, deviations), colour in zip(axes_of[0], panels, COLOURS):
        axes.errorbar(means, places, xerr=deviations, fmt="o", color=colour, capsize=3)
        axes.set_yticks(places, names)
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        axes.margins(x=0.15)
    axes_of[0][0].invert_yaxis()
    figure.suptitle(title)
    save(figure, path)


def draw_run(path, history, sizes, curves, table):
    """Draws a run: the search, the widths it ends with, the training curves.

    Args:
        path: of the PNG.
        history: list of ekg HistoryEntry.
        sizes: {group name: channels of the unpruned network}.
        curves: list of {"phase", "step", "loss", "top1", ...}, a line an epoch.
        table: list of utils.Row.
    """
    figure = plt.figure(figsize=(13, 9.5), layout="constrained")
    parts = figure.add_gridspec(3, 2)
    steps = [entry.step for entry in history]
    axes = figure.add_subplot(parts[0, 0])
    axes.plot(steps, [entry.rate for entry in history], color=COLOURS[0])
    axes.set(xlabel="search step", ylabel="rate of FLOPs kept", title="search", ylim=(0, 1.02))
    axes = figure.add_subplot(parts[0, 1])
    axes.plot(steps, [entry.loss for entry in history], color=COLOURS[0], label="loss (left)")
    axes.set(xlabel="search step", ylabel="validation loss, nats", title="interim sub-networks")
    other = axes.twinx()
    other.plot(steps, [100 * entry.accuracy for entry in history], color=COLOURS[1], label="accuracy (right)")
    other.set_ylabel("validation accuracy, %")
    lines = [*axes.get_lines(), *other.get_lines()]
    axes.legend(lines, [line.get_label() for line in lines], loc="center left")
    axes = figure.add_subplot(parts[1, :])
    names, last = list(sizes), history[-1].subnetwork
    axes.bar(range(len(names)), list(sizes.values()), color="#cfd8e3", label="unpruned")
    axes.bar(range(len(names)), [last.num_kept(i) for i in range(len(names))], color=COLOURS[0], label="kept")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8 if len(names) < 40 else 6)
    axes.set(ylabel="channels of the group", title=f"widths at rate {history[-1].rate:.4f}", xlim=(-0.6, len(names) - 0.4))
    axes.legend()
    for column, (value, factor, label) in enumerate((("loss", 1, "training loss"), ("top1", 100, "training top-1, %"))):
        axes = figure.add_subplot(parts[2, column])
        for phase, colour in zip(("baseline", "fine-tune"), COLOURS):
            own = [line for line in curves if line["phase"] == phase]
            if own:
                axes.plot([line["step"] for line in own], [factor * line[value] for line in own],
                          marker="o" if len(own) < 20 else None, color=colour, label=phase)
        axes.set(xlabel="epoch", ylabel=label, title=label)
        if axes.get_lines():
            axes.legend()
            axes.set_xlim(0.5, max(line.get_xdata()[-1] for line in axes.get_lines()) + 0.5)
        axes.grid(alpha=0.3)
    for axes in figure.axes:
        if axes.get_xlabel() in ("search step", "epoch"):
            axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    figure.suptitle(",  ".join(f"{row.name}: {100 * row.top1:.2f} % top-1, {row.flops / 1e6:,.1f} M FLOPs" for row in table))
    save(figure, path)


def write_page(path, title, picture, tables):
    """Writes a self-contained HTML page: a title, a picture, tables.

    Args:
        path: of the page.
        title: text.
        picture: path of a PNG, which goes into the page.
        tables: {heading: (list of column names, list of rows of texts)}.
    """
    data = base64.b64encode(Path(picture).read_bytes()).decode()
    parts = [f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title><style>"
             "body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}"
             "img{max-width:100%}table{border-collapse:collapse;margin:1em 0}td,th{padding:.3em .8em;"
             "border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}"
             f"</style></head><body><h1>{html.escape(title)}</h1>"]
    for heading, (head, rows) in tables.items():
        cells = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
                        for row in rows)
        names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
        parts.append(f"<h2>{html.escape(heading)}</h2><table><tr>{names}</tr>{cells}</table>")
    parts.append(f"<img alt='search, widths and training curves' src='data:image/png;base64,{data}'></body></html>")
    Path(path).write_text("\n".join(parts), encoding="utf-8")
