"""The flags of the training scripts, what they set, and how they fit together."""

import dataclasses
from pathlib import Path

from ekg import command_line, settings
from ekg.devices.strategy import DeviceSettings
from ekg.distil.settings import FineTuneSettings, SlimSettings
from ekg.errors import EkgError
from ekg.goal import Goal, MaxDropSettings, epochs_of_probes
from ekg.run import folder as names
from ekg.run.settings import RunSettings
from ekg.searching.settings import FrontSettings, LatencySettings, SearchSettings, SubsetSettings
from ekg.settings import MACHINE, SEARCH, TRAINING, setting


@dataclasses.dataclass(frozen=True)
class FolderSettings(settings.Settings):
    """Where a run begins and what it leaves."""

    trained_param: Path | None = setting(
        None,
        "parameter file of the trained network; without it a baseline is trained first",
        SEARCH,
        may_be_none=True,
    )
    train_path: Path | None = setting(
        None,
        "run folder; without it runs/ARCH_DATASET_RATE; the same command resumes there",
        MACHINE,
        may_be_none=True,
    )
    search_from: Path | None = setting(
        None,
        "reuse this run's finished search; it must have pruned the same --trained_param",
        MACHINE,
        may_be_none=True,
    )
    overwrite: bool = setting(
        False, "remove an earlier run in --train_path and start again", MACHINE
    )
    restart: str | None = setting(
        None,
        "phase of a resumed run that begins again, with all later phases; what they left is "
        "removed",
        MACHINE,
        choices=tuple(names.PHASES),
        may_be_none=True,
    )
    preflight: bool = setting(
        True,
        "before the first long phase, run one step of every phase and check room on disk",
        MACHINE,
    )


@dataclasses.dataclass(frozen=True)
class BaselineSettings(settings.Settings):
    """How a baseline is trained, where no trained network is given."""

    baseline_epoch: int = setting(
        200, "epochs of baseline training", TRAINING, range=settings.COUNT
    )


# In the order of JobSettings.
JOB_CLASSES = (SubsetSettings, SearchSettings, FineTuneSettings, RunSettings, SlimSettings)
SHARED_FLAGS = {
    "network and run folder": FolderSettings,
    "epoch before the search": SubsetSettings,
    "search": SearchSettings,
    "several targets": FrontSettings,
    "accuracy goal": MaxDropSettings,
    "latency": LatencySettings,
    "network that is cut out": SlimSettings,
    "fine-tuning": FineTuneSettings,
    "baseline training": BaselineSettings,
    "devices": DeviceSettings,
    "run": RunSettings,
}


def parse_training_args(description, recipe, script_settings, argv=None, **defaults):
    """Returns the checked arguments of a training script; a mistake ends the program with one line
    and exit code 2.

    Args:
        description: of the script.
        recipe: BaselineRecipe.
        script_settings: dataclass of the script's own settings.
        argv: the arguments; None takes those of the command line.
        defaults: {name: default} where they differ from the settings' own.
    """
    parser = command_line.Parser(description=description)
    classes = {"data and network": script_settings, **SHARED_FLAGS}
    defaults = {"baseline_epoch": recipe.epochs, **defaults}
    rate = defaults.get("target_rate", SearchSettings.target_rate)
    for title, cls in classes.items():
        command_line.add_flags(
            parser, title, cls, command_line.rate_note(rate), **defaults | {"target_rate": None}
        )
    args = parser.parse_args(argv)
    args.settings_classes = tuple(classes.values())
    try:
        command_line.check_rates(args)
        command_line.check_drop(args)
        command_line.fill_in_rate_(args, rate)
        for cls in args.settings_classes:
            command_line.from_args(cls, args)
        settings.check_effects(args.settings_classes, vars(args), defaults)
        _check_combinations(args, recipe)
    except EkgError as error:
        parser.error(command_line.with_flags(str(error), vars(args)))
    if args.train_path is None:
        args.train_path = (
            Path("runs") / f"{args.arch}_{args.dataset}_{command_line.name_of_targets(args)}"
        )
    return args


def _check_combinations(args, recipe):
    command_line.from_args(LatencySettings, args).target()
    _check_probes(args)
    if args.trained_param and args.baseline_epoch != recipe.epochs:
        raise EkgError(
            "`baseline_epoch` has no effect here: `trained_param` is given; leave it out."
        )
    if args.restart == "baseline" and args.trained_param:
        raise EkgError(
            "`restart` baseline has no effect here: `trained_param` is given; name another phase."
        )
    if args.search_from and not args.trained_param:
        raise EkgError(
            "`search_from` needs `trained_param`, the network that was searched; a run that "
            "trained it itself "
            f"keeps it as {names.BASELINE}."
        )


def goal_of(args):
    """Returns the Goal that a command line names, or None."""
    target = command_line.from_args(MaxDropSettings, args).target()
    return None if target is None else Goal.make(target)


def _check_probes(args):
    """Raises EkgError if a setting of fine-tuning does not fit the short ones for a goal."""
    goal = goal_of(args)
    epochs = None if goal is None else epochs_of_probes(goal, args.train_epoch)
    if epochs is None:
        return
    try:
        dataclasses.replace(command_line.from_args(FineTuneSettings, args), train_epoch=epochs)
    except EkgError as error:
        raise EkgError(f"`probe_epochs` {epochs}: {error}") from None
