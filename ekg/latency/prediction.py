"""Predicts the latency of sub-networks from a table of kernels and a few whole networks."""

import functools
import hashlib
import json

import numpy as np

from ekg.latency import kernels as parts
from ekg.latency.timing import time_in_turn

CALIBRATION_WIDTHS = (1.0, 0.6, 0.3)  # of the whole networks that are measured
ROUNDS, SECONDS = 60, 8.0


class Predictor:
    """Predicts the latency of the sub-networks of a supernet: a·Σ(times of its kernels) + b.

    a and b are fitted to whole networks of a few widths, so that they include effects that kernels
    alone do not show: caches filled by other kernels, and the cost of a pass besides its kernels.

    Attributes:
        supernet: the Supernet.
        table: table.Table that has a curve for every kernel.
        kernels: list of kernels.Kernel.
    """

    def __init__(self, supernet, table):
        self.supernet, self.table = supernet, table
        self.kernels = parts.find_kernels(supernet.graph, supernet.layout)
        self._factor, self._offset = 1.0, 0.0

    @functools.cached_property
    def fingerprint(self):
        """Hash of the kernels, which differs between networks."""
        value = [(kernel.kind, kernel.sizes) for kernel in self.kernels]
        return hashlib.sha256(json.dumps(value).encode()).hexdigest()

    def measure_(self, runtime):
        """Measures what the table lacks: kernels, and the whole networks that it is fitted to."""
        self.table.measure_(self.supernet, self.kernels, runtime)
        if self.fingerprint not in self.table.calibrations:
            self.table.calibrations[self.fingerprint] = self._calibrate(runtime)
        self._factor, self._offset = self.table.calibrations[self.fingerprint]

    def _calibrate(self, runtime):
        """Returns [a, b] that fit the whole networks best, by least squares of the relative
        errors.
        """
        conditions, whole = self.table.conditions, self.supernet.whole()
        networks = list(
            dict.fromkeys(
                whole.with_widths(dict.fromkeys(whole.names, width)) for width in CALIBRATION_WIDTHS
            )
        )
        passes = [
            runtime.timed(
                self.supernet.cut(network),
                conditions["batch"],
                conditions["threads"],
                self.supernet.graph.input_shapes,
            )
            for network in networks
        ]
        measured = np.median(time_in_turn(passes, ROUNDS, SECONDS), axis=0)
        sums = np.array([self._sum(network) for network in networks])
        if np.ptp(sums) < 0.1 * sums.max():  # a and b cannot be distinguished
            return [float(np.mean(measured / sums)), 0.0]
        design = np.stack([sums / measured, 1 / measured], axis=1)
        return list(map(float, np.linalg.lstsq(design, np.ones(len(networks)), rcond=None)[0]))

    def seconds(self, subnetwork):
        """Returns the seconds of one forward pass of a Subnetwork."""
        return self._factor * self._sum(subnetwork) + self._offset

    def seconds_by_count(self, subnetwork, group):
        """Returns {number of channels: seconds} of a Subnetwork with fewer channels of the group at
        this position.

        The numbers are the allowed ones below the present number, the largest first.
        """
        channels = self.supernet.layout.channels(group)
        touched = [kernel for kernel, groups in zip(self.kernels, self._groups) if group in groups]
        mask = self.supernet.mask(subnetwork) > 0
        rest = self.seconds(subnetwork) - self._factor * self._sum_of(touched, mask)
        result, order = {}, np.array(subnetwork.order[group])
        counts = [
            count
            for count in self.supernet.groups[group].counts
            if count < subnetwork.num_kept(group)
        ]
        for count in reversed(counts):
            mask[channels] = False
            mask[channels.start + order[:count]] = True
            if count:
                result[count] = rest + self._factor * self._sum_of(touched, mask)
            else:  # kernels of other groups go, too
                result[count] = self._factor * self._sum_of(self.kernels, mask) + self._offset
        return result

    @functools.cached_property
    def _groups(self):
        """Positions of the groups whose channels each kernel reads or writes."""
        ends = np.cumsum([group.size for group in self.supernet.groups])
        return [
            set(np.searchsorted(ends, np.concatenate(kernel.dims), side="right").tolist())
            if kernel.dims
            else set()
            for kernel in self.kernels
        ]

    def _sum(self, subnetwork):
        return self._sum_of(self.kernels, self.supernet.mask(subnetwork) > 0)

    def _sum_of(self, kernels, mask):
        removed = self.supernet.removed(mask)
        if removed is not None:  # what is left of a branch costs next to nothing
            gone = removed.gone | removed.constants
            kernels = [kernel for kernel in kernels if kernel.calls[0] not in gone]
        return sum(self._kernel_seconds(kernel, kernel.counts(mask)) for kernel in kernels)

    @functools.lru_cache(maxsize=2**16)  # noqa: B019  a predictor lives as long as its search
    def _kernel_seconds(self, kernel, counts):
        return self.table.curve(kernel).seconds(counts)
