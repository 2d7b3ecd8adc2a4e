"""Epochs of training: batches in, progress and curves out, a checkpoint behind every epoch."""

import functools
import logging

import keras
import tensorflow as tf

import op_utils
import utils
from ekg.devices import Team

logger = logging.getLogger(__name__)


def fit(phase, trainer, data, schedule, *, batch_size, seed, folder, num_views=0, split=None, extend=None, team=None):
    """Trains for schedule.epochs epochs; an earlier call of the same phase in this folder is gone on with.

    Args:
        phase: name of the phase in curves and checkpoints.
        trainer: op_utils.Trainer.
        data: dataloader Dataset.
        schedule: op_utils.Schedule.
        batch_size: global batch.
        seed: of order and augmentation.
        folder: utils.RunFolder that gets curves.jsonl, TensorBoard events and checkpoints.
        num_views: random views of each image; 0 stands for the images as they are.
        split: Split to train on instead of the training split.
        extend: function from a batch to the entries it gets besides, or None.
        team: devices.Team whose processes train together; None stands for this process alone.

    Raises:
        utils.UserError: the checkpoint of an earlier call is damaged.
    """
    team = team or Team()
    num_steps = len(data.train if split is None else split) // batch_size
    epochs_done = tf.Variable(0, dtype=tf.int64)
    checkpoint = tf.train.Checkpoint(model=trainer.model, optimizer=trainer.optimizer, epochs_done=epochs_done,
                                     loss_scale=trainer.loss_scale, good_steps=trainer.good_steps)
    manager = tf.train.CheckpointManager(checkpoint, str(folder / "checkpoints" / phase), max_to_keep=2)
    if manager.latest_checkpoint:
        try:
            checkpoint.restore(manager.latest_checkpoint).expect_partial()
        except (tf.errors.OpError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise utils.UserError(f"{manager.latest_checkpoint}: the checkpoint is damaged ({reason[:200]}); remove "
                                  f"{folder / 'checkpoints' / phase} to start this phase anew.") from None
        logger.info("%s: goes on after epoch %d", phase, epochs_done.numpy())
    for epoch in range(int(epochs_done), schedule.epochs):
        batches = data.epoch(batch_size, seed, epoch, num_views, split, (team.worker, team.num_workers))
        if extend is not None:
            batches = (batch | extend(batch) for batch in batches)
        batches = utils.prefetched(batches)
        with utils.progress_bar(f"{phase} {epoch + 1}/{schedule.epochs}", num_steps, "step") as progress:
            means = op_utils.train_epoch(trainer, batches, schedule, epoch, num_steps, progress, team.num_workers)
        epochs_done.assign(epoch + 1)
        team.on_chief(functools.partial(manager.save, epoch + 1))
        if team.is_chief:
            folder.log_curves(phase, epoch + 1, means | {"learning_rate": schedule(epoch)})


def copy_model(model, strategy):
    """Returns a copy of a model with its weights, created under the strategy's scope."""
    with strategy.scope():
        copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy
