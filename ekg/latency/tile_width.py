"""Finds the tile width of a runtime: the multiples of channels at which time jumps."""

import numpy as np

from ekg.latency import kernels as parts
from ekg.latency.timing import time_in_turn

CANDIDATES = (32, 16, 8, 4, 2)
MOST_CHANNELS = 64  # that are timed; tiles are narrower
KERNELS = 3  # of different kinds, those with the most multiply-accumulates
FREE = 0.03  # share of the time that rounding up may cost, at most
ROUNDS, SECONDS, WARMUP = 25, 3.0, 0.01


def find_multiple(supernet, runtime, batch=1, threads=None):
    """Returns the largest of 1, 2, 4, ..., 32 to whose multiples written channels can be rounded up
    at no cost.

    The network's own largest kernels are timed at every number of written channels up to 64.

    Args:
        supernet: the Supernet.
        runtime: format.Format of a runtime.
        batch: number of examples in a pass.
        threads: threads of a pass.
    """
    curves = [_times(supernet, kernel, runtime, batch, threads) for kernel in _largest(supernet)]
    return next(
        (
            multiple
            for multiple in CANDIDATES
            if curves and all(_cost_of_rounding(times, multiple) <= FREE for times in curves)
        ),
        1,
    )


def _largest(supernet):
    """Returns the Kernels with the most multiply-accumulates, one per kind, whose written channels
    can be pruned.
    """
    found = {}
    for kernel in parts.find_kernels(supernet.graph, supernet.layout):
        work = (
            np.prod([size for size in supernet.graph.shapes[kernel.calls[-1].output] if size])
            * kernel.sizes[0]
            if (len(kernel.dims) == 2 and kernel.sizes[1] > 1)
            else 0
        )
        if work > found.get(kernel.kind, (0, None))[0]:
            found[kernel.kind] = work, kernel
    return [kernel for _, kernel in sorted(found.values(), key=lambda entry: -entry[0])[:KERNELS]]


def _times(supernet, kernel, runtime, batch, threads):
    """Returns the seconds of a kernel that writes 1, 2, 3, ... channels."""
    counts = range(1, min(kernel.sizes[1], MOST_CHANNELS) + 1)
    passes = [
        runtime.timed_part(
            parts.part(supernet.graph, supernet.layout, kernel, (kernel.sizes[0], count)),
            batch,
            threads,
        )
        for count in counts
    ]
    return np.median(time_in_turn(passes, ROUNDS, SECONDS, WARMUP), axis=0)


def _cost_of_rounding(times, multiple):
    """Returns the mean cost of rounding written channels up to a multiple, as a share of the time.

    Numbers whose next multiple was not timed count with the last timed one.
    """
    counts = np.arange(1, len(times) + 1)
    rounded = np.minimum(-(-counts // multiple) * multiple, len(times))
    return float(np.mean(np.maximum(times[rounded - 1] / times, 1.0)) - 1)
