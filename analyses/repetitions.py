"""Runs that are repetitions of each other: all that their results depend on is the same but the
seed.
"""

import dataclasses
import json

from analyses.results import mean_and_deviation
from ekg.errors import EkgError
from ekg.run.arguments import TEST_DATA

# Arguments that tables show anyway.
SHOWN = (
    "arch",
    "dataset",
    "data",
    "search_teacher",
    "finetune_teacher",
    "criterion",
    "target_rate",
    "train_epoch",
)
# What arguments that later versions added were in runs before them.
EARLIER = {"group_choice": "intended"}
HASHES, HASH_DIGITS = ("trained_param", "searched"), 8


@dataclasses.dataclass(frozen=True)
class Repetitions:
    """Records of runs that differ in their seed.

    Attributes:
        records: list of records.Record, at least one.
        special: in words, the arguments that tell them from other runs of the same network and
            data, but for those SHOWN.
    """

    records: list
    special: str = ""

    @property
    def first(self):
        return self.records[0]

    @property
    def arguments(self):
        return self.first.arguments

    @property
    def criterion(self):
        """What ranked the channels, and what else is special."""
        return ", ".join(filter(None, (self.arguments["criterion"], self.special)))

    @property
    def method(self):
        """What found the sub-network, what taught it, and what else is special."""
        return ", ".join(filter(None, (self.first.method, self.special)))

    def mean(self, value):
        """Returns the mean of value(record)."""
        return mean_and_deviation(list(map(value, self.records)))[0]

    def top1(self, row):
        """Returns the top-1 of a row of the tables in %, as "mean ± deviation"."""
        mean, deviation = mean_and_deviation([record.top1(row) for record in self.records])
        return f"{mean:.2f}" + (f" ± {deviation:.2f}" if len(self.records) > 1 else "")


def group(records):
    """Returns a list of Repetitions, by network, data and epochs, the best first.

    Raises:
        EkgError: two records are of the same run, or of one that was run twice.
    """
    groups = {}
    # Records of earlier versions do not tell what they were tested on.
    tested = all(TEST_DATA in record.arguments for record in records)
    for record in records:
        fixed = {
            name: value
            for name, value in _fixed(record.arguments).items()
            if tested or name != TEST_DATA
        }
        groups.setdefault(json.dumps(fixed, sort_keys=True), []).append(record)
    for own in groups.values():
        names = {}
        for record in own:
            names.setdefault(record.arguments.get("seed"), []).append(record.name)
        twice = next((" and ".join(found) for found in names.values() if len(found) > 1), None)
        if twice:
            raise EkgError(f"{twice}: differ in nothing, not even in their seed; name one of them.")
    made = [
        Repetitions(own, _special(own[0], [other[0] for other in groups.values()]))
        for own in groups.values()
    ]
    return sorted(
        made,
        key=lambda one: (
            one.arguments["arch"],
            one.first.data,
            one.arguments["train_epoch"],
            -one.mean(lambda record: record.top1(-1)),
        ),
    )


def _fixed(arguments):
    """Returns all arguments but the seed; those of versions one by one."""
    others = {name: value for name, value in arguments.items() if name not in ("seed", "versions")}
    return EARLIER | others | arguments.get("versions", {})


def _special(record, others):
    """Returns the arguments of a record that differ among those of its network and data, as
    text.
    """
    alike = [
        _fixed(other.arguments)
        for other in others
        if (other.arguments["arch"], other.data) == (record.arguments["arch"], record.data)
    ]
    return ", ".join(
        f"{name} {_short(name, value)}"
        for name, value in _fixed(record.arguments).items()
        if name not in SHOWN and any(other.get(name, value) != value for other in alike)
    )


def _short(name, value):
    return value[:HASH_DIGITS] if name in HASHES and value else value
