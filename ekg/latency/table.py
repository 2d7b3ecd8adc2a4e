"""A table of the times of kernels, measured on this machine and kept in a file."""

import logging
from pathlib import Path

import keras
import numpy as np

from ekg.devices import kind
from ekg.errors import EkgError
from ekg.io import files
from ekg.latency import kernels as parts
from ekg.latency.curves import Curve, points_of
from ekg.latency.timing import time_in_turn
from ekg.process.progress import progress_bar

logger = logging.getLogger(__name__)

VERSION = 1
# kernels that are measured in turn, so that each finds the caches as in a network: filled by others
TOGETHER = 12
ROUNDS, SECONDS, WARMUP = 15, 1.5, 0.005


class Table:
    """Seconds of kernels, measured for one runtime, batch and number of threads on one machine.

    Attributes:
        conditions: {name: value} under which it was measured; see conditions_of.
        curves: {kind of a kernel: {its sizes: Curve}}.
        calibrations: {fingerprint of a network: list of numbers}; see prediction.Predictor.
    """

    def __init__(self, conditions):
        self.conditions, self.curves, self.calibrations = conditions, {}, {}

    def curve(self, kernel):
        """Returns the Curve of this kind of Kernel with at least as many channels, or None."""
        known = self.curves.get(kernel.kind, {})
        fitting = [sizes for sizes in known if _covers(sizes, kernel.sizes)]
        return known[min(fitting)] if fitting else None

    def missing(self, kernels):
        """Returns the Kernels to measure so that all of these have a curve."""
        wanted = {}
        for kernel in sorted(kernels, key=lambda kernel: kernel.sizes, reverse=True):
            others = wanted.setdefault(kernel.kind, [])
            if self.curve(kernel) is None and not any(
                _covers(other.sizes, kernel.sizes) for other in others
            ):
                others.append(kernel)
        return [kernel for others in wanted.values() for kernel in others]

    def measure_(self, supernet, kernels, runtime):
        """Measures the Kernels of a supernet that are missing, in the runtime of a Format."""
        missing = self.missing(kernels)
        points = [(kernel, counts) for kernel in missing for counts in points_of(kernel.sizes)]
        times = {}
        for (kernel, counts), seconds in zip(
            points, self._measure_points(supernet, points, runtime)
        ):
            times.setdefault(kernel, {})[counts] = seconds
        for kernel in missing:
            self.curves.setdefault(kernel.kind, {})[kernel.sizes] = Curve(
                times[kernel], kernel.sizes
            )

    def _measure_points(self, supernet, points, runtime):
        """Returns the seconds of every (Kernel, counts), without the overhead of a call of the
        runtime.

        A yardstick in every round cancels changes of the machine's speed.
        """

        def load(model):
            return runtime.timed_part(model, self.conditions["batch"], self.conditions["threads"])

        if not points:
            return []
        graph, layout = supernet.graph, supernet.layout
        idle = load(_do_nothing())
        yardstick = load(parts.part(graph, layout, points[0][0], points[0][1]))
        result, first = [], None
        with progress_bar(f"latency table, {runtime.runtime}", len(points), "kernel") as progress:
            for begin in range(0, len(points), TOGETHER):
                passes = [
                    load(parts.part(graph, layout, *point))
                    for point in points[begin : begin + TOGETHER]
                ]
                samples = time_in_turn(
                    [yardstick, idle, *passes], ROUNDS, SECONDS, WARMUP, own_caches=False
                )
                medians = np.median(samples, axis=0)
                base, nothing, times = medians[0], medians[1], medians[2:]
                first = first or base
                result += [max(float(time - nothing), 1e-9) * first / base for time in times]
                progress.update(len(passes))
        return result

    def to_json(self):
        """Returns a dict for JSON."""
        kernels = [
            {"kind": kind, **curve.to_json()}
            for kind, curves in self.curves.items()
            for curve in curves.values()
        ]
        return {
            "conditions": self.conditions,
            "kernels": kernels,
            "calibrations": self.calibrations,
        }

    @classmethod
    def from_json(cls, value):
        """Returns the table that to_json() turned into this dict."""
        table = cls(value["conditions"])
        table.calibrations.update(value["calibrations"])
        for entry in value["kernels"]:
            curve = Curve.from_json(entry)
            table.curves.setdefault(str(entry["kind"]), {})[curve.sizes] = curve
        return table


def _covers(sizes, others):
    return all(size >= other for size, other in zip(sizes, others))


def _do_nothing():
    """Returns a network that does almost nothing."""
    entry = keras.Input((1, 1, 1))
    return keras.Model(entry, keras.layers.ReLU()(entry))


def conditions_of(runtime, batch, threads):
    """Returns the conditions on which the times of a table depend, {name: value} for JSON."""
    return {
        "runtime": runtime.runtime,
        "batch": batch,
        "threads": threads,
        "versions": runtime.versions(),
        "machine": kind.machine(),
    }


# ------------------------------------------ files: the tables of several machines and runtimes


def load_table(path, conditions):
    """Returns the Table of these conditions in a file, or an empty one if the file has none.

    Args:
        path: path of the file; None, or a missing file, gives an empty table.
        conditions: see conditions_of.

    Raises:
        EkgError: the file is damaged, or does not hold latency tables.
    """
    tables = [] if path is None or not Path(path).exists() else _read_tables(path)
    for table in tables:
        if table.conditions == conditions:
            return table
    same = [
        table.conditions for table in tables if table.conditions["runtime"] == conditions["runtime"]
    ]
    if same:
        differing = [
            f"{name} {same[-1].get(name)} there, {value} here"
            for name, value in conditions.items()
            if same[-1].get(name) != value
        ]
        logger.warning(
            "%s: measured under other conditions (%s); measured again, and added to the file.",
            path,
            "; ".join(differing),
        )
    return Table(conditions)


def save_table(path, table):
    """Writes a table into a file, beside its tables of other conditions."""
    others = [
        other
        for other in (_read_tables(path) if Path(path).exists() else [])
        if other.conditions != table.conditions
    ]
    files.write_json(
        path, {"version": VERSION, "tables": [other.to_json() for other in (*others, table)]}
    )


def _read_tables(path):
    try:
        value = files.read_json(path)
    except OSError as error:
        raise EkgError(f"{path}: cannot be read ({error.strerror}).") from None
    if value.get("version", VERSION) != VERSION:
        shown = ascii(value["version"])[:20]
        raise EkgError(
            f"{path}: latency tables of version {shown}, and this program knows {VERSION}; name "
            "another file."
        )
    try:
        tables = [Table.from_json(entry) for entry in value["tables"]]
        if all(isinstance(table.conditions["runtime"], str) for table in tables):
            return tables
        raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise EkgError(f"{path}: does not hold latency tables; name another file.") from None
