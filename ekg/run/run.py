"""Runs a whole pruning job: the one way in for programs and scripts, and the story from the top to
the bottom.
"""

import contextlib
import dataclasses
import json
import logging
from pathlib import Path

import keras
import tensorflow as tf

from ekg.io import parameters
from ekg.run import arguments as run_arguments
from ekg.run import environment, phases, precision, preflight, reporting, reuse
from ekg.run import folder as names
from ekg.run.check import check, check_devices
from ekg.run.folder import RunFolder
from ekg.run.verify import is_whole

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Opening:
    """How the folder of a job is opened.

    Attributes:
        restart: name of the phase that begins again, with all after it, or None.
        overwrite: whether a run that is there is removed first.
        search_from: folder of the run whose finished search is taken over, or None.
        advice: what a user may do besides repeating the arguments of the run that is there.
        search_ignores: names of arguments that a search does not depend on, besides settings.
    """

    restart: str | None = None
    overwrite: bool = False
    search_from: Path | None = None
    advice: str = "name another folder"
    search_ignores: tuple[str, ...] = ()


def start(job, asked, *, opening=None, trained_file=None, baseline=None, rehearses=True, same=None):
    """Checks a job with all workers, runs it to its end, and returns (Job, rows of its table).

    Both ekg.prune and the training scripts start their jobs here. The Job that comes back has the
    number format that was chosen where it was left open.

    Args:
        job: Job.
        asked: {name: value} of what the result depends on besides the settings of the job, its data
            and versions; see arguments.of_job().
        opening: Opening of the folder.
        trained_file: pathlib.Path of the trained network; None keeps the network of the job as it
            is in the folder, unless a baseline is trained.
        baseline: trains the network first, see phases.train_baseline(); or None.
        rehearses: whether one step of every phase is tried first.
        same: {name: value} that all workers must share besides all this.

    Raises:
        EkgError: the job cannot be done, workers were started with different arguments, data or
            versions, or the folder holds another run.
        FloatingPointError: a loss or a reward is not finite.
        Stopped: a signal asked the run to end.
    """
    opening = opening or Opening()
    # Before anything that all workers do together: one with other settings would hang the others.
    job.team.check_same(
        run_arguments.started_with(job, asked)
        | {"rehearses": rehearses, "restart": opening.restart, "overwrite": opening.overwrite}
        | {"code": run_arguments.hash_library()}
        | (same or {})
    )
    check_devices(job.settings, job.team.size)
    job = precision.resolved(job, opening.overwrite)
    arguments, unknown = run_arguments.of_job(job, asked)
    job.team.check_same(arguments)  # data and versions, too, which lie on each machine
    check(job)
    with contextlib.ExitStack() as stack:
        # The chief owns the folder for all workers.
        job.team.on_chief(lambda: stack.enter_context(job.folder.locked()))
        job.team.on_chief(lambda: open_folder(job, arguments, unknown, opening))
        sources = []
        if job.has_bank:
            apart = _apart(job, opening)
            job.team.on_chief(
                lambda: sources.extend(
                    reuse.find_banks(job.folder, arguments, opening.search_from, apart)
                )
            )
        return job, run_job(job, trained_file, baseline, rehearses, sources)


def open_folder(job, arguments, unknown, opening):
    """Makes the run folder or opens it, with the search of another run in it if one is asked for.

    Args:
        job: Job.
        arguments: of the run, for arguments.json.
        unknown: what of the arguments cannot be compared, in words.
        opening: Opening.
    """
    folder = job.folder
    if unknown and folder.holds_run() and not opening.overwrite:
        logger.warning(
            "%s: resumes as if nothing had changed in what cannot be compared: %s",
            folder.path,
            ", ".join(unknown),
        )
    source = None
    if opening.search_from is not None and (opening.overwrite or not folder.is_searched()):
        source = RunFolder(opening.search_from)
        reuse.check_search(
            source, arguments, _apart(job, opening), may_differ=job.settings.target is None
        )
    RunFolder.prepare(
        folder.path, json.loads(json.dumps(arguments)), opening.overwrite, opening.advice
    )
    if opening.restart is not None:
        folder.restart(opening.restart)
    if source is not None:
        reuse.take_search(folder, source, reuse.count_common_steps(source, job))


def _apart(job, opening):
    """Returns the names of the arguments that a search does not depend on."""
    return [*run_arguments.training_names(job), *opening.search_ignores]


def run_job(job, trained_file=None, baseline=None, rehearses=True, sources=()):
    """Runs all phases of a job that are not over yet and returns the rows of the final table.

    A phase that was stopped resumes after its last finished search step or checkpoint.

    Args:
        job: Job whose folder is open and locked.
        trained_file, baseline, rehearses: see start().
        sources: banks whose rows may be taken, see bank.build_bank().

    Raises:
        EkgError: a file of an earlier part of the run is damaged.
        FloatingPointError: a loss or a reward is not finite.
        Stopped: a signal asked the run to end.
    """
    team, folder = job.team, job.folder
    make_deterministic(job.settings.run)
    if job.is_done("report") and team.from_chief(lambda: is_whole(job)):
        logger.info("this run is finished; its table is")
        team.on_chief(lambda: reporting.complete(job))
        return folder.table()
    keep_environment(job)

    target = job.settings.targets().prepare(job.supernet, team, folder / names.LATENCY_TABLE)
    ready = preflight.rehearse(job, baseline) if rehearses else {}
    keras.utils.set_random_seed(job.settings.run.seed)  # the same after a preflight as without one

    if baseline is not None:
        trained_file = phases.train_baseline(job, baseline, ready.pop("baseline", None))
    elif trained_file is None:
        trained_file = folder / names.BASELINE
        team.on_chief(lambda: keep_given(job, trained_file))
    unpruned = job.load(trained_file)
    supernet = phases.warm_up(job, unpruned, ready.pop("subset", None))
    history = phases.search(job, supernet, target, ready.pop("search", None))
    found = history[-1].subnetwork
    model = phases.slim(job, supernet, found)
    networks = {"baseline": (trained_file, None), "slimmed": (folder / names.SLIMMED, found)}
    if job.settings.fine_tunes:
        if not job.is_done("fine-tune"):
            bank = None
            if job.has_bank:
                bank = phases.build_bank(job, supernet, history, sources)
            phases.fine_tune(job, model, unpruned, bank, found)
        networks["fine-tuned"] = (folder / names.TRAINED, found)
    return reporting.report(job, networks, ready.pop("report", None))


def make_deterministic(run):
    """Sets the seeds of Python, NumPy and TensorFlow, and how its operations compute.

    Args:
        run: RunSettings.
    """
    keras.utils.set_random_seed(run.seed)  # op determinism needs one
    tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(run.tf32)


def keep_environment(job):
    """Names what the last digits depend on, where the run resumes in another environment."""
    here = environment.of_team(job.team)
    path, is_strict = job.folder / names.ENVIRONMENTS, job.settings.run.strict
    job.team.on_chief(lambda: environment.keep(path, here, is_strict))


def keep_given(job, path):
    """Writes the trained network of the job into the folder, unless it is there."""
    if not path.exists():
        parameters.save_params(job.model, path)
