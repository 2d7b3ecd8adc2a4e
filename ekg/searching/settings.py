"""The settings of the search and of the epoch before it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from ekg.deploy.formats import RUNTIMES
from ekg.errors import EkgError
from ekg.searching.criteria import CRITERIA
from ekg.searching.latency import Latency
from ekg.searching.objective import SEARCH_TEACHERS
from ekg.searching.proposals import GROUP_CHOICES
from ekg.searching.targets import Every, Flops, Params, Target
from ekg.settings import (
    COUNT,
    INNER_SHARE,
    MACHINE,
    POSITIVE,
    SEARCH,
    SHARE,
    Rule,
    Settings,
    setting,
)

REWARDS = ("ensemble", "condition_number")
SUBSET_PER_CLASS = 256


@dataclasses.dataclass(frozen=True)
class SubsetSettings(Settings):
    """How the epoch before the search, step 0, goes."""

    subset_per_class: int | None = setting(
        SUBSET_PER_CLASS,
        "training images of each class, its first ones, for the epoch before the search; None: "
        f"{SUBSET_PER_CLASS}, or what the smallest class has",
        SEARCH,
        range=COUNT,
        may_be_none=True,
    )
    subset_learning_rate: float = setting(
        1e-3, "learning rate of the epoch before the search", SEARCH, range=POSITIVE
    )


@dataclasses.dataclass(frozen=True)
class SearchSettings(Settings):
    """How the greedy search goes."""

    target_rate: float = setting(0.45, "share of the FLOPs to keep, in (0, 1]", SEARCH, range=SHARE)
    search_step: float = setting(
        0.2, "width a search step takes from a channel group, r", SEARCH, range=SHARE
    )
    groups_per_step: int = setting(
        1,
        "channel groups that a search step narrows together, the best ones; the method takes 1",
        SEARCH,
        range=COUNT,
        works_if=Rule(
            "reward", ("ensemble",), "the `reward` condition_number compares groups one by one"
        ),
    )
    group_choice: str = setting(
        "intended",
        "groups that a search step tries: those where the removed channels matter little, as the "
        "method intends, or those that the published program takes",
        SEARCH,
        choices=GROUP_CHOICES,
    )
    search_batch_size: int = setting(
        256,
        "images that share batch statistics, at most; batch of the epoch before the search",
        SEARCH,
        range=COUNT,
    )
    search_teacher: str = setting(
        "ensemble", "whose knowledge the reward holds", SEARCH, choices=SEARCH_TEACHERS
    )
    criterion: str | Callable = setting(
        "ekg", "what ranks the channels of a group", SEARCH, choices=tuple(CRITERIA)
    )
    reward: str = setting(
        "ensemble",
        "what decides between candidates: loss and knowledge, or the smoothness of the loss of "
        "the best ones",
        SEARCH,
        choices=REWARDS,
    )
    shortlist: int = setting(
        3,
        "candidates that the reward condition_number compares",
        SEARCH,
        range=COUNT,
        works_if=Rule("reward", ("condition_number",), "`reward` is not condition_number"),
    )
    log_condition: bool = setting(
        False, "keep the condition number of every interim sub-network in the history", SEARCH
    )
    val_per_class: int = setting(
        32,
        "training images of each class, its last ones, that the search evaluates on",
        SEARCH,
        range=COUNT,
    )
    target_params: float | None = setting(
        None,
        "share of the parameters to keep, besides that of the FLOPs where that is below 1",
        SEARCH,
        range=SHARE,
        may_be_none=True,
    )

    def targets(self, own: Target | None = None) -> Target:
        """Returns the Target of the search.

        Args:
            own: a Target of the user's own besides FLOPs and parameters, or None.
        """
        further: list[Target] = [] if self.target_params is None else [Params(self.target_params)]
        further += [] if own is None else [own]
        return Every((Flops(self.target_rate), *further)) if further else Flops(self.target_rate)


@dataclasses.dataclass(frozen=True)
class FrontSettings(Settings):
    """Several targets from one search."""

    target_rates: tuple[float, ...] | None = setting(
        None,
        "several shares of the FLOPs to keep, in place of target_rate; the searches share their "
        "first steps, and train_path gets one run folder per share",
        MACHINE,
        range=INNER_SHARE,
        may_be_none=True,
    )


@dataclasses.dataclass(frozen=True)
class LatencySettings(Settings):
    """Which latency is aimed at."""

    target_latency: float | None = setting(
        None,
        "share of the unpruned network's latency to keep",
        SEARCH,
        range=INNER_SHARE,
        may_be_none=True,
    )
    target_ms: float | None = setting(
        None,
        "milliseconds that a forward pass may take, in place of a share",
        SEARCH,
        range=POSITIVE,
        may_be_none=True,
    )
    latency_runtime: str | None = setting(
        None,
        "runtime whose latency is aimed at; without it litert",
        SEARCH,
        choices=tuple(RUNTIMES),
        may_be_none=True,
    )
    latency_batch: int | None = setting(
        None, "examples in a pass; without it 1", SEARCH, range=COUNT, may_be_none=True
    )
    latency_threads: int | None = setting(
        None,
        "threads of a pass; without it one, and in TensorFlow those of the process",
        SEARCH,
        range=COUNT,
        may_be_none=True,
    )
    latency_table: Path | None = setting(
        None,
        "file of latency tables to read and to add to, so that several runs measure once",
        MACHINE,
        may_be_none=True,
    )

    def target(self):
        """Returns the Latency that is aimed at, or None."""
        if self.target_latency is None and self.target_ms is None:
            given = [
                field.name
                for field in dataclasses.fields(self)
                if getattr(self, field.name) is not None
            ]
            if given:
                raise EkgError(
                    f"`{given[0]}` has no effect here: no latency is aimed at; name "
                    "`target_latency`, or leave it out."
                )
            return None
        if self.target_latency is not None and self.target_ms is not None:
            raise EkgError("`target_latency` and `target_ms` exclude each other.")
        return Latency(
            self.target_latency,
            self.target_ms,
            self.latency_runtime or "litert",
            self.latency_batch or 1,
            self.latency_threads,
            self.latency_table,
        )
