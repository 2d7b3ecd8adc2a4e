"""Every setting once: its default, its help, its range and what it affects.

A setting is a field of a frozen dataclass, made by setting(). Flags (command_line.py), checks, the
arguments that a run folder keeps and the keyword arguments of the Python functions are derived from
these fields.
"""

import dataclasses
import math
import numbers
import typing
from collections.abc import Callable
from pathlib import Path

from ekg.deploy.formats import FORMATS, RUNTIMES
from ekg.devices.compute import AUTO_FORMAT, DTYPES
from ekg.errors import EkgError
from ekg.searching.criteria import CRITERIA
from ekg.searching.latency import Latency
from ekg.searching.targets import Every, Flops, Params, Target
from ekg.train.optimizers import Recipe

# What a setting affects: the sub-network that is found; only what comes behind the search; or
# nothing in the result.
SEARCH, TRAINING, MACHINE = "search", "training", "machine"

SEARCH_TEACHERS = ("ensemble", "single", "none")
FINETUNE_TEACHERS = ("ensemble", "single", "none")
REWARDS = ("ensemble", "condition_number")
GROUP_CHOICES = ("intended", "published")
SUBSET_PER_CLASS = 256
MAX_SEED = 2**32 - 1  # NumPy takes no larger one


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
    affects: str
    range: Range | None = None
    choices: tuple | None = None
    works_if: Rule | None = None
    may_be_none: bool = False
    is_per_worker: bool = False
    is_required: bool = False


def setting(default, help_text, affects, **options):
    """Returns the dataclass field of a setting.

    Args:
        default: its default.
        help_text: what it is, with its unit.
        affects: SEARCH, TRAINING or MACHINE.
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


# ---------------------------------------------------------------- the settings


@dataclasses.dataclass(frozen=True)
class SubsetSettings(Settings):
    """Of the epoch before the search, step 0."""

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
    """Of the greedy search."""

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
        "groups that a search step tries: those where the removed channels matter "
        "little, as the method intends, or those that the published program takes",
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

    def targets(self, own=None):
        """Returns the Target of the search: that of the FLOPs, of the parameters, and one of the
        user's own, or None.
        """
        further = [] if self.target_params is None else [Params(self.target_params)]
        further += [] if own is None else [own]
        return Every((Flops(self.target_rate), *further)) if further else Flops(self.target_rate)


@dataclasses.dataclass(frozen=True)
class LatencySettings(Settings):
    """Latency as a target."""

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
        "that latency is aimed at in; without it litert",
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
                    f"`target_latency`, or leave "
                    "it out."
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


@dataclasses.dataclass(frozen=True)
class SlimSettings(Settings):
    """The network that is cut out."""

    repair: bool = setting(
        False,
        "fit the kernels of the network that is cut out to the unpruned network, by least squares "
        "and without "
        "labels",
        TRAINING,
    )


_DISTILS = Rule("finetune_teacher", ("ensemble", "single"), "nothing is distilled")
_HAS_BANK = Rule("finetune_teacher", ("ensemble",), "only the memory bank has teachers")


@dataclasses.dataclass(frozen=True)
class FineTuneSettings(Settings):
    """Of the memory bank and the training behind it: SGD with a step schedule."""

    finetune_teacher: str = setting(
        "ensemble",
        "memory bank, the unpruned network, or labels alone",
        TRAINING,
        choices=FINETUNE_TEACHERS,
    )
    num_teacher: int = setting(
        5, "teachers in the memory bank, K", TRAINING, range=COUNT, works_if=_HAS_BANK
    )
    temperature: float = setting(
        4.0, "of the distillation, τ", TRAINING, range=POSITIVE, works_if=_DISTILS
    )
    learning_rate: float = setting(0.01, "of fine-tuning, at its start", TRAINING, range=POSITIVE)
    decay_points: tuple[float, ...] = setting(
        (0.3, 0.6, 0.8),
        "fractions of the epochs at which the learning rate falls",
        TRAINING,
        range=INNER_SHARE,
    )
    decay_rate: float = setting(
        0.2, "factor of the learning rate at each of them", TRAINING, range=POSITIVE
    )
    warmup_epoch: int = setting(
        0,
        "epochs in which the learning rate rises linearly, in fine-tuning and baseline training",
        TRAINING,
        range=NOT_NEGATIVE,
    )
    # The epoch before the search uses it, too; so it affects what is found.
    weight_decay: float = setting(
        5e-4, "added to the gradient, times the weight", SEARCH, range=NOT_NEGATIVE
    )
    label_smoothing: float = setting(
        0.0,
        "share of the labels spread over all classes, in fine-tuning and baseline training",
        TRAINING,
        range=Range(0, 1, is_high_open=True),
    )
    batch_size: int = setting(
        128, "images a training step, over all devices", TRAINING, range=COUNT
    )
    train_epoch: int = setting(100, "epochs of fine-tuning", TRAINING, range=COUNT)
    num_views: int | None = setting(
        None,
        "random views of each image in fine-tuning: 1, flipped and cropped, or 2, whose colours "
        "change, too; without it 1 where labels alone teach and 2 where a teacher does",
        TRAINING,
        range=Range(1, 2),
        may_be_none=True,
    )

    def views_of(self, data):
        """Returns the number of random views of each training image.

        Args:
            data: data set; it has data.num_views views of an image at most.

        Raises:
            EkgError: the data set has fewer views than are asked for.
        """
        if self.num_views is None:
            return 1 if self.finetune_teacher == "none" else data.num_views
        if self.num_views > data.num_views:
            raise EkgError(
                f"`num_views` {self.num_views} has no effect here: the data has no random "
                "views, so all would be alike; name `augment`, or leave it out."
            )
        return self.num_views

    def __post_init__(self):
        super().__post_init__()
        if any(later <= point for point, later in zip(self.decay_points, self.decay_points[1:])):
            raise EkgError(
                f"`decay_points` must rise; received "
                f"{' '.join(f'{point:g}' for point in self.decay_points)}."
            )
        if self.warmup_epoch > self.train_epoch:
            raise EkgError(
                f"`warmup_epoch` {self.warmup_epoch} is longer than the training, `train_epoch` "
                f"{self.train_epoch}; make it shorter."
            )


@dataclasses.dataclass(frozen=True)
class RunSettings(Settings):
    """Of how a run is computed."""

    val_batch_size: int = setting(256, "images a step of an evaluation", MACHINE, range=COUNT)
    sync_bn: bool = setting(
        False,
        "batch norms in training take the statistics of the whole batch, over all devices",
        TRAINING,
    )
    accum: int = setting(
        1,
        "micro-batches that a device's part of a batch is cut into, in training, search and "
        "memory bank",
        SEARCH,
        range=COUNT,
    )
    precision: str = setting(
        "float32",
        "of convolutions and activations in baseline training and fine-tuning; weights are "
        "float32; auto: "
        "bfloat16 where the processor has it and a step is faster",
        TRAINING,
        choices=(*DTYPES, AUTO_FORMAT),
    )
    search_precision: str = setting(
        "float32", "the same of search and memory bank", SEARCH, choices=DTYPES
    )
    tf32: bool = setting(
        True,
        "let GPUs that can multiply float32 in TensorFloat-32, in training and memory bank; the "
        "search and second "
        "derivatives never do",
        SEARCH,
    )
    test_every: int = setting(
        0,
        "epochs of training between evaluations of the test images, for the curve alone; 0: none",
        MACHINE,
        range=NOT_NEGATIVE,
    )
    checkpoint_minutes: float = setting(
        10.0, "minutes of training between checkpoints within an epoch", MACHINE, range=NOT_NEGATIVE
    )
    runtimes: tuple[str, ...] = setting(
        ("tensorflow",),
        "in which the final table shows latency: TensorFlow at batches of 1 and 256, others at 1 "
        "on one "
        "thread",
        MACHINE,
        choices=tuple(RUNTIMES),
    )
    exports: tuple[str, ...] = setting(
        (),
        "formats in which the unpruned and the pruned network are written, too, with proof that "
        "they compute the same",
        MACHINE,
        choices=tuple(FORMATS),
    )
    strict: bool = setting(
        False,
        "refuse to resume on another machine, or with other threads or kernels, where the last "
        "digits may differ",
        MACHINE,
    )
    seed: int = setting(
        0, "of initial weights, order and augmentation", SEARCH, range=Range(0, MAX_SEED)
    )

    def __post_init__(self):
        super().__post_init__()
        if self.sync_bn and self.accum > 1:
            raise EkgError(
                "`sync_bn` and `accum` exclude each other: statistics of the whole batch need it "
                "at once."
            )


@dataclasses.dataclass(frozen=True)
class JobSettings:
    """Everything a pruning job is asked for besides its data, its network and its devices.

    Attributes:
        fine_tunes: whether there is a memory bank and fine-tuning, or the job ends with the pruned
            network.
        hands_out_better: whether the network that was cut out is handed out where fine-tuning made
            it worse.
        writes_page: whether it leaves a picture and a page, which need matplotlib.
        target: a Target of the user's own, besides those of the search's settings, or None.
        recipe: optimizers.Recipe of fine-tuning.
    """

    subset: SubsetSettings = SubsetSettings()
    search: SearchSettings = SearchSettings()
    fine_tuning: FineTuneSettings = FineTuneSettings()
    run: RunSettings = RunSettings()
    slim: SlimSettings = SlimSettings()
    fine_tunes: bool = True
    hands_out_better: bool = False
    writes_page: bool = True
    target: Target | None = None
    recipe: Recipe = Recipe()

    def targets(self):
        """Returns the Target of the search."""
        return self.search.targets(self.target)
