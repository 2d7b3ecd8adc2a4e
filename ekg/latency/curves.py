"""The time of a kernel as a function of its numbers of channels, from points that were measured.

Time may jump from one number of channels to the next, mostly along those that are written, which
runtimes compute in tiles. So a kernel is measured along them on a fine grid, for a few numbers of
those that are read: r(i, o). It is measured along those that are read on a fine grid, too, with all
written: q(i). Its time is r, interpolated along i, times q(i) by what q's own interpolation from
those few numbers gives.
"""

import dataclasses
import functools

import numpy as np

COARSE_SHARES = (
    0.0,
    0.3,
    1.0,
)  # of the channels that are read, for which there is a fine grid of those that are written
FINE_STEPS = (
    (128, 8),
    (512, 16),
)  # up to so many channels the fine grid has every 8th, 16th, ... and the next behind it
LARGE_STEP = 32


@dataclasses.dataclass(frozen=True)
class Curve:
    """Seconds of a kernel at some numbers of channels.

    Attributes:
        points: {numbers of channels, one for each dim: seconds}, those of points_of(sizes).
        sizes: the full numbers.
    """

    points: dict
    sizes: tuple

    def seconds(self, counts):
        """Returns the seconds at these numbers of channels, one for each dim, interpolated."""
        if not counts:
            return self.points[()]
        if len(counts) == 1:
            return float(np.interp(counts[0], *self._profile))
        few, rows, coarse = self._rows
        along = np.interp(counts[0], few, [np.interp(counts[1], *row) for row in rows])
        return float(
            along * np.interp(counts[0], *self._profile) / np.interp(counts[0], few, coarse)
        )

    @functools.cached_property
    def _profile(self):
        """(numbers, seconds) along the first dim, all channels of the second kept."""
        counts, rest = fine_counts(self.sizes[0]), self.sizes[1:]
        return counts, [self.points[count, *rest] for count in counts]

    @functools.cached_property
    def _rows(self):
        """(a few numbers of the first dim, for each (numbers, seconds) along the second, the
        seconds at its full size).
        """
        few, counts = coarse_counts(self.sizes[0]), fine_counts(self.sizes[1])
        return (
            few,
            [(counts, [self.points[first, count] for count in counts]) for first in few],
            [self.points[first, self.sizes[1]] for first in few],
        )

    def to_json(self):
        """Returns a dict for JSON; the seconds stand in the order of points_of(sizes)."""
        return {
            "sizes": list(self.sizes),
            "seconds": [self.points[point] for point in points_of(self.sizes)],
        }

    @classmethod
    def from_json(cls, value):
        """Returns the curve that to_json() turned into this dict.

        Raises:
            ValueError: it holds another number of points.
        """
        sizes = tuple(map(int, value["sizes"]))
        return cls(dict(zip(points_of(sizes), map(float, value["seconds"]), strict=True)), sizes)


def fine_counts(size):
    """Returns the numbers of channels, ascending, of a fine grid."""
    step = next((step for most, step in FINE_STEPS if size <= most), LARGE_STEP)
    counts = {1, 2, 4, size} | {
        count for base in range(step, size, step) for count in (base, base + 1)
    }
    return sorted(count for count in counts | set(coarse_counts(size)) if count <= size)


def coarse_counts(size):
    """Returns the few numbers of channels that are read, ascending."""
    return sorted({max(round(share * size), 1) for share in COARSE_SHARES})


def points_of(sizes):
    """Returns the list of the numbers of channels at which a kernel of these sizes is measured, the
    full size first.
    """
    points = [tuple(sizes)]
    if sizes:
        points += [(count, *sizes[1:]) for count in fine_counts(sizes[0])]
    if len(sizes) == 2:
        points += [
            (first, second) for first in coarse_counts(sizes[0]) for second in fine_counts(sizes[1])
        ]
    return list(dict.fromkeys(points))
