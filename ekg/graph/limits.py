"""What a user excludes from pruning, and the numbers of channels that may stay."""

import dataclasses
import re

from ekg.errors import EkgError

FROZEN = "is frozen"  # why a layer that is not trainable keeps its channels


@dataclasses.dataclass(frozen=True)
class PruningLimits:
    """Layers excluded from pruning, and the numbers of channels that may stay.

    Attributes:
        exclude: layers that keep their output channels: a layer or a type of layers, a regular
            expression that is searched in names of layers, a function from a layer to a bool, or a
            list of these.
        min_channels: smallest number of channels that stay in every group; or {regular expression:
            number} by the group's name. With 0 a group may lose all its channels, and the branch of
            a block with them, where the network can do without it.
        multiple_of: the number of channels that stay is a multiple of it, unless all stay; or a
            dict likewise.
        prune_frozen: whether layers that are not trainable may lose channels of their own.
    """

    exclude: object = ()
    min_channels: object = 1
    multiple_of: object = 1
    prune_frozen: bool = False

    def __post_init__(self):
        if not isinstance(self.prune_frozen, bool):
            raise EkgError(f"`prune_frozen` must be True or False; received {self.prune_frozen!r}.")
        for name in ("min_channels", "multiple_of"):
            value = getattr(self, name)
            for number in value.values() if isinstance(value, dict) else [value]:
                first = 0 if name == "min_channels" else 1
                if not isinstance(number, int) or isinstance(number, bool) or number < first:
                    raise EkgError(
                        f"`{name}` must be whole numbers from {first} on; received {value!r}."
                    )
            for pattern in value if isinstance(value, dict) else ():
                _compile(name, pattern)

    def excluded(self, graph):
        """Returns the keys of the layers that keep their output channels.

        Raises:
            EkgError: a named layer is not in the network.
        """
        items = self.exclude if isinstance(self.exclude, (list, tuple, set)) else [self.exclude]
        keys = set()
        for item in items:
            if isinstance(item, str):
                pattern = _compile("exclude", item)
                found = {key for key in graph.layers if pattern.search(key)}
            elif isinstance(item, type):
                found = {key for key, layer in graph.layers.items() if isinstance(layer, item)}
            elif callable(item) and not hasattr(item, "name"):
                found = {key for key, layer in graph.layers.items() if item(layer)}
            else:
                found = {key for key, layer in graph.layers.items() if layer is item}
            if not found and (
                isinstance(item, (str, type)) or hasattr(item, "name") or not callable(item)
            ):
                raise EkgError(
                    f"`exclude`: no layer of {graph.model.name!r} is "
                    f"{getattr(item, 'name', item)!r}."
                )
            keys |= found
        return keys | {key for key in graph.layers for outer in keys if key.startswith(f"{outer}/")}

    def of_group(self, name):
        """Returns (least number of channels, multiple) of the group of this name."""
        return tuple(
            max(
                [number for pattern, number in value.items() if re.search(pattern, name)], default=1
            )
            if isinstance(value, dict)
            else value
            for value in (self.min_channels, self.multiple_of)
        )

    def check_vanishing(self, name, problem):
        """Raises EkgError if a pattern asks a group to vanish, which has this problem with it."""
        if isinstance(self.min_channels, dict):
            raise EkgError(
                f"`min_channels`: channel group {name!r} cannot vanish, {problem}; let it keep 1."
            )

    def check_patterns(self, names):
        """Raises EkgError if a pattern fits none of the groups' names."""
        for setting in ("min_channels", "multiple_of"):
            value = getattr(self, setting)
            for pattern in value if isinstance(value, dict) else ():
                if not any(re.search(pattern, name) for name in names):
                    raise EkgError(
                        f"`{setting}`: no channel group fits {pattern!r}; the groups are "
                        f"{list(names)}."
                    )


def _compile(name, pattern):
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise EkgError(f"`{name}`: {pattern!r} is no regular expression: {error}.") from None
