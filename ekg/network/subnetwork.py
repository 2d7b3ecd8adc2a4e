"""A sub-network as a value: which channels of every group are kept."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Self

import numpy as np

from ekg.errors import EkgError
from ekg.graph.groups import ChannelGroup

WIDTH_TOLERANCE = 1e-6  # channels


def count_kept(width: Fraction | float, size: int, least: int = 1) -> int:
    """Returns how many of `size` channels have a rank below max(width * size, least).

    Args:
        width: share of the channels, in [0, 1]: a Fraction, which is exact, or a float, of which a
            whole number of channels may be missed by WIDTH_TOLERANCE.
        size: number of channels C.
        least: 0 where none may stay, else 1.
    """
    channels = width * size if isinstance(width, Fraction) else width * size - WIDTH_TOLERANCE
    return min(max(math.ceil(channels), least), size)


@dataclasses.dataclass(frozen=True)
class Subnetwork:
    """One choice of kept channels: immutable, comparable, and convertible to JSON and back.

    Attributes:
        names: the names of the groups, in network order.
        order: channels of every group, the most important first.
        kept_counts: number of kept channels of every group, from the first on.
        steps: (least number, multiple) of the channels of every group that may stay, to which other
            numbers are rounded up; empty where any number from one on may stay.
    """

    names: tuple[str, ...]
    order: tuple[tuple[int, ...], ...]
    kept_counts: tuple[int, ...]
    steps: tuple[tuple[int, int], ...] = ()

    @classmethod
    def whole(cls, groups: Sequence[ChannelGroup]) -> Self:
        """Returns the sub-network that keeps every channel of the groups."""
        steps = tuple((group.least, group.multiple) for group in groups)
        return cls(
            tuple(group.name for group in groups),
            tuple(tuple(range(group.size)) for group in groups),
            tuple(group.size for group in groups),
            steps if set(steps) - {(1, 1)} else (),
        )

    @property
    def width(self) -> tuple[float, ...]:
        """Fraction of the channels of every group that is kept, in [0, 1]."""
        return tuple(kept / len(channels) for kept, channels in zip(self.kept_counts, self.order))

    def num_kept(self, group: int) -> int:
        """Returns how many channels the group at this position keeps."""
        return self.kept_counts[group]

    def kept(self, group: int) -> np.ndarray:
        """Returns the kept channels of the group at this position, in ascending order: int
        array.
        """
        return np.sort(np.array(self.order[group][: self.kept_counts[group]], dtype=np.int64))

    def with_kept(self, group: int, num_kept: int) -> Self:
        """Returns this sub-network with this number of channels of the group at this position, or
        the next higher number that may stay.
        """
        counts = (
            self.kept_counts[:group]
            + (self._rounded(group, int(num_kept)),)
            + self.kept_counts[group + 1 :]
        )
        return dataclasses.replace(self, kept_counts=counts)

    def _rounded(self, group: int, num_kept: int) -> int:
        if not self.steps:
            return num_kept
        least, multiple = self.steps[group]
        return min(-(-max(num_kept, least) // multiple) * multiple, len(self.order[group]))

    def _least(self, group: int) -> int:
        return min(self.steps[group][0], 1) if self.steps else 1

    def with_width(self, group: int, width: Fraction | float) -> Self:
        """Returns this sub-network with another width, in [0, 1], of the group at this position."""
        size = len(self.order[group])
        return self.with_kept(group, count_kept(width, size, self._least(group)))

    def with_widths(self, widths: Mapping[str, float]) -> Self:
        """Returns this sub-network with the widths {group name: width in [0, 1]}; groups not named
        keep theirs.

        Raises:
            EkgError: a name is not a group's, or a width is outside [0, 1].
        """
        unknown = sorted(set(widths) - set(self.names))
        if unknown:
            raise EkgError(
                f"`widths`: no channel group is named {unknown}; the groups are {list(self.names)}."
            )
        wrong = {name: width for name, width in widths.items() if not 0 <= width <= 1}
        if wrong:
            raise EkgError(f"`widths` must be in [0, 1]; received {wrong}.")
        return dataclasses.replace(
            self,
            kept_counts=tuple(
                self._rounded(
                    group, count_kept(float(widths[name]), len(channels), self._least(group))
                )
                if name in widths
                else kept
                for group, (name, channels, kept) in enumerate(
                    zip(self.names, self.order, self.kept_counts)
                )
            ),
        )

    def ranked(self, scores: Sequence[np.ndarray]) -> Self:
        """Returns this sub-network with every group's kept channels ordered by descending score.

        Channels that are not kept stay after the kept ones, and ties keep their order.

        Args:
            scores: list of one array of scores per group, one score per channel.
        """
        order = []
        for group, channels in enumerate(self.order):
            kept, removed = channels[: self.num_kept(group)], channels[self.num_kept(group) :]
            ranking = np.argsort(-np.asarray(scores[group])[list(kept)], kind="stable")
            order.append(tuple(kept[i] for i in ranking) + removed)
        return dataclasses.replace(self, order=tuple(order))

    def to_json(self) -> dict[str, Any]:
        """Returns {"kept": {group name: number of channels}, "order": channels of every group, most
        important first}.

        Where not every number of channels may stay, "steps" holds (least, multiple) of every group,
        too.
        """
        value = {
            "kept": dict(zip(self.names, self.kept_counts)),
            "order": [list(channels) for channels in self.order],
        }
        return value | ({"steps": [list(pair) for pair in self.steps]} if self.steps else {})

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Returns the sub-network that to_json() turned into this dict; "widths" of earlier
        versions are understood.
        """
        order = tuple(map(tuple, value["order"]))
        if "kept" in value:
            steps = tuple(map(tuple, value.get("steps", ())))
            return cls(tuple(value["kept"]), order, tuple(value["kept"].values()), steps)
        counts = (
            count_kept(float(width), len(channels))
            for width, channels in zip(value["widths"].values(), order)
        )
        return cls(tuple(value["widths"]), order, tuple(counts))

    def __str__(self):
        return ", ".join(
            f"{name} {self.num_kept(i)}/{len(self.order[i])}" for i, name in enumerate(self.names)
        )
