"""What can be pruned in a network, why the rest cannot, and which channel groups can give."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from ekg.errors import EkgError
from ekg.network import inspect as structure
from ekg.network.inspect import Inspection
from ekg.network.supernet import Supernet
from ekg.pruning import understand
from ekg.searching.sensitivity import SHARES, measure_sensitivity
from ekg.searching.settings import SearchSettings


def inspect(
    model: keras.Model,
    data: Any = None,
    *,
    task: Any = "auto",
    may_lose: Sequence[str | int] = (),
    shares: Sequence[float] = SHARES,
    search: dict | None = None,
    seed: int = 0,
    **limits: Any,
) -> Inspection:
    """Returns the Inspection of a network: its channel groups, their cost, and why others stay.

        print(ekg.inspect(model, exclude="head"))
        print(ekg.inspect(model, (images, labels)))

    With data it also has the loss with each group narrowed alone, before any training: which layers
    can give. That costs one evaluation on the search's images per group and share.

    Args:
        model: keras.Model.
        data: training data, see ekg.prune; None inspects the network alone.
        task, may_lose: see ekg.prune.
        shares: shares of a group's channels to narrow it to, each in (0, 1).
        search: {name: value} of SearchSettings: val_per_class, search_batch_size, criterion.
        seed: seed of the order of the images.
        limits: arguments of Supernet, as exclude, min_channels, multiple_of.

    Raises:
        EkgError: as Supernet, except for a network in which nothing can be pruned; or the data do
            not fit the network.
    """
    if data is None:
        if search is not None:
            raise EkgError("`search` has no effect here: it is for `data`; leave it out.")
        return structure.inspect(model, **limits)
    limits.pop("input_shape", None)  # the data have it
    own, open_layers = dict(limits), limits.pop("open_layers", True)
    limits = {"exclude": (), "min_channels": 1, "prune_frozen": False} | limits
    data, logits, limits, _ = understand(
        model, data, {"task": task, "may_lose": may_lose}, {}, limits, open_layers
    )
    inspection = structure.inspect(model, input_shape=data.image_shape, **own)
    if not inspection.groups:
        return inspection
    largest = data.largest_class()
    values = {"val_per_class": min(SearchSettings.val_per_class, largest)} | dict(search or {})
    sensitivity = measure_sensitivity(
        Supernet(logits, **limits),
        data,
        shares=shares,
        settings=SearchSettings.make(values),
        seed=seed,
    )
    return dataclasses.replace(inspection, sensitivity=sensitivity)
