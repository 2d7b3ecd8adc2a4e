"""One function per phase of the method, for whole jobs and for programs that go step by step.

    data = ekg.make_data(model, (images, labels))
    supernet = ekg.Supernet(model)
    result = ekg.search(supernet, data, target_rate=0.5)
    bank = ekg.build_bank("bank", supernet, result.history, data)
    smaller = ekg.slim(supernet, result.subnetwork, data)
    ekg.fine_tune(smaller, data, bank, epochs=20)

The network must return what the task takes, for a classification logits; `ekg.prune` also takes a
softmax off.
"""

import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from ekg.data.dataset import LabelledData, TrainingBatches, mixed_order
from ekg.devices.compute import Compute
from ekg.distil import bank as banks
from ekg.distil import losses
from ekg.distil.bank import MemoryBank
from ekg.distil.settings import FineTuneSettings
from ekg.distil.slim import cut_with_statistics, restore_norms_
from ekg.errors import EkgError
from ekg.graph.execute import pure_forward
from ekg.graph.layer_losses import warn_of_weight_decay
from ekg.network.subnetwork import Subnetwork
from ekg.network.supernet import Supernet
from ekg.process.progress import progress_bar
from ekg.run.folder import RunFolder
from ekg.searching.history import HistoryEntry
from ekg.searching.settings import SearchSettings
from ekg.train.batch_norm_statistics import fit_statistics_
from ekg.train.loop import fit
from ekg.train.optimizers import Recipe
from ekg.train.step import Schedule, StepOptions, Trainer

logger = logging.getLogger(__name__)


# ---------------------------------------------------------------- trainings


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """A training that may begin, or resume.

    Attributes:
        phase: its name in curves and checkpoints.
        trainer: step.Trainer.
        batches: data.TrainingBatches.
        schedule: function from the epoch to the learning rate, with the attribute `epochs`.
    """

    phase: str
    trainer: Trainer
    batches: TrainingBatches
    schedule: Any

    def run(self, folder, team=None, **options):
        """Trains to the end, from the last checkpoint in the folder if there is one.

        Args:
            folder: RunFolder of curves and checkpoints.
            team: Team whose processes train together; None means this process alone.
            options: further arguments of loop.fit().

        Raises:
            EkgError, FloatingPointError, Stopped: see loop.fit().
        """
        fit(
            self.phase,
            self.trainer,
            self.batches,
            self.schedule,
            folder=folder,
            team=team,
            **options,
        )
        self.trainer.finish()


def warm_up(strategy, model, data, subset, search_batch_size, *, weight_decay, seed, options):
    """Returns the Training before the search, step 0: an epoch on D_subset with labels alone.

    Moving statistics stay as they are.

    Args:
        strategy: tf.distribute.Strategy of one device: the statistics of a batch are then those of
            the whole batch, so that every search starts from the same weights.
        model: keras.Model made under the strategy; it is trained in place.
        data: data set.
        subset: SubsetSettings.
        search_batch_size: images of a batch.
        weight_decay: factor.
        seed: of the choice of images, their order and their views.
        options: step.StepOptions.
    """
    trainer = Trainer(
        strategy,
        model,
        losses.plain(data),
        weight_decay=weight_decay,
        update_statistics=False,
        options=options,
        divisor=data.task.scale(data.train.labels),
    )
    batches = TrainingBatches(
        data,
        search_batch_size,
        seed,
        split=data.first_of_each_class(subset.subset_per_class, seed),
        phase="subset",
        even_pieces=options.accum,
    )
    schedule = Schedule(
        subset.subset_learning_rate, (), 1.0, epochs=1, setting="subset_learning_rate"
    )
    return Training("subset", trainer, batches, schedule)


def fine_tuning(
    strategy, model, data, settings, recipe=None, *, knowledge=None, seed=0, options=None
):
    """Returns the Training after the search.

    Args:
        strategy: tf.distribute.Strategy.
        model: keras.Model made under the strategy; it is trained in place.
        data: data set.
        settings: FineTuneSettings.
        recipe: optimizers.Recipe; None means the published one.
        knowledge: MemoryBank for the teacher "ensemble", the unpruned keras.Model for "single".
            Without a bank its rows are expected in the batches, as "bank".
        seed: of order and views.
        options: step.StepOptions.
    """
    recipe = recipe or Recipe()
    is_single = settings.finetune_teacher == "single"
    num_views = settings.views_of(data)
    loss_fn = losses.fine_tuning(
        data,
        settings.finetune_teacher,
        settings.temperature,
        pure_forward(knowledge) if is_single else None,
        settings.label_smoothing,
        num_views,
    )
    trainer = Trainer(
        strategy,
        model,
        loss_fn,
        weight_decay=recipe.decay(settings),
        options=options,
        constants=knowledge if is_single else (),
        divisor=data.task.scale(data.train.labels),
        make_optimizer=recipe.make_optimizer,
    )
    complete = None
    if knowledge is not None and not is_single:

        def complete(batch):
            return {"bank": knowledge.rows(batch["index"])}

    batches = TrainingBatches(
        data, settings.batch_size, seed, num_views, phase="fine-tune", complete=complete
    )
    schedule = recipe.make_schedule(settings, batches.num_steps)
    return Training("fine-tune", trainer, batches, schedule)


# ---------------------------------------------------------------- phases one by one


def slim(
    supernet: Supernet,
    subnetwork: Subnetwork,
    data: LabelledData,
    *,
    repair: bool = False,
    compute: Compute | None = None,
    search_batch_size: int = SearchSettings.search_batch_size,
) -> keras.Model:
    """Returns the network that fine-tuning starts from: cut out, with moving statistics of its own,
    its kernels at their former norm.

    Args:
        supernet: the Supernet.
        subnetwork: the Subnetwork.
        data: data set whose training images the statistics are estimated from.
        repair: whether kernels are fitted to the unpruned network by least squares; see ekg.repair.
            That is undone where it raises the loss on the images that the search evaluates on.
        compute: Compute; None means the default device.
        search_batch_size: images that share the statistics of batch norms, at most.
    """
    val_batches = None
    if repair:
        val = data.last_of_each_class(SearchSettings.val_per_class, 0)
        val_batches = data.batches(val, min(search_batch_size, len(val)))
    batches = _train_batches(data, search_batch_size)
    model = cut_with_statistics(supernet, subnetwork, batches, compute, val_batches)
    restore_norms_(model, supernet.graph)
    return model


def build_bank(
    folder: str | Path,
    supernet: Supernet,
    history: Sequence[HistoryEntry],
    data: LabelledData,
    *,
    num_teacher: int = FineTuneSettings.num_teacher,
    compute: Compute | None = None,
    search_batch_size: int = SearchSettings.search_batch_size,
    sources: Sequence[tuple[str | Path, Sequence[HistoryEntry]]] = (),
) -> MemoryBank:
    """Returns the MemoryBank in a folder; it is built there, or its building resumes.

    Args:
        folder: path of the bank, which is made if it is not there.
        supernet: the Supernet.
        history: of the search, list of HistoryEntry from Θ₀ to Θ*.
        data: data set.
        num_teacher: teachers that are chosen from the history, K.
        compute: Compute; None means float32 on the default device.
        search_batch_size: images that share the statistics of batch norms, at most.
        sources: pairs of the folder of another bank and the history of its search, computed with
            the same Compute: logits of teachers that are in it are copied instead of computed.

    Raises:
        EkgError: the folder cannot be written, the disk has no room, or another bank is there.
        FloatingPointError: outputs of a teacher are not finite.
    """
    steps = banks.select_teachers([entry.loss for entry in history], num_teacher)
    teachers = [history[step] for step in steps]
    logger.info(
        "teachers: %s", ", ".join(f"Θ{entry.step} (loss {entry.loss:.4f})" for entry in teachers)
    )
    batches, folder = _train_batches(data, search_batch_size), Path(folder)
    with progress_bar("bank", len(teachers) * len(data.train), "image") as progress:
        banks.build_bank(folder, supernet, teachers, batches, compute, progress, sources)
    return banks.open_bank(folder, batches)


def fine_tune(
    model: keras.Model,
    data: LabelledData,
    bank: MemoryBank | None = None,
    *,
    epochs: int,
    teacher: keras.Model | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    compute: Compute | None = None,
    search_batch_size: int = SearchSettings.search_batch_size,
    **settings: Any,
) -> keras.Model:
    """Trains a network in place with its labels and what a memory bank or a teacher knows, and
    returns it.

    Args:
        model: keras.Model, as slim() returns.
        data: data set.
        bank: MemoryBank, or None.
        epochs: length of the training.
        teacher: keras.Model that teaches each view in place of a bank, or None.
        folder: folder of curves and checkpoints, from which the same call resumes; None keeps
            nothing.
        seed: of order and views.
        compute: Compute; None means float32 on the default device.
        search_batch_size: images that share the statistics of batch norms, at most, where their
            moving statistics are estimated in the end.
        settings: further ones of FineTuneSettings: learning_rate, decay_points, decay_rate,
            warmup_epoch, weight_decay, label_smoothing, temperature, batch_size, num_views; and
            `optimizer` and `schedule`, see ekg.prune.

    Raises:
        EkgError: a setting is unknown or wrong.
        FloatingPointError: a term of the loss is not finite.
    """
    compute = compute or Compute()
    recipe, given = Recipe.take(settings)
    made = FineTuneSettings.make(
        {
            "batch_size": min(FineTuneSettings.batch_size, len(data.train)),
            **given,
            "train_epoch": epochs,
            "finetune_teacher": _teacher_name(bank, teacher),
        }
    )
    warn_of_weight_decay(model, recipe.decay(made))
    training = fine_tuning(
        compute.team.strategy,
        model,
        data,
        made,
        recipe,
        knowledge=teacher if bank is None else bank,
        seed=seed,
        options=StepOptions(1, compute.use_xla, compute.dtype),
    )
    with tempfile.TemporaryDirectory(prefix="ekg-") as temporary:
        training.run(_folder(folder or temporary), compute.team)
    fit_statistics_(model, _train_batches(data, search_batch_size), compute.use_xla)
    return model


def _teacher_name(bank, teacher):
    """Returns which of FINETUNE_TEACHERS there is."""
    if bank is not None and teacher is not None:
        raise EkgError("`bank` and `teacher` exclude each other; leave one out.")
    if teacher is not None and not isinstance(teacher, keras.Model):
        raise EkgError(f"`teacher` must be a keras.Model; received {type(teacher).__name__}.")
    if teacher is not None:
        return "single"
    return "none" if bank is None else "ensemble"


def _folder(path):
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EkgError(f"`folder` {path}: cannot be written ({error.strerror}).") from None
    return RunFolder(path)


def _train_batches(data, batch_size):
    """Returns the data.Batches of the training images as they are, all classes mixed."""
    return data.batches(data.train, min(batch_size, len(data.train)), mixed_order(data.strata))
