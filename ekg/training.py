"""Epochs of training: batches in, progress and curves out, a checkpoint behind every epoch; copies and statistics."""

import functools
import logging
import math
import time

import keras
import numpy as np
import tensorflow as tf

import op_utils
import utils
from ekg.checkpoints import Checkpoints
from ekg.devices import Team
from ekg.graph import Graph

logger = logging.getLogger(__name__)

CHECKPOINT_MINUTES = 10.0
NUM_STATISTICS_IMAGES = 10_000  # training images that the moving statistics of a cut network are estimated from
AGREEMENT_STEPS = 10  # between two questions of several processes whether one of them was asked to end


def fit(phase, trainer, data, schedule, *, batch_size, seed, folder, num_views=0, split=None, extend=None, team=None,
        checkpoint_minutes=CHECKPOINT_MINUTES):
    """Trains for schedule.epochs epochs; an earlier call of the same phase in this folder is gone on with.

    A checkpoint is written behind every epoch, after `checkpoint_minutes`, and where a signal asks the run to end. Order and
    augmentation are keyed, so a training that went on ends with the same weights as an undisturbed one.

    Args:
        phase: name of the phase in curves and checkpoints.
        trainer: op_utils.Trainer.
        data: dataloader Dataset.
        schedule: op_utils.Schedule.
        batch_size: global batch.
        seed: of order and augmentation.
        folder: run_folder.RunFolder that gets curves.jsonl, TensorBoard events and checkpoints.
        num_views: random views of each image; 0 stands for the images as they are.
        split: Split to train on instead of the training split.
        extend: function from a batch to the entries it gets besides, or None.
        team: devices.Team whose processes train together; None stands for this process alone.
        checkpoint_minutes: between checkpoints within an epoch.

    Raises:
        utils.UserError: all checkpoints of an earlier call are damaged.
        utils.Stopped: a signal asked the run to end, and its checkpoint is written.
    """
    team = team or Team()
    num_steps = len(data.train if split is None else split) // batch_size
    checkpoints = Checkpoints(folder / "checkpoints" / phase, model=trainer.model, optimizer=trainer.optimizer,
                              loss_scale=trainer.loss_scale, good_steps=trainer.good_steps)
    position = checkpoints.restore() or {"epoch": 0, "step": 0, "totals": None}
    if position["epoch"] or position["step"]:
        logger.info("%s: goes on after epoch %d, step %d", phase, position["epoch"], position["step"])
    if position.get("curves"):
        team.on_chief(functools.partial(folder.log_curves, phase, position["epoch"], position["curves"]))
    for epoch in range(position["epoch"], schedule.epochs):
        done, totals = (position["step"], position["totals"]) if epoch == position["epoch"] else (0, None)
        batches = data.epoch(batch_size, seed, epoch, num_views, split, (team.worker, team.num_workers), done)
        if extend is not None:
            batches = (batch | extend(batch) for batch in batches)
        keeper = _Keeper(checkpoints, team, epoch, 60 * checkpoint_minutes)
        with utils.progress_bar(f"{phase} {epoch + 1}/{schedule.epochs}", num_steps, "step") as progress:
            progress.update(done)
            means = train_epoch(trainer, utils.prefetched(batches), schedule, epoch, num_steps, progress,
                                team.num_workers, done, totals, keeper.after_step)
        curves = means | {"learning_rate": schedule(epoch)}
        team.on_chief(functools.partial(checkpoints.save, {"epoch": epoch + 1, "step": 0, "totals": None, "curves": curves}))
        team.on_chief(functools.partial(folder.log_curves, phase, epoch + 1, curves))
        if team.stop_signal():
            utils.check_stopped()


def train_epoch(trainer, batches, schedule, epoch, num_steps, progress, num_workers=1, done=0, totals=None,
                after_step=None):
    """Trains one epoch and returns {name: mean metric} over its steps, "images_per_second" among them.

    Args:
        trainer: Trainer.
        batches: iterable of the batches from step `done` on, of each this process's part.
        schedule: Schedule.
        epoch: number of the epoch, from 0.
        num_steps: number of steps.
        progress: progress bar: gets update(1) and set_postfix(dict) at times.
        num_workers: processes that each train on such a part.
        done: steps of the epoch that were done before.
        totals: {name: sum of the metric} over these steps.
        after_step: function (steps done, {name: scalar tensor of the sum}) called after every step, or None.

    Raises:
        FloatingPointError: a term of the loss is not finite; names it.
    """
    start, timed_steps, rate = time.perf_counter(), 0, 0.0
    means = {name: value / done for name, value in (totals or {}).items()}
    report_every = max(1, min(20, num_steps // 10))
    for step, batch in enumerate(batches, done):
        metrics = trainer.step(batch, schedule(epoch + step / num_steps))
        totals = metrics if totals is None else {name: totals[name] + value for name, value in metrics.items()}
        size = len(batch["labels"]) * num_workers
        if step == done:  # the first step is traced: leave it out of the throughput
            tf.nest.map_structure(lambda value: value.numpy(), metrics)
            start = time.perf_counter()
        else:
            timed_steps += 1
        progress.update(1)
        if step % report_every == 0 or step == num_steps - 1:
            means = {name: float(value) / (step + 1) for name, value in totals.items()}
            broken = [name for name, value in means.items() if not np.isfinite(value)]
            if broken:
                raise FloatingPointError(f"{', '.join(broken)} became non-finite in epoch {epoch + 1}, at or shortly "
                                         f"before step {step + 1} of {num_steps}; lower the learning rate.")
            rate = timed_steps * size / max(time.perf_counter() - start, 1e-9) if timed_steps else 0.0
            progress.set_postfix({"loss": f"{means['loss']:.4f}", "top1": f"{100 * means.get('top1', 0):.2f}%",
                                  "images/s": f"{rate:.0f}"})
        if after_step is not None:
            after_step(step + 1, totals)
    return {**means, "images_per_second": rate}


class _Keeper:
    """Writes a checkpoint within an epoch where the last one is old, or where a signal asked the run to end."""

    def __init__(self, checkpoints, team, epoch, seconds):
        self._checkpoints, self._team, self._epoch, self._seconds = checkpoints, team, epoch, seconds
        self._last = time.monotonic()

    def after_step(self, done, totals):
        """Raises utils.Stopped behind a checkpoint if a process got a signal; several ask each other only now and then."""
        asks = self._team.num_workers == 1 or done % AGREEMENT_STEPS == 0
        if asks and self._team.stop_signal():
            self._team.on_chief(functools.partial(self._save, done, totals))
            utils.check_stopped()
        if self._team.is_chief and time.monotonic() - self._last >= self._seconds:
            self._save(done, totals)

    def _save(self, done, totals):
        totals = {name: float(value) for name, value in totals.items()}
        if all(map(math.isfinite, totals.values())):  # else the last good checkpoint stays
            self._checkpoints.save({"epoch": self._epoch, "step": done, "totals": totals})
        self._last = time.monotonic()


def copy_model(model, strategy):
    """Returns a copy of a model with its weights, created under the strategy's scope."""
    with strategy.scope():
        copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def estimate_statistics_(model, data, batch_size, jit=False):
    """Sets the moving statistics of a cut network to those of training images as they are.

    Args:
        model: keras.Model.
        data: dataloader Dataset.
        batch_size: images that share batch statistics, at most.
        jit: whether to compile with XLA.
    """
    edges = op_utils.even_batches(min(NUM_STATISTICS_IMAGES, len(data.train)), batch_size)
    images = map(data.normalise, data.train.stream([np.arange(*edge) for edge in edges]))
    op_utils.reestimate_statistics_(model, images, Graph(model).stateless_call, jit)
