"""Prunes a user's own network on the user's own data: `ekg prune`, `ekg inspect`, prune.py."""

import dataclasses
import logging
from pathlib import Path

import keras

import ekg
from ekg import command_line, settings
from ekg.commands.networks import asked_by
from ekg.data.views import VIEWS
from ekg.devices.strategy import DeviceSettings, describe_devices, make_strategy
from ekg.devices.team import Team
from ekg.distil.settings import FineTuneSettings, SlimSettings
from ekg.errors import EkgError, first_line
from ekg.goal import GOAL_FLAG_OF, MaxDropSettings
from ekg.io.h5_files import load_weights_
from ekg.io.keras_files import load_keras
from ekg.pruning import AUTO
from ekg.run.defaults import GIVEN_APART, MANY_CLASSES, MANY_CLASSES_TEMPERATURE
from ekg.run.folder import PHASES
from ekg.run.settings import RunSettings
from ekg.searching.settings import FrontSettings, LatencySettings, SearchSettings, SubsetSettings
from ekg.settings import COUNT, MACHINE, NOT_NEGATIVE, SEARCH, TRAINING, Rule, Settings, setting
from ekg.tasks.kinds import TASKS

logger = logging.getLogger(__name__)

APPLICATIONS = tuple(sorted(name for name in vars(keras.applications) if name[0].isupper()))


@dataclasses.dataclass(frozen=True)
class NetworkSettings(Settings):
    """The network, and which parts may be pruned."""

    model: str = setting(
        None,
        ".keras or .h5 file of a trained network, or a name of keras.applications",
        SEARCH,
        is_required=True,
    )
    weights: Path | None = setting(
        None,
        "weights of a network of keras.applications, a .weights.h5 file; without it those of "
        "ImageNet, downloaded",
        SEARCH,
        may_be_none=True,
    )
    classes: int = setting(1000, "classes of a network of keras.applications", SEARCH, range=COUNT)
    image_size: tuple[int, ...] | None = setting(
        None,
        "height and width of its images, where the network does not say",
        SEARCH,
        range=COUNT,
        may_be_none=True,
    )
    exclude: tuple[str, ...] = setting(
        (), "patterns of the names of layers that keep their channels", SEARCH
    )
    min_channels: int = setting(
        1,
        "least number of channels that every group keeps; with 0 blocks may go whole",
        SEARCH,
        range=NOT_NEGATIVE,
    )
    multiple_of: str = setting(
        "1",
        "divisor of the number of channels that a group keeps; auto: measured, where time jumps",
        SEARCH,
    )
    prune_frozen: bool = setting(
        False, "let layers that are not trainable lose channels of their own, too", SEARCH
    )
    inspect: bool = setting(
        False,
        "print what can be pruned, and why the rest cannot, and end; with data_path also the loss "
        "with each channel group narrowed alone",
        MACHINE,
    )


@dataclasses.dataclass(frozen=True)
class DataSettings(Settings):
    """The data."""

    data_path: str | None = setting(
        None,
        "training data: folder with one subfolder of images per class, .npz with x and y, or with "
        "an array per input and y_NAME per output, or tfds:NAME",
        MACHINE,
        may_be_none=True,
        is_per_worker=True,
    )
    val_path: str | None = setting(
        None,
        "data of the final table, in the same form; tfds:NAME reads its split test",
        MACHINE,
        may_be_none=True,
        is_per_worker=True,
    )
    rescale: tuple[float, ...] | None = setting(
        None,
        "values of grey levels 0 and 255, say -1 1; without it the network takes them as they are",
        SEARCH,
        may_be_none=True,
    )
    task: str = setting(
        "auto",
        "task of the network; auto: inferred from its output and the labels",
        SEARCH,
        choices=("auto", *TASKS),
    )
    may_lose: tuple[str, ...] = setting(
        (), "names of outputs that do not count, where there are several", SEARCH
    )
    augment: str = setting(
        "none", "random views in fine-tuning", TRAINING, choices=("none", *VIEWS)
    )
    augment_inputs: tuple[str, ...] | None = setting(
        None,
        "names of the inputs that these views move, where there are several; without it all images",
        TRAINING,
        works_if=Rule("augment", VIEWS, "there are no views"),
        may_be_none=True,
    )


@dataclasses.dataclass(frozen=True)
class OutputSettings(Settings):
    """The run folder, and which phases run."""

    train_path: Path | None = setting(
        None,
        "run folder; without it runs/MODEL_RATE; the same command resumes there",
        MACHINE,
        may_be_none=True,
    )
    restart: str | None = setting(
        None,
        "phase of a resumed run that begins again, with all later phases",
        MACHINE,
        choices=tuple(phase for phase in PHASES if phase != "baseline"),
        may_be_none=True,
    )
    search_from: Path | None = setting(
        None,
        "run folder of an earlier run of the same network and data: its search is reused, or "
        "its first steps where the target differs",
        MACHINE,
        may_be_none=True,
    )
    search_only: bool = setting(
        False, "stop at the network that is cut out, without fine-tuning", SEARCH
    )


FLAGS = {
    "network": NetworkSettings,
    "data": DataSettings,
    "output": OutputSettings,
    "epoch before the search": SubsetSettings,
    "search": SearchSettings,
    "several targets": FrontSettings,
    "accuracy goal": MaxDropSettings,
    "latency": LatencySettings,
    "network that is cut out": SlimSettings,
    "fine-tuning": FineTuneSettings,
    "devices": DeviceSettings,
    "run": RunSettings,
}
FLAG_OF = {
    "data": "data_path",
    "validation_data": "val_path",
    "run_dir": "train_path",
    "epochs": "train_epoch",
}
RATE = 0.5
DEFAULTS = {"subset_per_class": None, "target_rate": None, "train_epoch": 20, "repair": True}


def parse_args(argv=None, prog=None):
    """Returns the checked arguments.

    Args:
        argv: list of arguments; None takes those of the process.
        prog: name of the program for its help; None takes that of the process.
    """
    parser = command_line.Parser(
        prog=prog,
        description="Prune a network of your own with EKG.",
        epilog=(
            "Default batch sizes and val_per_class are upper limits: smaller data take less. The "
            f"temperature is {MANY_CLASSES_TEMPERATURE:g} for networks of {MANY_CLASSES} outputs "
            f"or more."
        ),
    )
    for title, cls in FLAGS.items():
        command_line.add_flags(parser, title, cls, command_line.rate_note(RATE), **DEFAULTS)
    args = parser.parse_args(argv)
    args.given = parser.names_given(argv)
    try:
        command_line.check_rates(args)
        command_line.check_drop(args)
        command_line.fill_in_rate_(args, RATE)
        for cls in FLAGS.values():
            command_line.from_args(cls, args)
        settings.check_effects(tuple(FLAGS.values()), vars(args), DEFAULTS)
        _check_combinations(args)
        _target(args)
        _multiple(args)
    except EkgError as error:
        parser.error(command_line.with_flags(str(error), vars(args)))
    if args.train_path is None:
        args.train_path = (
            Path("runs") / f"{Path(args.model).stem}_{command_line.name_of_targets(args)}"
        )
    return args


def _check_combinations(args):
    if not args.inspect and args.data_path is None:
        raise EkgError("`data_path` is needed: the data that the network is pruned on.")
    for name, count in (("rescale", 2), ("image_size", 2)):
        if getattr(args, name) is not None and len(getattr(args, name)) != count:
            raise EkgError(f"`{name}` takes {count} numbers.")
    tuning = [
        name
        for name in settings.names_where(
            [FineTuneSettings], lambda details: details.affects == TRAINING
        )
        if name in args.given
    ]
    if args.search_only and tuning:
        raise EkgError(
            f"`{tuning[0]}` has no effect here: `search_only` ends before the fine-tuning; leave "
            f"it out."
        )
    if args.model not in APPLICATIONS and (args.weights or args.classes != NetworkSettings.classes):
        raise EkgError(
            "`weights` and `classes` are for a network of keras.applications; a file has its own."
        )


def load_model(args):
    """Returns the trained keras.Model that the arguments name; a file is read without running code
    of its own.
    """
    if args.model in APPLICATIONS:
        return _make_application(args)
    if not Path(args.model).is_file():
        raise EkgError(f"`model` {args.model}: no such file, and no network of keras.applications.")
    return load_keras(args.model)


def _make_application(args):
    options = {} if args.image_size is None else {"input_shape": (*args.image_size, 3)}
    try:
        model = getattr(keras.applications, args.model)(
            weights=None if args.weights else "imagenet",
            classes=args.classes,
            classifier_activation=None,
            **options,
        )
    except Exception as error:  # Keras raises many kinds
        raise EkgError(f"`model` {args.model}: {first_line(error)[:200]}") from None
    if args.weights:
        load_weights_(model, args.weights)
    return model


def _load_data(args, asked):
    """Returns (training data, validation data or None)."""
    data, classes = asked.load(args.data_path, args.rescale)
    if args.val_path is None:
        return data, None
    validation, others = asked.load(args.val_path, args.rescale, "test", "val_path")
    if classes != others:
        raise EkgError(
            f"`val_path` {args.val_path}: its classes are {others}, and those of `data_path` are "
            f"{classes}; they "
            "must be the same."
        )
    return data, validation


def _multiple(args):
    if args.multiple_of == AUTO:
        if args.inspect:
            raise EkgError(
                "`multiple_of` auto is measured when a network is pruned; name a number for "
                "`inspect`."
            )
        return AUTO
    if not args.multiple_of.isdecimal() or int(args.multiple_of) < 1:
        raise EkgError(
            f"`multiple_of` must be auto or a whole number of at least 1; received "
            f"{args.multiple_of}."
        )
    return int(args.multiple_of)


def _target(args):
    goal = command_line.from_args(MaxDropSettings, args).target()
    if goal is not None:
        return goal
    latency = command_line.from_args(LatencySettings, args).target()
    return (
        {"flops": args.target_rate}
        | ({} if args.target_params is None else {"params": args.target_params})
        | ({} if latency is None else {"latency": latency})
    )


def _augment(args):
    """Returns the argument `augment` of ekg.prune."""
    if args.augment == "none":
        return None
    if args.augment_inputs is None:
        return args.augment
    return dict.fromkeys(args.augment_inputs, args.augment)


def main(args):
    """Runs the job, prints its table, and returns the ekg.PruneResult or the ekg.Front.

    With --inspect it prints and returns the ekg.Inspection.
    """
    model = load_model(args)
    asked = asked_by(model, args.image_size)
    choices = {
        "exclude": args.exclude,
        "min_channels": args.min_channels,
        "multiple_of": _multiple(args),
        "prune_frozen": args.prune_frozen,
    }
    if args.inspect:
        choices["input_shape"] = asked.open_shape
        data = None if args.data_path is None else _load_data(args, asked)[0]
        inspection = ekg.inspect(
            model, data, task=args.task, may_lose=args.may_lose, seed=args.seed, **choices
        )
        print(inspection)
        return inspection
    strategy = make_strategy(command_line.from_args(DeviceSettings, args))
    logger.info(
        "%s on %s, to %s, on %s; run folder %s",
        args.model,
        args.data_path,
        command_line.describe_targets(args),
        describe_devices(strategy),
        args.train_path,
    )
    data, validation = _load_data(args, asked)
    options = {
        "validation_data": validation,
        "task": args.task,
        "may_lose": args.may_lose,
        **choices,
        "epochs": None if args.search_only else args.train_epoch,
        "search": command_line.named(args, SearchSettings, SubsetSettings, but=GIVEN_APART),
        "fine_tune": command_line.named(args, FineTuneSettings, but=GIVEN_APART),
        "run": command_line.named(args, RunSettings, but=GIVEN_APART),
        "seed": args.seed,
        "repair": args.repair,
        "augment": _augment(args),
        "run_dir": args.train_path,
        "strategy": strategy,
        "verbose": not args.quiet,
    }
    try:
        if args.target_rates:
            result = ekg.front(model, data, args.target_rates, **options)
        else:
            options |= {"restart": args.restart, "search_from": args.search_from}
            result = ekg.prune(model, data, target=_target(args), **options)
    except EkgError as error:
        flags = FLAG_OF if args.max_drop is None else FLAG_OF | GOAL_FLAG_OF
        raise command_line.renamed(error, flags) from None
    print(result.summary())
    if Team(strategy).is_chief:
        try:
            result.report(args.train_path)
        except EkgError as error:  # the network is there
            logger.warning("no report is drawn: %s", error)
    logger.info("run folder: %s", args.train_path)
    return result
