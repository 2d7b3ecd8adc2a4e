"""Resolves the precision "auto" by timing a training step in each number format."""

import dataclasses
import logging
import statistics
import time

from ekg.data.dataset import TrainingBatches
from ekg.devices import kind
from ekg.devices.compute import AUTO_FORMAT
from ekg.distil import losses
from ekg.run.job import out_of_memory
from ekg.train.step import Trainer

logger = logging.getLogger(__name__)

ROUNDS = 5
GAIN = 1.05  # how many times as fast a step must be for its rounding to be worth it


def resolved(job, starts_anew=False):
    """Returns a Job that knows its number format: a run that resumes keeps its own, a new one takes
    the faster one.

    Args:
        job: Job; it is returned as it is unless its precision is AUTO_FORMAT.
        starts_anew: whether a run that is in the folder does not count.
    """
    if job.settings.run.precision != AUTO_FORMAT:
        return job
    known = None
    if not starts_anew and job.team.as_chief_sees(job.folder.holds_run()):
        known = job.team.from_chief(lambda: job.folder.arguments().get("precision"))
    return _with_precision(job, known or _fastest(job))


def _fastest(job):
    """Returns the number format in which a training step takes less time."""
    if "no" in job.team.gather_texts("yes" if kind.has_bfloat16() else "no"):
        logger.info("precision float32: there are no instructions for bfloat16")
        return "float32"
    with out_of_memory("fine-tune"):
        seconds = measure_steps(job, ("float32", "bfloat16"))
    chosen = "bfloat16" if seconds["float32"] >= GAIN * seconds["bfloat16"] else "float32"
    logger.info(
        "precision %s: a training step takes %s",
        chosen,
        ", ".join(f"{value:.3g} s in {dtype}" for dtype, value in seconds.items()),
    )
    return job.team.from_chief(lambda: chosen)


def measure_steps(job, dtypes):
    """Returns {number format: median seconds of a training step of the unpruned network}, taken in
    turn.
    """
    tuning, team = job.settings.fine_tuning, job.team
    batches = TrainingBatches(
        job.data, tuning.batch_size, job.settings.run.seed, num_views=1, phase="precision"
    )
    batch = next(batches.epoch(0, team.shard))
    trainers = {
        dtype: Trainer(
            team.strategy,
            job.copy(job.model),
            losses.baseline(job.data),
            weight_decay=0.0,
            options=_with_precision(job, dtype).step_options,
            divisor=job.data.task.scale(job.data.train.labels),
        )
        for dtype in dtypes
    }
    seconds = {dtype: [] for dtype in dtypes}
    for number in range(ROUNDS + 1):
        for dtype, trainer in trainers.items():
            start = time.perf_counter()
            float(trainer.step(batch, 0.0)["loss"])
            if number:  # the first ones trace and compile
                seconds[dtype].append(time.perf_counter() - start)
    return {dtype: statistics.median(values) for dtype, values in seconds.items()}


def _with_precision(job, dtype):
    run = dataclasses.replace(job.settings.run, precision=dtype)
    return dataclasses.replace(
        job,
        settings=dataclasses.replace(job.settings, run=run),
        compute=dataclasses.replace(job.compute, dtype=dtype),
    )
