"""A sub-network as a value: which channels of every group are kept."""

import dataclasses
import math

import numpy as np

from ekg.errors import EkgError

# Widths are sums of floating-point steps: w * C that should be a whole number may miss it by this much.
WIDTH_TOLERANCE = 1e-6


def count_kept(width, size):
    """Returns how many of `size` channels have a rank below max(width * size, 1)."""
    return min(max(math.ceil(width * size - WIDTH_TOLERANCE), 1), size)


@dataclasses.dataclass(frozen=True)
class Subnetwork:
    """One choice of kept channels. Immutable; equal sub-networks compare equal; goes to JSON and back.

    Attributes:
        order: for every group its channels, the most important first.
        width: for every group the fraction of its channels that is kept, in [0, 1]; one channel always stays.
        names: the names of the groups, in network order.
    """
    names: tuple[str, ...]
    order: tuple[tuple[int, ...], ...]
    width: tuple[float, ...]

    @classmethod
    def whole(cls, groups):
        """Returns the sub-network that keeps every channel of the groups."""
        return cls(tuple(group.name for group in groups), tuple(tuple(range(group.size)) for group in groups),
                   (1.0,) * len(groups))

    def num_kept(self, group):
        """Returns how many channels the group at this position keeps."""
        return count_kept(self.width[group], len(self.order[group]))

    def kept(self, group):
        """Returns the kept channels of the group at this position, in ascending order: int array."""
        return np.sort(np.array(self.order[group][:self.num_kept(group)], dtype=np.int64))

    def with_width(self, group, width):
        """Returns this sub-network with another width of the group at this position."""
        return dataclasses.replace(self, width=self.width[:group] + (width,) + self.width[group + 1:])

    def with_widths(self, widths):
        """Returns this sub-network with the widths {group name: width in [0, 1]}; groups not named keep theirs.

        Raises:
            EkgError: a name is not a group's, or a width is outside [0, 1].
        """
        unknown = sorted(set(widths) - set(self.names))
        if unknown:
            raise EkgError(f"`widths`: no channel group is named {unknown}; the groups are {list(self.names)}.")
        wrong = {name: width for name, width in widths.items() if not 0 <= width <= 1}
        if wrong:
            raise EkgError(f"`widths` must be in [0, 1]; received {wrong}.")
        return dataclasses.replace(self, width=tuple(
            float(widths.get(name, width)) for name, width in zip(self.names, self.width)))

    def ranked(self, scores):
        """Returns this sub-network with every group's kept channels ordered by descending score.

        Channels that are not kept stay behind the kept ones, and ties keep their order.

        Args:
            scores: for every group an array of one score a channel.
        """
        order = []
        for group, channels in enumerate(self.order):
            kept, removed = channels[:self.num_kept(group)], channels[self.num_kept(group):]
            ranking = np.argsort(-np.asarray(scores[group])[list(kept)], kind="stable")
            order.append(tuple(kept[i] for i in ranking) + removed)
        return dataclasses.replace(self, order=tuple(order))

    def to_json(self):
        """Returns {"widths": {group name: width}, "order": channels of every group, most important first}."""
        return {"widths": dict(zip(self.names, self.width)), "order": [list(channels) for channels in self.order]}

    @classmethod
    def from_json(cls, value):
        """Returns the sub-network that to_json() turned into this dict."""
        return cls(tuple(value["widths"]), tuple(map(tuple, value["order"])), tuple(value["widths"].values()))

    def __str__(self):
        return ", ".join(f"{name} {self.num_kept(i)}/{len(self.order[i])}" for i, name in enumerate(self.names))
