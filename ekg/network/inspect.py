"""Reports what can be pruned in a network, and why the rest cannot."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ekg.errors import EkgError
from ekg.graph import checks, complexity, groups
from ekg.graph.calls import Graph
from ekg.graph.limits import PruningLimits
from ekg.network.supernet import Supernet


@dataclasses.dataclass(frozen=True)
class GroupReport:
    """A channel group in an Inspection.

    Attributes:
        name: the group's name.
        channels: number of channels.
        least: smallest number of them that may stay.
        layers: names of the layers that write them.
        flops: share of the network's FLOPs that is saved without all channels but these.
        params: likewise of the parameters.
    """

    name: str
    channels: int
    least: int
    layers: tuple[str, ...]
    flops: float
    params: float


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What can be pruned in a network.

    Attributes:
        model: name of the network.
        complexity: Complexity of the whole network.
        groups: tuple of GroupReport in network order.
        smallest_rate: share of the FLOPs that the smallest sub-network has.
        smallest_params: share of the parameters that it has.
        closed: {layer that mixes channels: why its outputs, or some of them, are never pruned}.
        uncounted: layers with weights whose FLOPs are unknown.
        sensitivity: searching.sensitivity.Sensitivity of the groups; None without data.
        staying: {group that was to vanish, by `min_channels` of 0: why it keeps a channel}.
    """

    model: str
    complexity: complexity.Complexity
    groups: tuple[GroupReport, ...]
    smallest_rate: float
    smallest_params: float
    closed: dict[str, str]
    uncounted: tuple[str, ...]
    sensitivity: Any = None
    staying: dict[str, str] = dataclasses.field(default_factory=dict)

    def draw(self, path: str | Path) -> None:
        """Draws the loss with each channel group narrowed alone, as a PNG.

        Raises:
            EkgError: there is no sensitivity, as no data were given; or matplotlib is missing.
        """
        if self.sensitivity is None:
            raise EkgError("there is nothing to draw: give `data` to ekg.inspect.")
        try:
            from ekg.report import pictures  # imports matplotlib
        except ModuleNotFoundError as error:
            raise EkgError(
                f"a picture needs {error.name}; install it with: pip install {error.name}"
            ) from None
        pictures.draw_sensitivity(path, self.sensitivity)

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain dicts and lists."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.model}: {self.complexity.flops:,} FLOPs, {self.complexity.params:,} parameters",
            "",
        ]
        if self.groups:
            width = max(len("channel group"), *(len(group.name) for group in self.groups))
            lines.append(
                f"{'channel group':<{width}}  channels  least  FLOPs %  params %  written by"
            )
            lines += [
                f"{group.name:<{width}}  {group.channels:>8}  {group.least:>5}  "
                f"{100 * group.flops:>7.2f}  {100 * group.params:>8.2f}  {_listed(group.layers)}"
                for group in self.groups
            ]
            lines += [
                "",
                f"The smallest sub-network has {100 * self.smallest_rate:.2f} % of the FLOPs and "
                f"{100 * self.smallest_params:.2f} % of the parameters.",
            ]
        else:
            lines.append("Nothing can be pruned.")
        if self.staying:
            width = max(map(len, self.staying))
            lines += ["", "Channel groups that cannot vanish:"]
            lines += [f"{name:<{width}}  {reason}" for name, reason in self.staying.items()]
        if self.closed:
            width = max(map(len, self.closed))
            lines += ["", "Outputs that are never pruned:"]
            lines += [f"{key:<{width}}  {reason}" for key, reason in self.closed.items()]
        if self.uncounted:
            lines += ["", f"FLOPs of {', '.join(self.uncounted)} are not counted."]
        if self.sensitivity is not None:
            lines += ["", str(self.sensitivity)]
        return "\n".join(lines)


def _listed(names, most=3):
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def inspect(model, **choices):
    """Returns the Inspection of a network: its channel groups, their cost, and why other channels
    stay.

        print(ekg.inspect(model, exclude="head"))

    Args:
        model: keras.Model.
        choices: arguments of Supernet, as exclude, min_channels, multiple_of.

    Raises:
        EkgError: as Supernet, except for a network in which nothing can be pruned.
    """
    try:
        supernet = Supernet(model, **choices)
        graph, layout, table = supernet.graph, supernet.layout, supernet.table
    except checks.NothingToPrune:
        graph = Graph(model, choices.pop("input_shape", None), choices.pop("open_layers", True))
        layout = groups.find(graph, PruningLimits(**choices))
        table = complexity.ComplexityTable(graph, layout)
        whole = table.count(np.ones(layout.num_channels + 1))
        return Inspection(
            model.name, whole, (), 1.0, 1.0, layout.closed, tuple(dict.fromkeys(table.uncounted))
        )
    whole, sizes = supernet.complexity(supernet.whole()), []
    for group in layout.groups:
        cost = supernet.complexity(supernet.whole().with_widths({group.name: 0.0}))
        sizes.append(
            GroupReport(
                group.name,
                group.size,
                group.counts[0],
                group.writers,
                _share(whole.flops, cost.flops),
                _share(whole.params, cost.params),
            )
        )
    least = supernet.complexity(supernet.smallest())
    return Inspection(
        model.name,
        whole,
        tuple(sizes),
        least.flops / whole.flops,
        least.params / whole.params,
        layout.closed,
        tuple(dict.fromkeys(table.uncounted)),
        staying=layout.staying,
    )


def _share(whole, part):
    return (whole - part) / whole
