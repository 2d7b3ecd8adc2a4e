"""Dry-runs one step of every phase and checks memory and disk, so that a run of days does not fail
in its last phase.
"""

import dataclasses
import json
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ekg.deploy.formats import AUTO_RUNTIMES, FORMATS, INT8, runtime_named
from ekg.deploy.write import export
from ekg.distil import bank_files
from ekg.errors import EkgError
from ekg.landscape import lanczos
from ekg.landscape.subnetworks import MaskedLandscapes
from ekg.process import stopping
from ekg.process.memory import MIB, Peak, machine_memory_mib, resident_mib
from ekg.report.measure import conditions_for
from ekg.run import folder as names
from ekg.run import phases, reporting
from ekg.run.job import check_finite, out_of_memory
from ekg.searching.criteria import CriterionContext, score_channels
from ekg.searching.evaluator import kept_state_bytes
from ekg.searching.objective import Objective
from ekg.train.evaluate import Evaluation

logger = logging.getLogger(__name__)

# How many files of a kind a run has at most, with the one that is being written under another name.
# Trained, searched, slimmed, fine-tuned; the last one twice before it has its name.
PARAMETER_FILES = 4 + 2
KERAS_FILES = 2 + 1  # fine-tuned, and slimmed where that is better
CHECKPOINTS = 2 + 1  # every training keeps the last two
NETWORKS = 3  # rows of the table, each exported
# Bytes besides the numbers.
PER_ARRAY = 512  # name, shape, checksum
PER_KERAS_ARRAY, PER_EXPORTED_ARRAY = 8192, 32_768  # groups of HDF5; the nodes of a graph
PER_CURVE_LINE = 2048  # of curves and of TensorBoard's events
PAGE_BYTES = 2**20  # a picture; a page; what an exported format holds besides the network
SMALL_FILES = 2**19


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """One step of a phase, before it.

    Attributes:
        phase: one of folder.PHASES.
        step: function that runs the step on the unpruned network, which needs the most memory and
            stays as it is; returns what it traced and compiled, for the phase, or None.
        further_bytes: memory that the whole phase takes besides that of one step: what it keeps of
            all examples.
        epochs: epochs of a phase that trains and keeps checkpoints; 0 for others.
    """

    phase: str
    step: Callable
    further_bytes: int = 0
    epochs: int = 0


def rehearse(job, baseline=None):
    """Runs one step of each phase to come on the unpruned network, and checks the disk.

    Returns {phase: what it takes up again}; nothing where the last long phase is over.

    Args:
        job: Job.
        baseline: see phases.train_baseline(), or None.

    Raises:
        EkgError: the disk has no room, memory does not suffice, or data cannot be read.
        FloatingPointError: a number of a first step is not finite.
    """
    if job.is_done("fine-tune" if job.settings.fine_tunes else "slim"):
        return {}
    start, needed, ready = time.perf_counter(), {}, {}
    rehearsals = _to_come(job, baseline)
    epochs = [rehearsal.epochs for rehearsal in rehearsals if rehearsal.epochs]
    job.team.on_chief(lambda: check_disk(job, epochs))
    for rehearsal in rehearsals:
        with out_of_memory(rehearsal.phase), Peak() as peak:
            ready[rehearsal.phase] = rehearsal.step()
        besides = peak.host_mib - resident_mib()  # what stays is counted below
        needed[rehearsal.phase] = besides + rehearsal.further_bytes / MIB
        stopping.check()
    logger.info("preflight: one step of every phase ran, %.1f s", time.perf_counter() - start)
    stays = resident_mib()  # mostly what was traced
    check_memory({phase: stays + mib for phase, mib in needed.items()})
    return ready


def _to_come(job, baseline):
    """Returns the list of Rehearsals of the phases that are not over yet."""
    settings, rehearsals = job.settings, []
    if settings.fine_tunes:
        rehearsals.append(
            Rehearsal(
                "fine-tune",
                lambda: rehearse_fine_tuning(job),
                job.val_bytes(),
                settings.fine_tuning.train_epoch,
            )
        )
    rehearsals.append(Rehearsal("subset", lambda: rehearse_warm_up(job), epochs=1))
    if baseline is not None:
        rehearsals.append(
            Rehearsal("baseline", lambda: rehearse_baseline(job, baseline), epochs=baseline.epochs)
        )
    rehearsals.append(Rehearsal("search", lambda: rehearse_search(job), search_bytes(job)))
    if job.has_bank:
        # Its step is a forward pass of the supernet, like the search's.
        rehearsals.append(Rehearsal("bank", lambda: None, bank_memory(job)))
    rehearsals = [rehearsal for rehearsal in rehearsals if not job.is_done(rehearsal.phase)]
    return [*rehearsals, Rehearsal("report", lambda: rehearse_report(job))]


# ---------------------------------------------------------------- steps


def rehearse_baseline(job, baseline):
    """Returns the Training of the baseline after one step."""
    training = baseline.training(job, job.copy(job.model))
    batch = next(training.batches.epoch(0, job.team.shard))
    check_finite("baseline", training.trainer.step(batch, 0.0))
    return training


def rehearse_warm_up(job):
    """Returns the Training of the epoch on D_subset after one step."""
    training = phases.make_warm_up(job, job.model)
    check_finite("subset", training.trainer.step(next(training.batches.epoch(0)), 0.0))
    return training


def rehearse_search(job):
    """Returns the Objective after importance, one candidate, the knowledge, and what is asked of
    the landscape, on the first batch of D_val.
    """
    settings, supernet = phases.search_settings(job), job.supernet.remade(job.model)
    batches = _search_batches(job)
    batches = batches.head(len(batches.indices[0]))
    objective = Objective(supernet, batches, settings.search_teacher, job.search_compute)
    whole = supernet.whole()
    objective.add_knowledge(whole)
    scores = score_channels(
        settings.criterion, CriterionContext(objective, whole, job.settings.run.seed)
    )
    result = objective.scores(whole, [(0, whole.with_width(0, 0.5))])[0]
    check_finite("search", {"reward": result.reward, "importance": scores.sum()})
    if settings.reward == "condition_number" or settings.log_condition:
        landscape = MaskedLandscapes(supernet, batches, use_xla=job.compute.use_xla)(whole)
        product = landscape.product(np.ones(landscape.dimension))
        check_finite("search", {"Hessian-vector product": product.sum()})
        size = len(job.team.local_members) * lanczos.basis_bytes(landscape.dimension)
        logger.info(
            "preflight: condition numbers take at most %.2f GiB of memory for their bases",
            size / 2**30,
        )
    return objective


def rehearse_fine_tuning(job):
    """Runs one step of fine-tuning, with rows of zeros where there will be a memory bank."""
    settings = job.settings.fine_tuning
    knowledge = job.model if settings.finetune_teacher == "single" else None
    training = phases.make_fine_tuning(job, job.copy(job.model), knowledge)
    batch = next(training.batches.epoch(0, job.team.shard))
    if settings.finetune_teacher == "ensemble":
        shape = (len(batch["labels"]), settings.num_teacher, *job.output_shape)
        batch["bank"] = np.zeros(shape, bank_files.dtype_for(job.output_shape))
    check_finite("fine-tune", training.trainer.step(batch, 0.0))


def rehearse_report(job):
    """Returns an Evaluation of the unpruned network after one batch; tries runtimes and formats."""
    batches, shape = job.test_batches, reporting.measured_shape(job)
    evaluation = Evaluation(job.copy(job.model), batches, job.float32_compute)
    evaluation(batches=batches.head(batches.batch_size))
    asked = [name for name in job.settings.run.runtimes if name != AUTO_RUNTIMES]
    for conditions in conditions_for(asked, reporting.target_conditions(job)):
        if conditions.runtime != "tensorflow":  # an operator may be missing there
            runtime = runtime_named(conditions.runtime)
            runtime.timed(job.model, conditions.batch, conditions.num_threads, shape)()
    formats = job.settings.run.exports
    examples = reporting.export_examples(job) if formats else None
    with tempfile.TemporaryDirectory(prefix="ekg-") as folder:
        for form in formats:
            model = job.with_head(job.copy(job.model))
            if form == INT8:
                reporting.export_int8(job, model, Path(folder) / "network.tflite")
            else:
                path = Path(folder) / f"network{FORMATS[form].suffix}"
                export(model, path, form, examples=examples)
    return evaluation


# ---------------------------------------------------------------- memory


def _search_batches(job):
    """Returns the data.Batches of D_val as the search runs them."""
    return job.data.batches(job.val_split(), job.images_together)


def search_bytes(job):
    """Returns the bytes of the states of D_val that every member keeps, and of its images."""
    num_images = job.data.num_of_each_class(job.settings.search.val_per_class)
    rehearsed = len(_search_batches(job).indices[0])
    states = kept_state_bytes(job.supernet, num_images)
    states -= kept_state_bytes(job.supernet, rehearsed)
    return len(job.team.local_members) * max(states, 0) + job.val_bytes()


def bank_memory(job):
    """Returns the bytes of the rows of a block, once as they came and once together, and of the
    teachers' weights.
    """
    num_teacher = job.settings.fine_tuning.num_teacher
    rows = min(bank_files.BLOCK_ROWS, len(job.data.train)) * num_teacher
    row_bytes = (
        math.prod(job.output_shape) * np.dtype(bank_files.dtype_for(job.output_shape)).itemsize
    )
    # as variables, and on their device
    weights = 2 * 4 * num_teacher * job.model.count_params()
    return weights + 2 * rows * row_bytes


def check_memory(needed):
    """Logs the peak memory of each phase, and what there is.

    Args:
        needed: {phase: MiB of this process}.

    Raises:
        EkgError: a phase needs more than there is.
    """
    most = machine_memory_mib()
    logger.info(
        "preflight: peak memory about %s of %.0f MiB",
        ", ".join(f"{phase} {mib:.0f}" for phase, mib in needed.items()),
        most,
    )
    phase = max(needed, key=needed.get)
    if needed[phase] > most:
        raise EkgError(
            f"phase {phase}: needs about {needed[phase]:.0f} MiB of memory and {most:.0f} MiB are "
            f"there; {names.PHASES[phase].less_memory}."
        )


def check_disk(job, epochs):
    """Logs the bytes a run writes, at most, and those that are free.

    Args:
        job: Job.
        epochs: list of the epochs of each training to come.

    Raises:
        EkgError: it needs more than there are.
    """
    folder, needed = job.folder, bytes_to_write(job, epochs)
    free = shutil.disk_usage(folder.path).free
    logger.info(
        "preflight: at most %s bytes to write in %s, %s free",
        f"{needed:,}",
        folder.path,
        f"{free:,}",
    )
    if needed > free:
        raise EkgError(
            f"{folder.path}: the run needs {needed:,} bytes and {free:,} are free; make room, or "
            "name another folder."
        )


def bytes_to_write(job, epochs):
    """Returns an upper bound of the bytes that a run writes into its folder, less those of a bank
    that is there.

    Args: see check_disk.
    """
    run, model = job.settings.run, job.model
    arrays, numbers = len(model.weights), 4 * model.count_params()
    params = numbers + PER_ARRAY * arrays
    keras_file = numbers + PER_KERAS_ARRAY * arrays + 2 * len(model.to_json())
    # The weights themselves, and what the optimizer keeps of each.
    copies = 1 + job.settings.recipe.num_slots()
    checkpoint = copies * (numbers + PER_ARRAY * arrays)
    export = numbers + PER_EXPORTED_ARRAY * arrays + PAGE_BYTES
    lines = _search_steps(job) + sum(epochs)
    return sum(
        (
            PARAMETER_FILES * params,
            KERAS_FILES * keras_file,
            len(epochs) * CHECKPOINTS * checkpoint,
            len(run.exports) * NETWORKS * export + (export if run.exports else 0),
            _search_steps(job) * _history_line(job),
            2 * _knowledge_bytes(job),
            lines * PER_CURVE_LINE,
            3 * PAGE_BYTES,
            SMALL_FILES,
            _bank_bytes(job),
        )
    )


def _search_steps(job):
    """Returns how many steps a search takes at most: each takes a share of a group's channels, or
    one.
    """
    groups = job.supernet.groups
    return 1 + len(groups) * (math.ceil(1 / job.settings.search.search_step) + 1)


def _history_line(job):
    """Returns the bytes of a line of the history, at most: all kept channels stand in it."""
    groups = job.supernet.groups
    channels = sum(group.size * (len(str(group.size)) + 2) for group in groups)
    return channels + sum(len(json.dumps(group.name)) + 32 for group in groups) + PER_ARRAY


def _knowledge_bytes(job):
    num_images = job.settings.search.val_per_class * job.data.num_strata
    return 4 * num_images * math.prod(job.output_shape)


def _bank_bytes(job):
    """Returns the bytes of the memory bank that are not there yet."""
    if not job.has_bank:
        return 0
    num_images = len(job.data.train)
    shape = (num_images, job.settings.fine_tuning.num_teacher, *job.output_shape)
    size = math.prod(shape) * np.dtype(bank_files.dtype_for(job.output_shape)).itemsize
    blocks = (2 + num_images // max(bank_files.BLOCK_ROWS // 2, 1)) * PER_ARRAY
    array = job.folder / names.BANK / bank_files.ARRAY_FILE
    return max(size - (array.stat().st_size if array.exists() else 0), 0) + blocks
