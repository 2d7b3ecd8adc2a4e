"""The phases of a job one by one, for programs that do what lies between them themselves.

    data = ekg.make_data(model, (images, labels))
    supernet = ekg.Supernet(model)
    result = ekg.search(supernet, data, target_rate=0.5)
    bank = ekg.build_bank("bank", supernet, result.history, data)
    smaller = ekg.slim(supernet, result.subnetwork, data)
    ekg.fine_tune(smaller, data, bank, epochs=20)

The network must return what the task takes, of a classification logits; `ekg.prune` also takes a
softmax off.
"""

import tempfile
from pathlib import Path

from ekg.data.dataset import TrainingBatches, mixed_order
from ekg.devices.compute import Compute
from ekg.distil import bank as banks
from ekg.distil import losses
from ekg.distil import slim as slimming
from ekg.errors import EkgError
from ekg.graph.layer_losses import warn_of_weight_decay
from ekg.process.progress import progress_bar
from ekg.run.folder import RunFolder
from ekg.settings import FineTuneSettings, SearchSettings
from ekg.train.loop import fit
from ekg.train.optimizers import Recipe
from ekg.train.step import StepOptions, Trainer

BATCH_SIZE = 256  # images that share the statistics of batch norms, at most


def slim(supernet, subnetwork, data, *, repair=False, compute=None):
    """Returns the network that fine-tuning starts from: cut out, with moving statistics, its
    kernels at their former norm.

    Args:
        supernet: the Supernet.
        subnetwork: the Subnetwork.
        data: data set whose training images the statistics are estimated from.
        repair: whether kernels are fitted to the unpruned network by least squares; see ekg.repair.
            That is undone where it raises the loss on the images that the search evaluates on.
        compute: Compute; None stands for the default device.
    """
    val_batches = None
    if repair:
        val = data.last_of_each_class(SearchSettings.val_per_class, 0)
        val_batches = data.batches(val, min(BATCH_SIZE, len(val)))
    return slimming.slim(supernet, subnetwork, _batches(data), compute, val_batches=val_batches)


def build_bank(folder, supernet, history, data, *, num_teacher=5, compute=None):
    """Returns the MemoryBank in a folder; it is built there, or its building goes on.

    Args:
        folder: path of the bank, which is made if it is not there.
        supernet: the Supernet.
        history: of the search, list of HistoryEntry from Θ₀ to Θ*.
        data: data set.
        num_teacher: teachers that are chosen of the history, K.
        compute: Compute; None stands for float32 on the default device.

    Raises:
        EkgError: the folder cannot be written, the disk has no room, or another bank is there.
        FloatingPointError: outputs of a teacher are not finite.
    """
    teachers = [
        history[step]
        for step in banks.select_teachers([entry.loss for entry in history], num_teacher)
    ]
    batches, folder = _batches(data), Path(folder)
    with progress_bar("bank", len(teachers) * len(data.train), "image") as progress:
        banks.build_bank(folder, supernet, teachers, batches, compute, progress)
    return banks.open_bank(folder, batches)


def fine_tune(model, data, bank=None, *, epochs, folder=None, seed=0, compute=None, **settings):
    """Trains a network in place with its labels and the knowledge of a memory bank, and returns it.

    Args:
        model: keras.Model, as slim() gives.
        data: data set.
        bank: MemoryBank, or None for the labels alone.
        epochs: of the training.
        folder: of curves and checkpoints, from which the same call goes on; None keeps nothing.
        seed: of order and views.
        compute: Compute; None stands for float32 on the default device.
        settings: further ones of FineTuneSettings: learning_rate, decay_points, decay_rate,
            warmup_epoch, weight_decay, label_smoothing, temperature, batch_size, num_views; and
            `optimizer` and `schedule`, see ekg.prune.

    Raises:
        EkgError: a setting is unknown or wrong.
        FloatingPointError: a term of the loss is not finite.
    """
    teacher, compute = "none" if bank is None else "ensemble", compute or Compute()
    given = {"batch_size": min(FineTuneSettings.batch_size, len(data.train)), **settings}
    recipe, given = Recipe.take(given)
    made = FineTuneSettings.make({**given, "train_epoch": epochs, "finetune_teacher": teacher})
    num_views = made.views_of(data)
    loss_fn = losses.fine_tuning(
        data, teacher, made.temperature, None, made.label_smoothing, num_views
    )
    warn_of_weight_decay(model, recipe.decay(made))
    trainer = Trainer(
        compute.team.strategy,
        model,
        loss_fn,
        weight_decay=recipe.decay(made),
        options=StepOptions(1, compute.use_xla, compute.dtype),
        divisor=data.task.scale(data.train.labels),
        make_optimizer=recipe.make_optimizer,
    )
    complete = None if bank is None else lambda batch: {"bank": bank.rows(batch["index"])}
    batches = TrainingBatches(
        data, made.batch_size, seed, num_views, phase="fine-tune", complete=complete
    )
    schedule = recipe.make_schedule(made, batches.num_steps)
    with tempfile.TemporaryDirectory(prefix="ekg-") as temporary:
        fit(
            "fine-tune",
            trainer,
            batches,
            schedule,
            folder=_folder(folder or temporary),
            team=compute.team,
        )
    trainer.finish()
    slimming.fit_statistics_(model, _batches(data), compute.use_xla)
    return model


def _folder(path):
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EkgError(f"`folder` {path}: cannot be written ({error.strerror}).") from None
    return RunFolder(path)


def _batches(data):
    """Returns the data.Batches of the training images as they are, all classes mixed."""
    return data.batches(data.train, min(BATCH_SIZE, len(data.train)), mixed_order(data.strata))
