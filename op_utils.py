"""The common job of the two training scripts, and names that scripts take from the library.

Baselines are trained here, on ekg's compiled, distributed, accumulating step.
"""

import argparse
import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path

import utils
from ekg import command_line, settings
from ekg.data.dataset import TrainingBatches
from ekg.devices.compute import Compute
from ekg.devices.kind import COMPILE_CHOICES as COMPILE_CHOICES
from ekg.devices.kind import use_xla as use_xla
from ekg.devices.strategy import DeviceSettings, describe_devices, make_strategy
from ekg.devices.team import Team
from ekg.distil import losses
from ekg.distil.settings import FineTuneSettings, SlimSettings
from ekg.errors import EkgError
from ekg.goal import (
    GOAL_FLAG_OF,
    SEARCH_FOLDER,
    Goal,
    MaxDropSettings,
    check_folder,
    epochs_of_probes,
    folder_of,
    reach,
)
from ekg.io import files
from ekg.network.supernet import Supernet
from ekg.phases import Training
from ekg.report.front import FrontPoint, format_front, notes_of, write_front
from ekg.report.table import format_table, notes
from ekg.run import folder as names
from ekg.run.arguments import hash_code
from ekg.run.check import check_batch as check_batch
from ekg.run.check import check_batches
from ekg.run.folder import RunFolder
from ekg.run.job import Job
from ekg.run.run import Opening, start
from ekg.run.settings import JobSettings, RunSettings
from ekg.searching.settings import (
    SUBSET_PER_CLASS,
    FrontSettings,
    LatencySettings,
    SearchSettings,
    SubsetSettings,
)
from ekg.settings import MACHINE, SEARCH, TRAINING, setting
from ekg.trade_off import PAGE, PICTURE, point_folder
from ekg.train.step import Schedule, Trainer

logger = logging.getLogger(__name__)

SOURCES = ("*.py", "ekg/**/*.py", "nets/*.py", "dataloader/*.py")


# ---------------------------------------------------------------- flags


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


@dataclasses.dataclass(frozen=True)
class BaselineRecipe:
    """What a script fixes of its baselines' training: epochs by default, and the rest of the SGD
    step schedule.
    """

    epochs: int
    learning_rate: float
    decay_points: tuple[float, ...]
    decay_rate: float
    weight_decay: float


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
        defaults: {name: default} where they differ from those of the settings.
    """
    parser = utils.Parser(description=description)
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
        parser.error(utils.with_flags(str(error), vars(args)))
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


def _goal(args):
    """Returns the Goal that a command line names, or None."""
    target = command_line.from_args(MaxDropSettings, args).target()
    return None if target is None else Goal.make(target)


def _check_probes(args):
    """Raises EkgError if a setting of fine-tuning does not fit the short ones for a goal."""
    goal = _goal(args)
    epochs = None if goal is None else epochs_of_probes(goal, args.train_epoch)
    if epochs is None:
        return
    try:
        dataclasses.replace(command_line.from_args(FineTuneSettings, args), train_epoch=epochs)
    except EkgError as error:
        raise EkgError(f"`probe_epochs` {epochs}: {error}") from None


# ---------------------------------------------------------------- the training scripts' job


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Trains the network that is pruned, where none is given: labels alone, one view, flipped and
    cropped.

    Attributes:
        recipe: BaselineRecipe.
        epochs: length of the training.
        build: function that returns the unpruned keras.Model with new weights.
    """

    recipe: BaselineRecipe
    epochs: int
    build: Callable

    def training(self, job, model):
        """Returns the phases.Training of a network for a Job."""
        chosen, recipe = job.settings.fine_tuning, self.recipe
        trainer = Trainer(
            job.team.strategy,
            model,
            losses.baseline(job.data, chosen.label_smoothing),
            weight_decay=recipe.weight_decay,
            options=job.step_options,
            divisor=job.data.task.scale(job.data.train.labels),
        )
        batches = TrainingBatches(
            job.data, chosen.batch_size, job.settings.run.seed, num_views=1, phase="baseline"
        )
        schedule = Schedule(
            recipe.learning_rate,
            recipe.decay_points,
            recipe.decay_rate,
            self.epochs,
            chosen.warmup_epoch,
        )
        return Training("baseline", trainer, batches, schedule)


@dataclasses.dataclass(frozen=True)
class _Script:
    """What a training script brings to its jobs; see prune()."""

    recipe: BaselineRecipe
    load_data: Callable
    build: Callable
    from_params: Callable


def prune(args, recipe, load_data, build, from_params):
    """Runs the job of a training script and returns the rows of the final table, which it prints.

    With several target rates there is one job per rate, from the easiest to the hardest, and the
    last one's rows are returned. With an accuracy goal there is one job per rate that is tried.

    Args:
        args: as parse_training_args() returns.
        recipe: BaselineRecipe.
        load_data: function that returns the data.Dataset.
        build: (arch, num_classes) -> unpruned keras.Model.
        from_params: (arch, params, num_classes, source) -> keras.Model of the widths that
            the parameters have.
    """
    script = _Script(recipe, load_data, build, from_params)
    team = Team(make_strategy(command_line.from_args(DeviceSettings, args)))
    logger.info(
        "%s on %s, to %s, on %s; run folder %s",
        args.arch,
        args.dataset,
        command_line.describe_targets(args),
        describe_devices(team.strategy),
        args.train_path,
    )
    with _naming_flags(args), team.sharing_failures():
        if args.target_rates:
            return _prune_front(args, script, team)
        if args.max_drop is not None:
            return _prune_to_goal(args, script, team)
        return _prune(args, script, team)


@contextlib.contextmanager
def _naming_flags(args):
    """Calls an accuracy goal in errors what the command line calls it."""
    try:
        yield
    except EkgError as error:
        if args.max_drop is None:
            raise
        raise command_line.renamed(error, GOAL_FLAG_OF) from None


def _prune_front(args, script, team):
    """Runs one job per target rate, prints the table of all, and writes their picture."""
    points, earlier, trained_param = [], None, args.trained_param
    for rate in sorted(args.target_rates, reverse=True):
        point_args = _changed(
            args,
            target_rate=rate,
            target_rates=None,
            train_path=point_folder(args.train_path, rate),
            search_from=earlier,
            trained_param=trained_param,
        )
        rows = _prune(point_args, script, team)
        earlier = point_args.train_path
        trained_param = trained_param or earlier / names.BASELINE
        run = RunFolder(earlier).read_finished()
        points.append(FrontPoint(f"{rate:g} of the FLOPs", run, args.repair))
    if team.is_chief:
        print("\n".join([format_front(points), *notes_of(points)]))
        try:
            write_front(points, args.train_path / PICTURE, args.train_path / PAGE)
        except ModuleNotFoundError as error:  # the networks are there
            logger.warning("no picture is drawn: install %s", error.name)
        logger.info("run folders: %s", args.train_path)
    return rows


def _prune_to_goal(args, script, team):
    """Runs one job per rate that is tried for an accuracy goal, and prints the final table."""
    if args.trained_param:
        utils.load_params(args.trained_param)  # a wrong file is refused before data are loaded
    data = script.load_data()
    runs = _ForGoal(args, script, team, data.num_classes)
    try:
        result = reach(_goal(args), data, args.train_epoch, args.seed, runs)
    except FloatingPointError as error:
        advice = "Start again with another --train_path and a lower --learning_rate."
        raise FloatingPointError(f"{error} {advice}") from None
    if team.is_chief:
        print("\n".join([format_table(result.rows), result.note, *notes(result.rows)]))
        logger.info("run folders: %s", args.train_path)
    return result.rows


@dataclasses.dataclass(frozen=True)
class _Reached:
    """The rows of the final table for an accuracy goal, and what they are of."""

    rows: list
    note: str


class _ForGoal:
    """What goal.reach() prunes and measures with."""

    def __init__(self, args, script, team, num_classes):
        """
        Args:
            args: of the whole job.
            script: _Script.
            team: Team.
            num_classes: classes of the data.
        """
        check_folder(args.train_path)
        self._args, self._script, self._team = args, script, team
        self._num_classes = num_classes
        # Where no trained network is given, the first run trains one.
        self._baseline = folder_of(args.train_path, SEARCH_FOLDER) / names.BASELINE

    def check(self, data, epochs):
        """Raises EkgError if a setting does not fit the data."""
        check_batches(_job_settings(_changed(self._args, train_epoch=epochs), data), data)

    def least_rate(self):
        """Returns the share of the FLOPs of the smallest sub-network."""
        if self._args.trained_param is None:
            supernet = Supernet(self._script.build(self._args.arch, self._num_classes))
        else:
            supernet = Supernet(self._read(self._args.trained_param))
        return supernet.rate(supernet.smallest())

    def unpruned(self, measure):
        """Returns what a function says of the unpruned network, as the chief sees it; None before
        the first run has trained it.
        """
        path = self._args.trained_param or self._baseline
        if not self._team.as_chief_sees(path.exists()):
            return None
        return self._team.from_chief(lambda: measure(self._read(path)))

    def _read(self, path):
        """Returns the network in a parameter file."""
        params = utils.load_params(path)
        return self._script.from_params(self._args.arch, params, self._num_classes, path)

    def prune(self, name, data, rate, epochs, search_from, note, is_final):
        """See goal.reach()."""
        trained_param = self._args.trained_param
        if search_from is not None:
            search_from = folder_of(self._args.train_path, search_from)
            trained_param = trained_param or self._baseline
        args = _changed(
            self._args,
            target_rate=rate,
            max_drop=None,
            train_epoch=epochs or self._args.train_epoch,
            train_path=folder_of(self._args.train_path, name),
            search_from=search_from,
            trained_param=trained_param,
        )
        changes = {"fine_tunes": epochs is not None, "writes_page": is_final}
        if not is_final:
            args.runtimes = args.exports = ()
        job, rows = _run(args, self._script, self._team, lambda: data, **changes)
        found = job.folder.history()[-1].subnetwork

        def measured(measure):
            network = job.folder / job.handed_out[0]
            return job.team.from_chief(lambda: measure(job.read(network, found)))

        return _Reached(rows, note or f"measured on {len(data.test)} test images"), measured


def _changed(args, **values):
    """Returns a copy of arguments with other values."""
    return argparse.Namespace(**vars(args) | values)


def _prune(args, script, team):
    """Runs a single job of a training script; see prune()."""
    try:
        _, rows = _run(args, script, team, script.load_data)
    except FloatingPointError as error:
        raise FloatingPointError(f"{error} {_resume_hint(args)}") from None
    if team.is_chief:
        print(format_table(rows))
        logger.info("run folder: %s", args.train_path)
    return rows


def _run(args, script, team, load_data, **changes):
    """Runs a job to its end and returns (Job, rows of its table).

    Args:
        args: see prune().
        script: _Script.
        team: Team.
        load_data: function that returns the data set.
        changes: entries of JobSettings that no flag has.
    """
    _check_overwrite(args)
    params = utils.load_params(args.trained_param) if args.trained_param else None
    data = load_data()
    job_settings = dataclasses.replace(_job_settings(args, data), **changes)
    new_model = functools.partial(script.build, args.arch, data.num_classes)
    if params is None:
        model = new_model()
        baseline = Baseline(script.recipe, args.baseline_epoch, new_model)
    else:
        model = script.from_params(args.arch, params, data.num_classes, args.trained_param)
        baseline = None
    compute = Compute(team, use_xla(args.compile), args.precision)
    job = Job(job_settings, data, Supernet(model), compute, RunFolder(args.train_path))
    opening = Opening(
        args.restart,
        args.overwrite,
        args.search_from,
        "name a new `train_path`, or start again with `overwrite`",
        search_ignores=("baseline_epoch",),
    )
    return start(
        job,
        _asked(args),
        opening=opening,
        trained_file=args.trained_param,
        baseline=baseline,
        rehearses=args.preflight,
        same=_same(args),
    )


def _job_settings(args, data):
    """Returns the JobSettings of arguments, which get what depends on the data."""
    if args.subset_per_class is None:
        args.subset_per_class = min(SUBSET_PER_CLASS, data.largest_class())
    args.num_views = command_line.from_args(FineTuneSettings, args).views_of(data)
    return JobSettings(
        *(command_line.from_args(cls, args) for cls in JOB_CLASSES),
        target=command_line.from_args(LatencySettings, args).target(),
    )


def _asked(args):
    """Returns {name: value} of what the result depends on besides the settings of the job."""
    classes = [cls for cls in args.settings_classes if cls not in JOB_CLASSES]
    affecting = settings.names_where(classes, lambda details: details.affects != MACHINE)
    asked = {name: getattr(args, name) for name in affecting}
    return asked | {"trained_param": args.trained_param and files.sha256(args.trained_param)}


def _same(args):
    """Returns {name: text} of the flags that all workers must share, and of the scripts' code."""
    shared = settings.names_where(args.settings_classes, lambda details: not details.is_per_worker)
    flags = {name: str(getattr(args, name)) for name in shared}
    return flags | {"scripts": hash_code(Path(__file__).parent, SOURCES)}


def _resume_hint(args):
    """Returns a sentence on what a run whose loss diverged can resume from."""
    folder = RunFolder(args.train_path)
    trained = args.trained_param or folder / names.BASELINE
    if folder.is_searched():
        return (
            f"The search is intact; resume after it with --trained_param {trained} --search_from "
            f"{args.train_path}, a new --train_path and a lower --learning_rate."
        )
    if not args.trained_param and folder.has(names.BASELINE):
        return f"The trained network is intact; start from it with --trained_param {trained}."
    return "Start again from scratch."


def _check_overwrite(args):
    """Raises EkgError if what the run needs lies in the folder that is removed first."""
    for name in ("trained_param", "search_from") if args.overwrite else ():
        path = getattr(args, name)
        if path and path.resolve().is_relative_to(args.train_path.resolve()):
            raise EkgError(
                f"`overwrite` would remove `{name}` {path}; copy it out of {args.train_path} "
                "first, or name another `train_path`."
            )
