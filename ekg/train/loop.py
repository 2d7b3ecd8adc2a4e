"""Epochs of training: batches in, progress and curves out, a checkpoint behind every epoch."""

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

CHECKPOINT_MINUTES = 10.0
AGREEMENT_STEPS = (
    10  # between two questions of several processes whether one of them was asked to end
)


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
    """Trains for schedule.epochs epochs; an earlier call of the same phase in this folder is gone
    on with.

    A checkpoint is written behind every epoch, after `checkpoint_minutes`, and where a signal asks
    the run to end. Order and augmentation are keyed, so a training that went on ends with the same
    weights as an undisturbed one.

    Args:
        phase: name of the phase in curves and checkpoints.
        trainer: step.Trainer.
        batches: data.TrainingBatches.
        schedule: step.Schedule.
        folder: run.folder.RunFolder that gets curves, TensorBoard events and checkpoints.
        team: Team whose processes train together; None stands for this process alone.
        checkpoint_minutes: between checkpoints within an epoch.
        measure: function from the number of epochs done to {name: number} that the curves hold
            besides, or None.

    Raises:
        EkgError: all checkpoints of an earlier call are damaged.
        FloatingPointError: a term of the loss is not finite.
        Stopped: a signal asked the run to end, and its checkpoint is written.
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
            "%s: goes on after epoch %d, step %d", phase, position["epoch"], position["step"]
        )
    if position.get("curves"):
        team.on_chief(
            functools.partial(folder.log_curves, phase, position["epoch"], position["curves"])
        )
    for epoch in range(position["epoch"], schedule.epochs):
        done, totals = (
            (position["step"], position["totals"]) if epoch == position["epoch"] else (0, None)
        )
        keeper = _Keeper(checkpoints, team, epoch, 60 * checkpoint_minutes)
        with progress_bar(
            f"{phase} {epoch + 1}/{schedule.epochs}", batches.num_steps, "step"
        ) as progress:
            progress.update(done)
            meter = EpochMeter(
                epoch, batches.num_steps, team.num_workers, progress, done, totals, schedule.setting
            )
            means = train_epoch(
                trainer,
                prefetched(batches.epoch(epoch, team.shard, done)),
                schedule,
                meter,
                keeper.after_step,
            )
            keeper.after_epoch(meter.done, meter.totals)
            measured = measure(epoch + 1) if measure is not None else {}
            meter.show(measured)
        curves = means | measured | {"learning_rate": schedule(epoch)}
        team.on_chief(
            functools.partial(
                checkpoints.save, {"epoch": epoch + 1, "step": 0, "totals": None, "curves": curves}
            )
        )
        team.on_chief(functools.partial(folder.log_curves, phase, epoch + 1, curves))
        if team.stop_signal():
            stopping.check()


def train_epoch(trainer, batches, schedule, meter, after_step=None):
    """Trains one epoch and returns {name: mean metric} over its steps, "images_per_second" among
    them.

    Args:
        trainer: step.Trainer.
        batches: iterable of the batches from step meter.done on, of each this process's part.
        schedule: step.Schedule.
        meter: EpochMeter.
        after_step: function (steps done, {name: scalar tensor of the sum}) called after every step,
            or None.

    Raises:
        FloatingPointError: a term of the loss is not finite; names it.
    """
    for batch in batches:
        metrics = trainer.step(batch, schedule(meter.epoch + meter.done / meter.num_steps))
        meter.add(metrics, len(batch["labels"]))
        if after_step is not None:
            after_step(meter.done, meter.totals)
    return meter.means | {"images_per_second": meter.images_per_second}


class EpochMeter:
    """Sums of the metrics of an epoch, its progress and its speed.

    Attributes:
        epoch: number of the epoch, from 0.
        num_steps: steps of the epoch.
        done: steps that are done.
        totals: {name: sum of the metric over these steps}, scalar tensors; None before the first.
        means: {name: mean of the metric}, as of the last report.
        images_per_second: over all processes; the first step, which is traced, is left out.
    """

    def __init__(self, epoch, num_steps, num_workers, progress, done=0, totals=None, setting=None):
        """
        Args:
            epoch: number of the epoch.
            num_steps: steps of the epoch.
            num_workers: processes that each train on a part of every batch.
            progress: progress bar: gets update(1) and set_postfix(dict) at times.
            done: steps of the epoch that were done before.
            totals: {name: sum of the metric} over these steps.
            setting: name of the setting that the learning rate comes from, or None.
        """
        self.epoch, self.num_steps, self.done, self.totals = epoch, num_steps, done, totals
        self.means = {name: value / done for name, value in (totals or {}).items()}
        self.images_per_second = 0.0
        self._num_workers, self._progress = num_workers, progress
        self._advice = "lower the learning rate" if setting is None else f"lower `{setting}`"
        self._first, self._start = done, time.perf_counter()
        self._report_every = max(1, min(20, num_steps // 10))

    def add(self, metrics, num_images):
        """Takes the metrics of a step on so many images of this process; reports at times."""
        self.totals = (
            metrics
            if self.totals is None
            else {name: self.totals[name] + value for name, value in metrics.items()}
        )
        if self.done == self._first:
            tf.nest.map_structure(lambda value: value.numpy(), metrics)  # the first step is over
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
            self.images_per_second = (
                timed_steps * batch_size / max(time.perf_counter() - self._start, 1e-9)
            )
        self.show({})

    def show(self, measured):
        """Puts the present means, and what was measured besides, behind the progress bar."""
        values = self.means | measured
        own = {name: name.removeprefix("val_").removeprefix("test_") for name in values}
        shown = {name: metric_named(own[name]) for name in values if has_metric(own[name])}
        self._progress.set_postfix(
            {"loss": f"{self.means['loss']:.4f}"}
            | {
                name: metric.text(values[name]) + "%" * metric.is_share
                for name, metric in shown.items()
            }
            | {"images/s": f"{self.images_per_second:.0f}"}
        )


class _Keeper:
    """Writes a checkpoint within an epoch where the last one is old, or where a signal asked the
    run to end.
    """

    def __init__(self, checkpoints, team, epoch, seconds):
        self._checkpoints, self._team, self._epoch, self._seconds = (
            checkpoints,
            team,
            epoch,
            seconds,
        )
        self._last = time.monotonic()

    def after_step(self, done, totals):
        """Raises Stopped behind a checkpoint if a process got a signal; several ask each other only
        now and then.
        """
        asks = self._team.num_workers == 1 or done % AGREEMENT_STEPS == 0
        if asks and self._team.stop_signal():
            self._team.on_chief(functools.partial(self._save, done, totals))
            stopping.check()
        if self._team.is_chief and time.monotonic() - self._last >= self._seconds:
            self._save(done, totals)

    def after_epoch(self, done, totals):
        """Raises Stopped behind a checkpoint of the whole epoch if a process got a signal: all ask
        each other here.
        """
        if self._team.stop_signal():
            self._team.on_chief(functools.partial(self._save, done, totals))
            stopping.check()

    def _save(self, done, totals):
        totals = {name: float(value) for name, value in totals.items()}
        if all(map(math.isfinite, totals.values())):  # else the last good checkpoint stays
            self._checkpoints.save({"epoch": self._epoch, "step": done, "totals": totals})
        self._last = time.monotonic()
