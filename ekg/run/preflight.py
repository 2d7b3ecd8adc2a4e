"""Before the first long phase: one step of every phase, its memory, and room on disk, so that a run
of days does not fail on its last one."""

import json
import logging
import math
import shutil
import time

import numpy as np

from ekg.distil import bank_files
from ekg.errors import EkgError
from ekg.process import stopping
from ekg.process.memory import MIB, Peak, machine_memory_mib, resident_mib
from ekg.run import folder as names
from ekg.run.job import LESS_MEMORY, out_of_memory

logger = logging.getLogger(__name__)

# How many files of a kind a run has at most, with the one that is being written under another name.
PARAMETER_FILES = (
    4 + 2
)  # trained, searched, slimmed, fine-tuned; the last one twice before it has its name
KERAS_FILES = 2 + 1  # fine-tuned, and slimmed where that is better
CHECKPOINTS = 2 + 1  # every training keeps the last two
NETWORKS = 3  # rows of the table, each exported
# Bytes besides the numbers.
PER_ARRAY = 512  # name, shape, checksum
PER_KERAS_ARRAY, PER_EXPORTED_ARRAY = 8192, 32_768  # groups of HDF5; the nodes of a graph
PER_CURVE_LINE = 2048  # of curves and of TensorBoard's events
PAGE_BYTES = 2**20  # a picture; a page; what an exported format holds besides the network
SMALL_FILES = 2**19


def rehearse(job, phases, model):
    """Runs one step of each phase on the unpruned network, and checks the disk.

    Args:
        job: Job.
        phases: list of the Phases to come.
        model: the unpruned keras.Model; it stays as it is.

    Raises:
        EkgError: the disk has no room, memory does not suffice, or data cannot be read.
        FloatingPointError: a number of a first step is not finite.
    """
    start, needed = time.perf_counter(), {}
    epochs = [phase.num_epochs for phase in phases if phase.num_epochs]
    job.team.on_chief(lambda: check_disk(job, model, epochs))
    for phase in phases:
        with out_of_memory(phase.name), Peak() as peak:
            phase.rehearse(model)
        needed[phase.name] = (
            peak.host_mib - resident_mib() + phase.further_bytes() / MIB
        )  # besides what stays
        stopping.check()
    logger.info("preflight: one step of every phase ran, %.1f s", time.perf_counter() - start)
    stays = resident_mib()  # what was traced, above all
    check_memory({phase: stays + mib for phase, mib in needed.items()})


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
            f"there; "
            f"{LESS_MEMORY[phase]}."
        )


def check_disk(job, model, epochs):
    """Logs the bytes a run writes, at most, and those that are free.

    Args:
        job: Job.
        model: the unpruned keras.Model.
        epochs: list of the epochs of each training to come.

    Raises:
        EkgError: it needs more than there are.
    """
    folder, needed = job.folder, bytes_to_write(job, model, epochs)
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
            f"name another "
            "folder."
        )


def bytes_to_write(job, model, epochs):
    """Returns an upper bound of the bytes that a run writes into its folder, less those of a bank
    that is there.

    Args: see check_disk.
    """
    run = job.settings.run
    arrays, numbers = len(model.weights), 4 * model.count_params()
    params = numbers + PER_ARRAY * arrays
    keras_file = numbers + PER_KERAS_ARRAY * arrays + 2 * len(model.to_json())
    copies = (
        1 + job.settings.recipe.num_slots()
    )  # of the weights: themselves and what the optimizer keeps of each
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
    groups = job.networks.supernet.groups
    return 1 + len(groups) * (math.ceil(1 / job.settings.search.search_step) + 1)


def _history_line(job):
    """Returns the bytes of a line of the history, at most: all kept channels stand in it."""
    groups = job.networks.supernet.groups
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
