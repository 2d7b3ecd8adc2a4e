"""Groups runs that are repetitions of each other: all their arguments are equal except the seed."""

import dataclasses
import json

from analyses.results import mean_and_deviation
from ekg.errors import EkgError
from ekg.run.arguments import TEST_DATA

# Arguments that tables show in columns of their own
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
# Values, in earlier runs, of arguments that later versions added
EARLIER = {"group_choice": "intended"}
HASHES = ("trained_param", "searched")
HASH_DIGITS = 8


@dataclasses.dataclass(frozen=True)
class Repetitions:
    """Records of runs that differ only in their seed.

    Attributes:
        records: list of at least one records.Record.
        special: text with the arguments, other than SHOWN, in which they differ from other runs
            with the same network and data.
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
        """The criterion, and what else is special."""
        return ", ".join(filter(None, (self.arguments["criterion"], self.special)))

    @property
    def method(self):
        """Criterion, teachers, and what else is special."""
        return ", ".join(filter(None, (self.first.method, self.special)))

    def mean(self, value):
        """Returns the mean of value(record) over all records."""
        return mean_and_deviation(list(map(value, self.records)))[0]

    def top1(self, row):
        """Returns the top-1 of a row of the tables in %, as "mean ± deviation"."""
        mean, deviation = mean_and_deviation([record.top1(row) for record in self.records])
        return f"{mean:.2f} ± {deviation:.2f}" if len(self.records) > 1 else f"{mean:.2f}"


def group(records):
    """Returns a list of Repetitions, sorted by network, data, epochs and accuracy, best first.

    Raises:
        EkgError: two records belong to the same run, or to equal runs.
    """
    groups = {}
    # Records of earlier versions do not say on which images they were tested.
    have_test_data = all(TEST_DATA in record.arguments for record in records)
    for record in records:
        fixed = _fixed(record.arguments)
        if not have_test_data:
            fixed.pop(TEST_DATA, None)
        groups.setdefault(json.dumps(fixed, sort_keys=True), []).append(record)
    for members in groups.values():
        by_seed = {}
        for record in members:
            by_seed.setdefault(record.arguments.get("seed"), []).append(record.name)
        for names in by_seed.values():
            if len(names) > 1:
                raise EkgError(
                    f"{' and '.join(names)}: differ in nothing, not even in their seed; name one "
                    "of them."
                )
    firsts = [members[0] for members in groups.values()]
    repetitions = [
        Repetitions(members, _special(members[0], firsts)) for members in groups.values()
    ]

    def order(item):
        arguments = item.arguments
        top1 = item.mean(lambda record: record.top1(-1))
        return arguments["arch"], item.first.data, arguments["train_epoch"], -top1

    return sorted(repetitions, key=order)


def _fixed(arguments):
    """Returns all arguments but the seed, with the versions as entries of their own."""
    rest = {name: value for name, value in arguments.items() if name not in ("seed", "versions")}
    return EARLIER | rest | arguments.get("versions", {})


def _special(record, others):
    """Returns, as text, the arguments in which runs with a record's network and data differ."""
    comparable = [
        _fixed(other.arguments)
        for other in others
        if (other.arguments["arch"], other.data) == (record.arguments["arch"], record.data)
    ]
    return ", ".join(
        f"{name} {_short(name, value)}"
        for name, value in _fixed(record.arguments).items()
        if name not in SHOWN and any(other.get(name, value) != value for other in comparable)
    )


def _short(name, value):
    return value[:HASH_DIGITS] if name in HASHES and value else value
