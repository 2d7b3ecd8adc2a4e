"""One job of a training script, from its arguments to the rows of the final table."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path

from ekg import command_line, settings
from ekg.commands.train_flags import JOB_CLASSES
from ekg.devices.compute import Compute
from ekg.devices.kind import use_xla
from ekg.distil.settings import FineTuneSettings
from ekg.errors import EkgError
from ekg.io import files
from ekg.io.parameters import load_params
from ekg.network.supernet import Supernet
from ekg.report.table import format_table
from ekg.run import folder as names
from ekg.run.arguments import hash_code
from ekg.run.folder import RunFolder
from ekg.run.job import Job
from ekg.run.run import Opening, start
from ekg.run.settings import JobSettings
from ekg.searching.settings import SUBSET_PER_CLASS, LatencySettings
from ekg.settings import MACHINE

logger = logging.getLogger(__name__)

SOURCES = ("*.py", "ekg/**/*.py", "nets/*.py", "dataloader/*.py")


@dataclasses.dataclass(frozen=True)
class Script:
    """What a training script brings to its jobs.

    Attributes:
        folder: pathlib.Path of the scripts, whose code all workers must share.
        load_data: function that returns the data.Dataset.
        build: (arch, num_classes) -> unpruned keras.Model.
        from_params: (arch, params, num_classes, source) -> keras.Model of the widths that
            the parameters have.
        baseline: function from `build` without arguments to what trains that network, where no
            trained one is given; see run.phases.train_baseline().
    """

    folder: Path
    load_data: Callable
    build: Callable
    from_params: Callable
    baseline: Callable

    def prune(self, args, team):
        """Runs a single job, prints its table, and returns the rows.

        Args:
            args: as train_flags.parse_training_args() returns.
            team: Team.
        """
        try:
            _, rows = self.run(args, team, self.load_data)
        except FloatingPointError as error:
            raise FloatingPointError(f"{error} {_resume_hint(args)}") from None
        if team.is_chief:
            print(format_table(rows))
            logger.info("run folder: %s", args.train_path)
        return rows

    def run(self, args, team, load_data, **changes):
        """Runs a job to its end and returns (Job, rows of its table).

        Args:
            args, team: see prune().
            load_data: function that returns the data set.
            changes: entries of JobSettings that no flag has.
        """
        _check_overwrite(args)
        params = load_params(args.trained_param) if args.trained_param else None
        data = load_data()
        settings_of_job = dataclasses.replace(job_settings(args, data), **changes)
        new_model = functools.partial(self.build, args.arch, data.num_classes)
        if params is None:
            model, baseline = new_model(), self.baseline(new_model)
        else:
            model = self.from_params(args.arch, params, data.num_classes, args.trained_param)
            baseline = None
        compute = Compute(team, use_xla(args.compile), args.precision)
        job = Job(settings_of_job, data, Supernet(model), compute, RunFolder(args.train_path))
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
            same=self._same(args),
        )

    def _same(self, args):
        """Returns {name: text} of the flags and the code that all workers must share."""
        shared = settings.names_where(
            args.settings_classes, lambda details: not details.is_per_worker
        )
        flags = {name: str(getattr(args, name)) for name in shared}
        return flags | {"scripts": hash_code(self.folder, SOURCES)}


def job_settings(args, data):
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
