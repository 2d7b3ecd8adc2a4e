"""The result of a search: every interim sub-network and how it was found."""

import dataclasses
from typing import Any, Self

from ekg.errors import EkgError
from ekg.network.subnetwork import Subnetwork


@dataclasses.dataclass(frozen=True)
class HistoryEntry:
    """An interim sub-network and how it was found.

    Attributes:
        step: 0 for the whole network, then 1, 2, ...
        group: name of the group that was narrowed, or of the best of several; None at step 0.
        subnetwork: the Subnetwork.
        rate: its FLOPs divided by the whole network's.
        loss: its cross-entropy on D_val.
        accuracy: its accuracy on D_val, in [0, 1].
        reward: its reward when it was chosen.
        num_candidates: number of sub-networks that were compared.
        seconds: duration of the step.
        condition: condition number of its loss on D_val, if it was computed.
        spectrum: its landscape.hessian.Spectrum as a dict: both eigenvalues, residuals, products,
            parameters and mode.
        groups: names of the groups that were narrowed together, the best first; empty for a single
            group.
        costs: {name of a target: its record of the sub-network's cost}, of targets that measure;
            see Target.observe.
    """

    step: int
    group: str | None
    subnetwork: Subnetwork
    rate: float
    loss: float
    accuracy: float
    reward: float
    num_candidates: int
    seconds: float
    condition: float | None = None
    spectrum: dict | None = None
    groups: tuple[str, ...] = ()
    costs: dict | None = None

    @property
    def narrowed(self) -> tuple[str, ...]:
        """Names of all groups that the step narrowed, the best first."""
        return self.groups or (() if self.group is None else (self.group,))

    def to_json(self) -> dict[str, Any]:
        """Returns a dict for JSON: this entry with the kept channels by group name, and the order
        of the channels.
        """
        value = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("spectrum", "costs"):
            if value[name] is None:
                del value[name]
        groups = value.pop("groups")
        if groups:
            value["groups"] = list(groups)
        return value | value.pop("subnetwork").to_json()

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Returns the entry that to_json() turned into this dict."""
        values = {
            field.name: value.get(field.name)
            for field in dataclasses.fields(cls)
            if field.name != "subnetwork"
        }
        return cls(
            subnetwork=Subnetwork.from_json(value),
            **values | {"groups": tuple(value.get("groups", ()))},
        )


@dataclasses.dataclass(frozen=True, repr=False)
class SearchResult:
    """Result of a search: Θ*, and every interim sub-network from Θ₀ to Θ*."""

    subnetwork: Subnetwork
    history: tuple[HistoryEntry, ...]

    def __repr__(self) -> str:
        last = self.history[-1]
        return (
            f"SearchResult({last.rate:.1%} of the FLOPs, loss {self.history[0].loss:.4f} -> "
            f"{last.loss:.4f}, {last.step} steps)"
        )

    def at(self, rate: float) -> HistoryEntry:
        """Returns the first interim sub-network with at most this share of the FLOPs.

        It may keep less than a search of its own would, which ends just below its target; see
        ekg.front for several rates.

        Args:
            rate: share of the FLOPs, in (0, 1].

        Raises:
            EkgError: every interim sub-network has more.
        """
        if not 0 < rate <= 1:
            raise EkgError(f"`rate` must be in (0, 1]; received {rate}.")
        found = next((entry for entry in self.history if entry.rate <= rate), None)
        if found is None:
            raise EkgError(
                f"`rate` {rate:g}: the search ended at {self.history[-1].rate:.4f} of the FLOPs; "
                "search for a lower `target_rate`."
            )
        return found
