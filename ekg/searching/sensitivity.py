"""Which channel groups can give: the loss with each of them narrowed alone."""

import dataclasses

from ekg.devices.compute import full_float32
from ekg.errors import EkgError
from ekg.searching.criteria import CriterionContext, score_channels
from ekg.searching.objective import Objective
from ekg.searching.settings import SearchSettings

SHARES = (0.75, 0.5, 0.25)  # of a group's channels


@dataclasses.dataclass(frozen=True)
class GroupSensitivity:
    """The loss of a network with one channel group narrowed.

    Attributes:
        name: name of the group.
        channels: number of channels of the group.
        kept: numbers of channels that were tried, tuple in falling order; a share that the group
            cannot be narrowed to is tried at the nearest number above it.
        losses: mean loss on D_val at each of them, before any training.
    """

    name: str
    channels: int
    kept: tuple[int, ...]
    losses: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """How much the loss rises when each channel group is narrowed alone.

    Attributes:
        loss: mean loss of the unpruned network on D_val, with batch statistics.
        examples: number of examples in D_val.
        shares: shares of the channels that were asked for, in falling order.
        groups: tuple of GroupSensitivity in network order.
    """

    loss: float
    examples: int
    shares: tuple[float, ...]
    groups: tuple[GroupSensitivity, ...]

    def __str__(self):
        width = max(len("channel group"), *(len(group.name) for group in self.groups))
        titles = "".join(f"{f'at {share:g}':>12}" for share in self.shares)
        lines = [
            f"Loss on {self.examples} examples: {self.loss:.4f} unpruned; with one group "
            "narrowed, before any training:",
            f"{'channel group':<{width}}  channels{titles}",
        ]
        for group in self.groups:
            losses = "".join(f"{loss:>12.4f}" for loss in group.losses)
            lines.append(f"{group.name:<{width}}  {group.channels:>8}{losses}")
        return "\n".join(lines)


def measure_sensitivity(supernet, data, *, shares=SHARES, settings=None, seed=0, compute=None):
    """Returns the Sensitivity of a network: one evaluation on D_val per group and share.

    The channels that stay are those that the search's criterion ranks highest in the unpruned
    network. Batch norms use batch statistics, as in a search.

    Args:
        supernet: the Supernet.
        data: data.Dataset; D_val is taken from its training split.
        shares: shares of the channels, each in (0, 1).
        settings: SearchSettings, for the size of D_val, its batches and the criterion; None takes
            the defaults.
        seed: of the order of D_val.
        compute: Compute; None means float32 on the default device.

    Raises:
        EkgError: a share is out of range.
        FloatingPointError: an importance is not finite.
    """
    shares = tuple(sorted(shares, reverse=True))
    if not shares or not all(0 < share < 1 for share in shares):
        raise EkgError(f"`shares` must lie between 0 and 1; received {list(shares)}.")
    settings = settings or SearchSettings()
    split = data.last_of_each_class(settings.val_per_class, seed).in_memory()
    batches = data.batches(split, min(settings.search_batch_size, len(split)))
    whole = supernet.whole()
    with full_float32():
        objective = Objective(supernet, batches, "none", compute)
        scores = score_channels(settings.criterion, CriterionContext(objective, whole, seed))
        ranked = whole.ranked(supernet.layout.by_group(scores))
        objective.cache_states(ranked)
        candidates = [
            (index, ranked.with_width(index, share))
            for index in range(len(supernet.groups))
            for share in shares
        ]
        unpruned, *narrowed = objective.scores(ranked, [(None, ranked), *candidates])
    reports = []
    for index, group in enumerate(supernet.groups):
        part = slice(index * len(shares), (index + 1) * len(shares))
        kept = tuple(candidate.num_kept(index) for _, candidate in candidates[part])
        losses = tuple(score.loss for score in narrowed[part])
        reports.append(GroupSensitivity(group.name, group.size, kept, losses))
    return Sensitivity(unpruned.loss, objective.num_images, shares, tuple(reports))
