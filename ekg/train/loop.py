"""The training loop: epochs, progress, curves, and a checkpoint after every epoch."""

import functools
import logging
import math
import time

import numpy as np
import tensorflow as tf

from ekg.data.dataset import prefetched
from ekg.devices.team import Team
from ekg.process import stopping
from ekg.process.progress import progress_bar
from ekg.tasks.metrics import has_metric, metric_named
from ekg.train.checkpoints import Checkpoints

logger = logging.getLogger(__name__)

CHECKPOINT_MINUTES = 10.0  # between two checkpoints within an epoch
AGREEMENT_STEPS = 10  # between two exchanges of several processes whether any has to stop


def fit(
    phase,
    trainer,
    batches,
    schedule,
    *,
    folder,
    team=None,
    checkpoint_minutes=CHECKPOINT_MINUTES,
    measure=None,
):
    """Trains for schedule.epochs epochs; resumes an earlier call of this phase in this folder.

    A checkpoint is written after every epoch, every `checkpoint_minutes`, and when a signal
    requests a stop. Order and augmentation are keyed, so a resumed training ends with the same
    weights as an uninterrupted one.

    Args:
        phase: name of the phase in curves and checkpoints.
        trainer: step.Trainer.
        batches: data.TrainingBatches.
        schedule: step.Schedule.
        folder: run.folder.RunFolder for curves, TensorBoard events and checkpoints.
        team: Team whose processes train together; None for this process alone.
        checkpoint_minutes: minutes between checkpoints within an epoch.
        measure: function from the number of finished epochs to {name: number}, which is added to
            the curves; or None.

    Raises:
        EkgError: all checkpoints of an earlier call are damaged.
        FloatingPointError: a term of the loss is not finite.
        Stopped: a signal requested a stop; a checkpoint was written.
    """
    team = team or Team()
    checkpoints = Checkpoints(
        folder.checkpoints(phase),
        model=trainer.model,
        optimizer=trainer.optimizer,
        loss_scale=trainer.loss_scale,
        good_steps=trainer.good_steps,
    )
    position = checkpoints.restore() or {"epoch": 0, "step": 0, "totals": None}
    if position["epoch"] or position["step"]:
        logger.info(
            "%s: resumes after epoch %d, step %d", phase, position["epoch"], position["step"]
        )
    if position.get("curves"):
        # The earlier call may have stopped between its checkpoint and the curves.
        team.on_chief(
            functools.partial(folder.log_curves, phase, position["epoch"], position["curves"])
        )
    num_steps = batches.num_steps
    for epoch in range(position["epoch"], schedule.epochs):
        done = 0
        totals = None
        if epoch == position["epoch"]:
            done = position["step"]
            totals = position["totals"]
        keeper = _Keeper(checkpoints, team, epoch, 60 * checkpoint_minutes)
        with progress_bar(f"{phase} {epoch + 1}/{schedule.epochs}", num_steps, "step") as progress:
            progress.update(done)
            meter = EpochMeter(
                epoch, num_steps, team.num_workers, progress, done, totals, schedule.setting
            )
            epoch_batches = prefetched(batches.epoch(epoch, team.shard, done))
            means = train_epoch(trainer, epoch_batches, schedule, meter, keeper.after_step)
            keeper.after_epoch(meter.done, meter.totals)
            measured = measure(epoch + 1) if measure is not None else {}
            meter.show(measured)
        curves = means | measured | {"learning_rate": schedule(epoch)}
        next_position = {"epoch": epoch + 1, "step": 0, "totals": None, "curves": curves}
        team.on_chief(functools.partial(checkpoints.save, next_position))
        team.on_chief(functools.partial(folder.log_curves, phase, epoch + 1, curves))
        if team.stop_signal():
            stopping.check()


def train_epoch(trainer, batches, schedule, meter, after_step=None):
    """Trains one epoch and returns {name: mean metric}, with "images_per_second" among them.

    Args:
        trainer: step.Trainer.
        batches: iterable over this process's part of the batches, beginning with step meter.done.
        schedule: step.Schedule.
        meter: EpochMeter.
        after_step: function (number of steps done, {name: sum as scalar tensor}) that is called
            after every step, or None.

    Raises:
        FloatingPointError: a term of the loss is not finite; the message names it.
    """
    for batch in batches:
        metrics = trainer.step(batch, schedule(meter.epoch + meter.done / meter.num_steps))
        meter.add(metrics, len(batch["labels"]))
        if after_step is not None:
            after_step(meter.done, meter.totals)
    return meter.means | {"images_per_second": meter.images_per_second}


class EpochMeter:
    """Sums the metrics of an epoch, and shows its progress and speed.

    Attributes:
        epoch: number of the epoch, from 0.
        num_steps: number of steps in the epoch.
        done: number of steps that are done.
        totals: {name: sum of the metric over these steps}, scalar tensors; None before the first.
        means: {name: mean of the metric} at the last report.
        images_per_second: speed of all processes together, without the first step, which is traced.
    """

    def __init__(self, epoch, num_steps, num_workers, progress, done=0, totals=None, setting=None):
        """
        Args:
            epoch: number of the epoch, from 0.
            num_steps: number of steps in the epoch.
            num_workers: number of processes, each of which trains on a part of every batch.
            progress: progress bar with update() and set_postfix().
            done: number of steps of the epoch that an earlier call did.
            totals: {name: sum of the metric} over these steps.
            setting: name of the setting that the learning rate comes from, or None.
        """
        self.epoch = epoch
        self.num_steps = num_steps
        self.done = done
        self.totals = totals
        self.means = {name: value / done for name, value in (totals or {}).items()}
        self.images_per_second = 0.0
        self._num_workers = num_workers
        self._progress = progress
        self._advice = "lower the learning rate" if setting is None else f"lower `{setting}`"
        self._first = done
        self._start = time.perf_counter()
        self._report_every = max(1, min(20, num_steps // 10))

    def add(self, metrics, num_images):
        """Adds the metrics of a step on `num_images` images of this process."""
        if self.totals is None:
            self.totals = metrics
        else:
            self.totals = {name: self.totals[name] + value for name, value in metrics.items()}
        if self.done == self._first:
            tf.nest.map_structure(lambda value: value.numpy(), metrics)  # waits for the first step
            self._start = time.perf_counter()
        self._progress.update(1)
        self.done += 1
        if (self.done - 1) % self._report_every == 0 or self.done == self.num_steps:
            self._report(num_images * self._num_workers)

    def _report(self, batch_size):
        self.means = {name: float(value) / self.done for name, value in self.totals.items()}
        broken = [name for name, value in self.means.items() if not np.isfinite(value)]
        if broken:
            raise FloatingPointError(
                f"{', '.join(broken)} became non-finite in epoch {self.epoch + 1}, at or shortly "
                f"before step {self.done} of {self.num_steps}; {self._advice}."
            )
        timed_steps = self.done - 1 - self._first
        if timed_steps:
            seconds = max(time.perf_counter() - self._start, 1e-9)
            self.images_per_second = timed_steps * batch_size / seconds
        self.show({})

    def show(self, measured):
        """Shows the current means, the measured values and the speed after the progress bar."""
        postfix = {"loss": f"{self.means['loss']:.4f}"}
        for name, value in (self.means | measured).items():
            plain_name = name.removeprefix("val_").removeprefix("test_")
            if has_metric(plain_name):
                metric = metric_named(plain_name)
                postfix[name] = metric.text(value) + ("%" if metric.is_share else "")
        postfix["images/s"] = f"{self.images_per_second:.0f}"
        self._progress.set_postfix(postfix)


class _Keeper:
    """Writes checkpoints within an epoch: at intervals, and when a signal requests a stop."""

    def __init__(self, checkpoints, team, epoch, seconds):
        self._checkpoints = checkpoints
        self._team = team
        self._epoch = epoch
        self._seconds = seconds
        self._last = time.monotonic()

    def after_step(self, done, totals):
        """Writes a checkpoint and raises Stopped if any process was signalled.

        With several workers this is checked every AGREEMENT_STEPS steps.
        """
        is_checked = self._team.num_workers == 1 or done % AGREEMENT_STEPS == 0
        if is_checked and self._team.stop_signal():
            self._team.on_chief(functools.partial(self._save, done, totals))
            stopping.check()
        if self._team.is_chief and time.monotonic() - self._last >= self._seconds:
            self._save(done, totals)

    def after_epoch(self, done, totals):
        """Writes a checkpoint of the epoch and raises Stopped if any process was signalled."""
        if self._team.stop_signal():
            self._team.on_chief(functools.partial(self._save, done, totals))
            stopping.check()

    def _save(self, done, totals):
        totals = {name: float(value) for name, value in totals.items()}
        if all(map(math.isfinite, totals.values())):  # otherwise keep the last good checkpoint
            self._checkpoints.save({"epoch": self._epoch, "step": done, "totals": totals})
        self._last = time.monotonic()
