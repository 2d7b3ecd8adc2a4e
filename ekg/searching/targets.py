"""Targets of a search: the cost of a sub-network, and whether it is low enough."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ekg.devices.team import Team
from ekg.errors import EkgError
from ekg.graph.complexity import Complexity
from ekg.network.subnetwork import Subnetwork
from ekg.network.supernet import Supernet
from ekg.searching.history import HistoryEntry

ROUNDING = 1e-9  # of a sum of shares


def may_vanish(supernet: Supernet) -> bool:
    """Returns whether a channel group may lose all its channels."""
    return any(group.counts[0] == 0 for group in supernet.groups)


class Target:
    """Limit to the cost of a sub-network. Your own target is a subclass with cost().

    Attributes:
        most: the cost that a sub-network may have, as a share of the unpruned network's.
        name: what to call the cost in messages.
        may_rise: whether the cost may rise when a channel is removed, as a time may.
    """

    name = "cost"
    most = 1.0
    may_rise = False

    def cost(self, supernet: Supernet, subnetwork: Subnetwork) -> float:
        """Returns the cost of a Subnetwork as a share of the unpruned network's."""
        raise NotImplementedError

    def prepare(self, supernet: Supernet, team: Team, path: Path | None = None) -> "Target":
        """Returns the Target that a search uses, after measuring what it needs; each search calls
        it once.

        Args:
            supernet: the Supernet that is searched.
            team: Team of the search. Where processes could see different costs, the chief's counts.
            path: file that may keep measurements for a resumed search; or None.
        """
        return self

    def next_count(
        self, supernet: Supernet, present: Subnetwork, group: int, by_width: int, search_step: float
    ) -> int | None:
        """Returns the channel count of a group after one step, or None if the saving is too small.

        If no group saves enough, the search tries smaller steps, and finally steps of the width.

        Args:
            supernet: the Supernet.
            present: the present Subnetwork.
            group: position of the group.
            by_width: the number that one step of the width leaves.
            search_step: r.
        """
        return by_width

    def observe(self, supernet: Supernet, subnetwork: Subnetwork) -> dict[str, Any]:
        """Returns the record of an interim Subnetwork's cost for the history, {name: dict for
        JSON}; it may measure.
        """
        return {}

    def recall(self, supernet: Supernet, entry: HistoryEntry) -> None:
        """Restores what observe() found in an earlier part of the search, from each HistoryEntry in
        turn.
        """

    def is_reached(self, supernet: Supernet, subnetwork: Subnetwork) -> bool:
        """Returns whether a Subnetwork reaches the target."""
        return self.cost(supernet, subnetwork) <= self.most

    def is_passed(self, supernet: Supernet, subnetwork: Subnetwork) -> bool:
        """Returns whether a Subnetwork costs less than the target."""
        return self.cost(supernet, subnetwork) < self.most

    def could_pass(
        self,
        supernet: Supernet,
        present: Subnetwork,
        candidates: Sequence[Subnetwork],
        num_together: int,
    ) -> bool:
        """Returns whether narrowing several groups together could bring a Subnetwork below this.

        It may be True where no such choice exists: the savings of the groups are added up, and what
        two groups save together is at most that.

        Args:
            supernet: the Supernet.
            present: the present Subnetwork.
            candidates: Subnetworks, each with one other group narrowed.
            num_together: how many of these groups may be narrowed in one step.
        """
        if num_together > 1 and may_vanish(supernet):
            return True  # what two groups share may go with both
        cost = self.cost(supernet, present)
        savings = sorted(cost - self.cost(supernet, candidate) for candidate in candidates)
        return cost - sum(savings[-num_together:]) <= self.most + ROUNDING

    def is_far(
        self, supernet: Supernet, present: Subnetwork, most_removed: np.ndarray, num_together: int
    ) -> bool:
        """Returns whether it is certain, at a lower cost, that could_pass() is False.

        Args:
            supernet: the Supernet.
            present: the present Subnetwork.
            most_removed: upper limit of the channels that a step takes from each group, int array.
            num_together: how many groups may be narrowed in one step.
        """
        return False

    def way(self, supernet: Supernet, subnetwork: Subnetwork) -> float:
        """Returns the progress from the unpruned network to the target, in [0, 1]."""
        if self.most >= 1:
            return 1.0
        return min(max((1 - self.cost(supernet, subnetwork)) / (1 - self.most), 0.0), 1.0)

    def describe(self) -> str:
        """Returns the target in words, or an empty text if everything may stay."""
        return f"{self.most:g} of the {self.name}" if self.most < 1 else ""

    def check(self, supernet: Supernet) -> None:
        """Raises EkgError if even the smallest sub-network costs more."""
        least = self.cost(supernet, supernet.smallest())
        if least > self.most:
            raise EkgError(
                f"`target` {self.most:g} of the {self.name} cannot be reached: the smallest "
                f"sub-network of {supernet.model.name} still has {least:.4f}."
            )


@dataclasses.dataclass(frozen=True)
class Share(Target):
    """A share of what the unpruned network costs, in (0, 1].

    Attributes:
        argument: name of the argument that asks for it, for errors.
    """

    most: float
    argument = "target"

    def cost_of(self, complexity: Complexity) -> Any:
        """Returns the part of a Complexity that is limited."""
        raise NotImplementedError

    def cost(self, supernet: Supernet, subnetwork: Subnetwork) -> float:
        whole = self.cost_of(supernet.whole_complexity)
        return self.cost_of(supernet.complexity(subnetwork)) / whole

    def is_far(
        self, supernet: Supernet, present: Subnetwork, most_removed: np.ndarray, num_together: int
    ) -> bool:
        if may_vanish(supernet):
            return False  # with its last channel a group saves more than its channels
        whole = self.cost_of(supernet.whole_complexity)
        by_channel = self.cost_of(supernet.table.most_saved(supernet.mask(present))) / whole
        most = np.maximum.reduceat(by_channel, supernet.layout.offsets) * most_removed
        step = np.sort(most)[-num_together:].sum()
        return self.cost(supernet, present) - step > self.most + ROUNDING

    def check(self, supernet: Supernet) -> None:
        least = self.cost(supernet, supernet.smallest())
        if least > self.most:
            few = "one channel in every group"
            few = f"{few} that cannot vanish" if may_vanish(supernet) else few
            raise EkgError(
                f"`{self.argument}` {self.most:g} cannot be reached: {few} still leaves "
                f"{least:.4f} of the {self.name} of {supernet.model.name}."
            )


class Flops(Share):
    """A share of the FLOPs, in (0, 1]."""

    name, argument = "FLOPs", "target_rate"

    def cost_of(self, complexity: Complexity) -> Any:
        return complexity.flops


class Params(Share):
    """A share of the parameters, in (0, 1]."""

    name, argument = "parameters", "target_params"

    def cost_of(self, complexity: Complexity) -> Any:
        return complexity.params


@dataclasses.dataclass(frozen=True)
class Every(Target):
    """Several targets, all of which must be reached."""

    parts: tuple[Target, ...]

    @property
    def may_rise(self) -> bool:  # type: ignore[override]
        return any(part.may_rise for part in self.parts)

    def prepare(self, supernet: Supernet, team: Team, path: Path | None = None) -> "Target":
        return Every(tuple(part.prepare(supernet, team, path) for part in self.parts))

    def next_count(
        self, supernet: Supernet, present: Subnetwork, group: int, by_width: int, search_step: float
    ) -> int | None:
        """Returns the lowest channel count among the targets that are not reached yet."""
        counts = [
            part.next_count(supernet, present, group, by_width, search_step)
            for part in self.parts
            if not part.is_reached(supernet, present)
        ]
        return min((count for count in counts if count is not None), default=None)

    def observe(self, supernet: Supernet, subnetwork: Subnetwork) -> dict[str, Any]:
        return {
            name: value
            for part in self.parts
            for name, value in part.observe(supernet, subnetwork).items()
        }

    def recall(self, supernet: Supernet, entry: HistoryEntry) -> None:
        for part in self.parts:
            part.recall(supernet, entry)

    def is_reached(self, supernet: Supernet, subnetwork: Subnetwork) -> bool:
        return all(part.is_reached(supernet, subnetwork) for part in self.parts)

    def is_passed(self, supernet: Supernet, subnetwork: Subnetwork) -> bool:
        return all(part.is_passed(supernet, subnetwork) for part in self.parts)

    def could_pass(
        self,
        supernet: Supernet,
        present: Subnetwork,
        candidates: Sequence[Subnetwork],
        num_together: int,
    ) -> bool:
        return all(
            part.could_pass(supernet, present, candidates, num_together) for part in self.parts
        )

    def is_far(
        self, supernet: Supernet, present: Subnetwork, most_removed: np.ndarray, num_together: int
    ) -> bool:
        return any(
            part.is_far(supernet, present, most_removed, num_together) for part in self.parts
        )

    def describe(self) -> str:
        return " and ".join(filter(None, (part.describe() for part in self.parts)))

    def way(self, supernet: Supernet, subnetwork: Subnetwork) -> float:
        return min(part.way(supernet, subnetwork) for part in self.parts)

    def check(self, supernet: Supernet) -> None:
        for part in self.parts:
            part.check(supernet)


def read_targets(target):
    """Returns {name of a search setting: value} for the `target` of a user.

    Args:
        target: {"flops": share, "params": share} with any of these, and Targets of the user's own
            under any other name; or a Target.

    Raises:
        EkgError: it is neither.
    """
    given = {"own": target} if isinstance(target, Target) else target
    if not isinstance(given, dict) or not given:
        raise EkgError(
            '`target` must be a dict, as {"flops": 0.5, "params": 0.5}, or an ekg.Target; '
            f"received {target!r}."
        )
    own = [(name, value) for name, value in given.items() if name not in ("flops", "params")]
    for name, value in own:
        if not isinstance(value, Target):
            raise EkgError(
                f'`target` {name!r}: there are "flops" and "params", and objects of ekg.Target; '
                f"received "
                f"{value!r}."
            )
    parts = tuple(value for _, value in own)
    settings = {"target_rate": given.get("flops", 1.0), "target_params": given.get("params")}
    return settings | ({"target": parts[0] if len(parts) == 1 else Every(parts)} if parts else {})
