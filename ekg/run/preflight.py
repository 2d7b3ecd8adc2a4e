"""Before the first long phase: one step of every phase, its memory, and room on disk, so that a run of days does not fail
on its last one."""

import logging
import math
import shutil
import time

import numpy as np

from ekg import stopping
from ekg.distil import bank_files
from ekg.errors import EkgError
from ekg.memory import MIB, Peak, machine_memory_mib, resident_mib
from ekg.run import folder as names
from ekg.run.job import LESS_MEMORY, out_of_memory

logger = logging.getLogger(__name__)

WEIGHT_FILES = 3  # parameter files of a run, at most
CHECKPOINTS = 3  # the last two and the one that is being written


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
    job.team.on_chief(lambda: check_disk(job, model.count_params()))
    for phase in phases:
        with out_of_memory(phase.name), Peak() as peak:
            phase.rehearse(model)
        needed[phase.name] = peak.host_mib - resident_mib() + phase.further_bytes() / MIB  # besides what stays
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
    logger.info("preflight: peak memory about %s of %.0f MiB", ", ".join(
        f"{phase} {mib:.0f}" for phase, mib in needed.items()), most)
    phase = max(needed, key=needed.get)
    if needed[phase] > most:
        raise EkgError(f"phase {phase}: needs about {needed[phase]:.0f} MiB of memory and {most:.0f} MiB are there; "
                       f"{LESS_MEMORY[phase]}.")


def check_disk(job, num_params):
    """Logs the bytes a run writes and those that are free.

    Args:
        job: Job.
        num_params: parameters of the unpruned network.

    Raises:
        EkgError: it needs more than there are.
    """
    settings, data, folder, bank_bytes = job.settings, job.data, job.folder, 0
    if job.has_bank:
        shape = (len(data.train), settings.fine_tuning.num_teacher, *job.output_shape)
        bank_bytes = math.prod(shape) * np.dtype(bank_files.dtype_for(job.output_shape)).itemsize
        array = folder / names.BANK / bank_files.ARRAY_FILE
        bank_bytes -= array.stat().st_size if array.exists() else 0
    copies = WEIGHT_FILES + CHECKPOINTS * (1 + settings.recipe.num_slots())
    needed = max(bank_bytes, 0) + copies * 4 * num_params
    free = shutil.disk_usage(folder.path).free
    logger.info("preflight: at most %s bytes to write in %s, %s free", f"{needed:,}", folder.path, f"{free:,}")
    if needed > free:
        raise EkgError(f"{folder.path}: the run needs {needed:,} bytes and {free:,} are free; make room, or name another "
                       "folder.")
