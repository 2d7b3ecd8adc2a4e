"""The time of a kernel as a function of its numbers of channels, interpolated from measurements.

Time may jump from one number of channels to the next, mostly for written channels, which runtimes
compute in tiles. So r(i, o) is measured for a few numbers i of channels read, on a fine grid of
numbers o of channels written; and q(i), with all channels written, on a fine grid of i. The time is
t(i, o) ≈ r̂(i, o)·q(i)/q̂(i), where r̂ and q̂ interpolate linearly between the few numbers i. Each
further number of channels, as within heads, has a fine grid with all other channels kept, and
multiplies the time by its share of the time at the full size.
"""

import dataclasses
import functools

import numpy as np

# Shares of the channels read for which there is a fine grid of the channels written.
COARSE_SHARES = (0.0, 0.3, 1.0)
# (size, step): up to this size the fine grid has every 8th, 16th, ... number and the next one.
FINE_STEPS = ((128, 8), (512, 16))
LARGE_STEP = 32


@dataclasses.dataclass(frozen=True)
class Curve:
    """Seconds of a kernel at some numbers of channels.

    Attributes:
        points: {numbers of channels, one per dim: seconds} at all points_of(sizes).
        sizes: full numbers of channels.
    """

    points: dict
    sizes: tuple

    def seconds(self, counts):
        """Returns the interpolated seconds at these numbers of channels, one per dim."""
        if not counts:
            return self.points[()]
        if len(counts) == 1:
            return float(np.interp(counts[0], *self._profile))
        few, rows, coarse = self._rows
        along = np.interp(counts[0], few, [np.interp(counts[1], *row) for row in rows])
        seconds = along * np.interp(counts[0], *self._profile) / np.interp(counts[0], few, coarse)
        for count, (numbers, shares) in zip(counts[2:], self._shares):
            seconds *= np.interp(count, numbers, shares)
        return float(seconds)

    @functools.cached_property
    def _shares(self):
        """(numbers, shares of the seconds at the full size) along each dim after the second."""
        shares = []
        for dim in range(2, len(self.sizes)):
            counts = fine_counts(self.sizes[dim])
            seconds = [self.points[_at(self.sizes, dim, count)] for count in counts]
            shares.append((counts, np.divide(seconds, self.points[self.sizes])))
        return shares

    @functools.cached_property
    def _profile(self):
        """(numbers, seconds) along the first dim, all channels of the second kept."""
        counts, rest = fine_counts(self.sizes[0]), self.sizes[1:]
        return counts, [self.points[count, *rest] for count in counts]

    @functools.cached_property
    def _rows(self):
        """(a few numbers of the first dim, (numbers, seconds) along the second for each, the
        seconds at its full size).
        """
        few, counts = coarse_counts(self.sizes[0]), fine_counts(self.sizes[1])
        return (
            few,
            [
                (counts, [self.points[first, count, *self.sizes[2:]] for count in counts])
                for first in few
            ],
            [self.points[first, *self.sizes[1:]] for first in few],
        )

    def to_json(self):
        """Returns a dict for JSON, with the seconds in the order of points_of(sizes)."""
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


def _at(sizes, dim, count):
    """Returns the sizes with this number of channels along one dim."""
    return (*sizes[:dim], count, *sizes[dim + 1 :])


def fine_counts(size):
    """Returns a fine grid of numbers of channels, ascending."""
    step = next((step for most, step in FINE_STEPS if size <= most), LARGE_STEP)
    counts = {1, 2, 4, size} | {
        count for base in range(step, size, step) for count in (base, base + 1)
    }
    return sorted(count for count in counts | set(coarse_counts(size)) if count <= size)


def coarse_counts(size):
    """Returns the few numbers of channels read, ascending."""
    return sorted({max(round(share * size), 1) for share in COARSE_SHARES})


def points_of(sizes):
    """Returns the list of the numbers of channels at which a kernel of these sizes is measured, the
    full size first.
    """
    points = [tuple(sizes)]
    if sizes:
        points += [(count, *sizes[1:]) for count in fine_counts(sizes[0])]
    if len(sizes) > 1:
        points += [
            (first, second, *sizes[2:])
            for first in coarse_counts(sizes[0])
            for second in fine_counts(sizes[1])
        ]
    for dim in range(2, len(sizes)):
        points += [_at(sizes, dim, count) for count in fine_counts(sizes[dim])]
    return list(dict.fromkeys(points))
