"""Latency as a target of a search: predicted at every step, measured near the end."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ekg.deploy.formats import runtime_named
from ekg.devices.team import Team
from ekg.errors import EkgError
from ekg.latency.prediction import Predictor
from ekg.latency.table import Table, conditions_of, load_table, save_table
from ekg.latency.timing import Conditions, Timing, measure_latency
from ekg.network.subnetwork import Subnetwork
from ekg.network.supernet import Supernet
from ekg.searching.history import HistoryEntry
from ekg.searching.targets import Target

logger = logging.getLogger(__name__)

# Shares of the way to the target after which a sub-network is measured.
MEASURED_AT = (0.25, 0.5, 0.75, 0.9)
NEAR = 0.02  # share of the unpruned latency: sub-networks this near to the target are measured
ROUNDS, SECONDS = 60, 8.0


@dataclasses.dataclass(frozen=True)
class Latency(Target):
    """Target for the time of a forward pass on this machine: Latency(ratio=0.6) or Latency(ms=4).

    The search uses a prediction from a table, measured first, of the times of the network's kernels
    at many numbers of channels. Each step narrows every group by as many channels as save r/G of
    the unpruned latency, for G groups, so that its candidates differ in what they lose and not in
    what they save (as in Yang et al. 2018, NetAdapt). On the way, and at every step near the
    target, whole sub-networks are measured beside the unpruned one, as ekg.export() writes them.
    These measurements correct the prediction, and the target is met in measured latency.

    Attributes:
        ratio: share of the unpruned network's latency, in (0, 1); or
        ms: milliseconds.
        runtime: "litert", "onnxruntime" or "tensorflow".
        batch: number of examples in a pass.
        threads: threads of a pass; None means one, and in TensorFlow all threads of the process.
        table: file of latency tables to read and extend, so that several runs measure once; without
            it each run measures.

    Raises:
        EkgError: not exactly one of `ratio` and `ms` is given, or a value is out of range.
    """

    ratio: float | None = None
    ms: float | None = None
    runtime: str = "litert"
    batch: int = 1
    threads: int | None = None
    table: str | Path | None = dataclasses.field(default=None, repr=False)
    name = "latency"
    may_rise = True

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.ms is None):
            raise EkgError(
                "`target` latency: give either `ratio`, a share of the unpruned latency, or `ms`."
            )
        for name, low, high in (("ratio", 0, 1), ("ms", 0, float("inf"))):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and low < value < high):
                raise EkgError(
                    f"`{name}` of the latency must be above "
                    f"0{' and below 1' * (name == 'ratio')}; received {value!r}."
                )
        runtime_named(self.runtime)
        for name in ("batch", "threads"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value > 0 or name == "threads" and value is None):
                raise EkgError(
                    f"`{name}` of the latency must be a positive whole number; received {value!r}."
                )

    @property
    def conditions(self) -> Conditions:
        """The timing.Conditions."""
        return Conditions(self.runtime, self.batch, self.threads)

    def share_of(self, milliseconds: float) -> float:
        """Returns the target as a share of the unpruned network's latency, which is given."""
        return self.ratio if self.ratio is not None else cast(float, self.ms) / milliseconds

    def measure(self, supernet: Supernet, subnetworks: Sequence[Subnetwork]) -> list[Timing]:
        """Returns a list of timing.Timing of Subnetworks, measured in turn; ratios are to the
        first.
        """
        networks = {
            number: supernet.cut(subnetwork) for number, subnetwork in enumerate(subnetworks)
        }
        threads = self.conditions.num_threads
        return list(
            measure_latency(
                networks,
                self.runtime,
                self.batch,
                threads,
                supernet.graph.input_shapes,
                ROUNDS,
                SECONDS,
            ).values()
        )

    def describe(self) -> str:
        asked = f"{self.ratio:g} of the latency" if self.ms is None else f"{self.ms:g} ms"
        return f"{asked} ({self.conditions})"

    def cost(self, supernet: Supernet, subnetwork: Subnetwork) -> float:
        raise EkgError(
            "`target` latency: prepare() measures what the cost is predicted from; ask the "
            "target that it returns."
        )

    def check(self, supernet: Supernet) -> None:
        """Raises EkgError if the runtime is not installed; prepare() measures whether the target
        can be reached.
        """
        runtime_named(self.runtime).versions()

    def _check_reachable(self, supernet: Supernet) -> None:
        """Measures the unpruned network and the smallest sub-network, and refuses targets below the
        latter.
        """
        whole, smallest = self.measure(supernet, [supernet.whole(), supernet.smallest()])
        most = self.share_of(whole.milliseconds)
        asked = (
            f"`target` latency {self.ratio:g}"
            if self.ms is None
            else f"`target` latency {self.ms:g} ms"
        )
        if most >= 1:
            raise EkgError(
                f"{asked}: the unpruned network takes {whole.milliseconds:.3g} ms already "
                f"({self.conditions}); ask for less."
            )
        if smallest.ratio > most:
            raise EkgError(
                f"{asked} cannot be reached: the smallest sub-network of {supernet.model.name} "
                f"takes {smallest.milliseconds:.3g} ms, {smallest.ratio:.3f} of "
                f"{whole.milliseconds:.3g} ms ({self.conditions})."
            )

    def prepare(self, supernet: Supernet, team: Team, path: Path | None = None) -> Target:
        """Returns the LatencySearch, after measuring what its table lacks.

        Raises:
            EkgError: the smallest sub-network takes longer, or the runtime lacks an operator.
        """
        return LatencySearch(
            self,
            supernet,
            team,
            Table.from_json(team.from_chief(lambda: self._measure(supernet, path))),
        )

    def _measure(self, supernet: Supernet, path: Path | None) -> dict[str, Any]:
        """Returns the table for a supernet as a dict for JSON, and saves it in both files."""
        self._check_reachable(supernet)
        runtime = runtime_named(self.runtime)
        conditions = conditions_of(runtime, self.batch, self.conditions.num_threads)
        paths = [Path(file) for file in (path, self.table) if file is not None]
        table = load_table(next((file for file in paths if file.exists()), None), conditions)
        Predictor(supernet, table).measure_(runtime)
        for file in paths:
            save_table(file, table)
        return table.to_json()


class LatencySearch(Target):
    """A Latency during a search: predicts the cost of sub-networks, and corrects itself by measured
    ones.
    """

    name, may_rise = "latency", True

    def __init__(self, latency: Latency, supernet: Supernet, team: Team, table: Table) -> None:
        self._latency, self._team = latency, team
        self._predictor = Predictor(supernet, table)
        # Nothing is missing: this only loads the calibration.
        self._predictor.measure_(runtime_named(latency.runtime))
        self._whole = self._predictor.seconds(supernet.whole())
        self._correction, self._furthest = 1.0, 0.0
        self.most = latency.share_of(1000 * self._whole)

    def cost(self, supernet: Supernet, subnetwork: Subnetwork) -> float:
        return self._correction * self._predictor.seconds(subnetwork) / self._whole

    def next_count(
        self, supernet: Supernet, present: Subnetwork, group: int, by_width: int, search_step: float
    ) -> int | None:
        """Returns the most channels that save r/G of the unpruned latency; None if none do."""
        enough = self._predictor.seconds(present) - search_step / len(supernet.groups) * self._whole
        by_count = self._predictor.seconds_by_count(present, group)
        return next((count for count, seconds in by_count.items() if seconds <= enough), None)

    def observe(self, supernet: Supernet, subnetwork: Subnetwork) -> dict[str, Any]:
        """Predicts the latency; on the way and near the target it also measures, beside the
        unpruned network.
        """
        predicted, way = self.cost(supernet, subnetwork), self.way(supernet, subnetwork)
        value = {"predicted": predicted, "conditions": str(self._latency.conditions)}
        passed = any(self._furthest < mark <= way for mark in MEASURED_AT)
        self._furthest = max(self._furthest, way)
        if passed or predicted <= self.most + NEAR:
            measured = self._team.from_chief(
                lambda: dataclasses.asdict(self._measured(supernet, subnetwork))
            )
            value["measured"] = measured
            self._correct(supernet, subnetwork, measured)
            logger.info(
                "latency %.3g ms, %.4f of the unpruned network's (%.4f was predicted)",
                measured["milliseconds"],
                measured["ratio"],
                predicted,
            )
        return {"latency": value}

    def recall(self, supernet: Supernet, entry: HistoryEntry) -> None:
        value = (entry.costs or {}).get("latency")
        if value is not None:
            self._furthest = max(self._furthest, self.way(supernet, entry.subnetwork))
            if "measured" in value:
                self._correct(supernet, entry.subnetwork, value["measured"])

    def _measured(self, supernet: Supernet, subnetwork: Subnetwork) -> Timing:
        return self._latency.measure(supernet, [supernet.whole(), subnetwork])[1]

    def _correct(
        self, supernet: Supernet, subnetwork: Subnetwork, measured: dict[str, Any]
    ) -> None:
        """Corrects predictions so that this sub-network's equals its measurement."""
        ratio = (
            measured["ratio"]
            if self._latency.ms is None
            else measured["milliseconds"] / (1000 * self._whole)
        )
        self._correction = ratio * self._whole / self._predictor.seconds(subnetwork)
