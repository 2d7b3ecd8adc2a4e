"""Epochs of training: batches in, progress and curves out, a checkpoint behind every epoch."""

import functools
import logging
import math
import time

import keras

import op_utils
import utils
from ekg.checkpoints import Checkpoints
from ekg.devices import Team

logger = logging.getLogger(__name__)

CHECKPOINT_MINUTES = 10.0
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
    if position.get("curves") and team.is_chief:
        folder.log_curves(phase, position["epoch"], position["curves"])
    for epoch in range(position["epoch"], schedule.epochs):
        done, totals = (position["step"], position["totals"]) if epoch == position["epoch"] else (0, None)
        batches = data.epoch(batch_size, seed, epoch, num_views, split, (team.worker, team.num_workers), done)
        if extend is not None:
            batches = (batch | extend(batch) for batch in batches)
        keeper = _Keeper(checkpoints, team, epoch, 60 * checkpoint_minutes)
        with utils.progress_bar(f"{phase} {epoch + 1}/{schedule.epochs}", num_steps, "step") as progress:
            progress.update(done)
            means = op_utils.train_epoch(trainer, utils.prefetched(batches), schedule, epoch, num_steps, progress,
                                         team.num_workers, done, totals, keeper.after_step)
        curves = means | {"learning_rate": schedule(epoch)}
        team.on_chief(functools.partial(checkpoints.save, {"epoch": epoch + 1, "step": 0, "totals": None, "curves": curves}))
        if team.is_chief:
            folder.log_curves(phase, epoch + 1, curves)
        if number := team.stop_signal():
            raise utils.Stopped(number)


class _Keeper:
    """Writes a checkpoint within an epoch where the last one is old, or where a signal asked the run to end."""

    def __init__(self, checkpoints, team, epoch, seconds):
        self._checkpoints, self._team, self._epoch, self._seconds = checkpoints, team, epoch, seconds
        self._last = time.monotonic()

    def after_step(self, done, totals):
        """Raises utils.Stopped behind a checkpoint if a process got a signal; several ask each other only now and then."""
        asks = self._team.num_workers == 1 or done % AGREEMENT_STEPS == 0
        number = self._team.stop_signal() if asks else 0
        if number:
            self._team.on_chief(functools.partial(self._save, done, totals))
            raise utils.Stopped(number)
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
