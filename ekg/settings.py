"""What a setting is: a field of a frozen dataclass with its default, help, range and effect.

Flags (command_line.py), checks, the arguments that a run folder keeps and the keyword arguments of
Python functions are derived from these fields. The settings themselves stand beside what they set.
"""

import dataclasses
import math
import numbers
import typing
from collections.abc import Callable

from ekg.errors import EkgError

# What a setting affects: the sub-network that is found; only what comes after the search; or
# nothing in the result.
SEARCH, TRAINING, MACHINE = "search", "training", "machine"

_ACCEPTED = {int: numbers.Integral, float: numbers.Real}  # those of NumPy, too


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from low to high; an open end is not among them."""

    low: float
    high: float = math.inf
    is_low_open: bool = False
    is_high_open: bool = False

    def __contains__(self, value):
        above = self.low < value if self.is_low_open else self.low <= value
        return (
            above
            and math.isfinite(value)
            and (value < self.high if self.is_high_open else value <= self.high)
        )

    def __str__(self):
        if self.high == math.inf:
            if self.low == 0:
                return "positive" if self.is_low_open else "0 or more"
            return f"at least {self.low:g}"
        if isinstance(self.high, int) and self.high > 1:
            return f"from {self.low} to {self.high}"
        return (
            f"in {'(' if self.is_low_open else '['}{self.low:g}, "
            f"{self.high:g}{')' if self.is_high_open else ']'}"
        )


COUNT, POSITIVE, NOT_NEGATIVE = Range(1), Range(0, is_low_open=True), Range(0)
SHARE, INNER_SHARE = Range(0, 1, is_low_open=True), Range(0, 1, is_low_open=True, is_high_open=True)


@dataclasses.dataclass(frozen=True)
class Rule:
    """When a setting has an effect: where another one has one of these values."""

    other: str
    values: tuple
    why_not: str


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a field carries besides its name, type and default; see setting()."""

    help: str
    affects: str = MACHINE
    range: Range | None = None
    choices: tuple | None = None
    works_if: Rule | None = None
    may_be_none: bool = False
    is_per_worker: bool = False
    is_required: bool = False


def setting(default, help_text, affects=MACHINE, **options):
    """Returns the dataclass field of a setting.

    Args:
        default: its default.
        help_text: what it is, with its unit.
        affects: SEARCH, TRAINING or MACHINE: whether the result of a run depends on it.
        options: further entries of Setting. range: Range of its numbers. choices: tuple of its
            values. works_if: Rule. may_be_none: whether None is a value. is_per_worker: whether
            each worker may have its own value. is_required: whether a command line must give it.
    """
    return dataclasses.field(
        default=default, metadata={"setting": Setting(help_text, affects, **options)}
    )


def about(field):
    """Returns the Setting of a dataclass field."""
    return field.metadata["setting"]


class Settings:
    """Base of the dataclasses of settings: checks every value when one is made.

    Raises:
        EkgError: a value is of another type or outside its range or choices.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))

    def differing(self):
        """Returns {name: value} of the settings that are not at their defaults."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }

    @classmethod
    def make(cls, given):
        """Returns the settings with these values, {name: value}, and defaults for the others.

        Raises:
            EkgError: a name is not a setting of this class, a value is wrong, or one has no effect
                with the others.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise EkgError(f"`{unknown[0]}` is no setting here; there are {', '.join(names)}.")
        made = cls(**given)
        check_effects([cls], {name: getattr(made, name) for name in names})
        return made


def _check(field, value):
    details, (kind, is_list) = about(field), kind_of(field)
    if value is None and details.may_be_none:
        return
    if is_list and not isinstance(value, (tuple, list)):
        raise EkgError(f"`{field.name}` must be a tuple; received {value!r}.")
    if _takes_function(field) and callable(value):
        return
    for entry in value if is_list else (value,):
        is_kind = isinstance(entry, _ACCEPTED.get(kind, kind)) and not (
            isinstance(entry, bool) and kind is not bool
        )
        if details.choices is not None and entry not in details.choices:
            function = ", or a function" if _takes_function(field) and not is_kind else ""
            raise EkgError(
                f"`{field.name}` must be one of {list(details.choices)}{function}; received "
                f"{entry!r}."
            )
        if not is_kind:
            raise EkgError(f"`{field.name}` must be of type {kind.__name__}; received {entry!r}.")
        if details.range is not None and entry not in details.range:
            received = f"{entry:g}" if isinstance(entry, float) else entry
            raise EkgError(f"`{field.name}` must be {details.range}; received {received}.")


def check_effects(classes, values, defaults=None):
    """Raises EkgError if a value that is not its default has no effect with the others.

    Args:
        classes: dataclasses of settings.
        values: {name: value} of all their settings.
        defaults: {name: default} where they differ from those of the classes.
    """
    for field in (field for cls in classes for field in dataclasses.fields(cls)):
        rule = about(field).works_if
        default = (defaults or {}).get(field.name, field.default)
        if (
            rule is not None
            and values[field.name] != default
            and values[rule.other] not in rule.values
        ):
            raise EkgError(f"`{field.name}` has no effect here: {rule.why_not}; leave it out.")


def kind_of(field):
    """Returns (type of a value or of its entries, whether there are several)."""
    kinds = [kind for kind in typing.get_args(field.type) if kind is not type(None)]
    if typing.get_origin(field.type) is tuple:
        return kinds[0], True
    if not kinds:
        return field.type, False
    return (
        (typing.get_args(kinds[0])[0], True)
        if typing.get_origin(kinds[0]) is tuple
        else (kinds[0], False)
    )


def _takes_function(field):
    """Returns whether Python may give a function in place of a value; a command line cannot."""
    return Callable in typing.get_args(field.type)


def names_where(classes, is_wanted):
    """Returns the names of the settings of some classes whose Setting is wanted, a function to a
    truth value.
    """
    return [
        field.name
        for cls in classes
        for field in dataclasses.fields(cls)
        if is_wanted(about(field))
    ]
