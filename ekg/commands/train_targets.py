"""The jobs of a training script with several target rates or an accuracy goal."""

import copy
import dataclasses
import logging

from ekg import command_line
from ekg.commands.train_flags import goal_of
from ekg.commands.train_script import job_settings
from ekg.errors import EkgError
from ekg.goal import GOAL_FLAG_OF, SEARCH_FOLDER, check_folder, folder_of, reach
from ekg.io.parameters import load_params
from ekg.network.supernet import Supernet
from ekg.report.front import FrontPoint, format_front, notes_of, write_front
from ekg.report.table import format_table, notes
from ekg.run import folder as names
from ekg.run.check import check_batches
from ekg.run.folder import RunFolder
from ekg.trade_off import PAGE, PICTURE, point_folder

logger = logging.getLogger(__name__)


def prune(script, args, team):
    """Runs the job or jobs of a command line and returns the rows of the last table, which it
    prints.

    Args:
        script: train_script.Script.
        args: as train_flags.parse_training_args() returns.
        team: Team.
    """
    if args.target_rates:
        return _prune_front(script, args, team)
    if args.max_drop is None:
        return script.prune(args, team)
    try:
        return _prune_to_goal(script, args, team)
    except EkgError as error:  # it calls the goal what ekg.prune calls it
        raise command_line.renamed(error, GOAL_FLAG_OF) from None


def _prune_front(script, args, team):
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
        rows = script.prune(point_args, team)
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


def _prune_to_goal(script, args, team):
    """Runs one job per rate that is tried for an accuracy goal, and prints the final table."""
    if args.trained_param:
        load_params(args.trained_param)  # a wrong file is refused before data are loaded
    data = script.load_data()
    runs = _ForGoal(args, script, team, data.num_classes)
    try:
        result = reach(goal_of(args), data, args.train_epoch, args.seed, runs)
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
            script: Script.
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
        check_batches(job_settings(_changed(self._args, train_epoch=epochs), data), data)

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
        params = load_params(path)
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
        job, rows = self._script.run(args, self._team, lambda: data, **changes)
        found = job.folder.history()[-1].subnetwork

        def measured(measure):
            network = job.folder / job.handed_out[0]
            return job.team.from_chief(lambda: measure(job.read(network, found)))

        return _Reached(rows, note or f"measured on {len(data.test)} test images"), measured


def _changed(args, **values):
    """Returns a copy of arguments with other values."""
    changed = copy.copy(args)
    vars(changed).update(values)
    return changed
