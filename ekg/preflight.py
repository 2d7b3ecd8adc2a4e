"""Before the first long phase: one step of every phase, and room on disk, so that a run of days does not fail on its
last one."""

import logging
import math
import shutil
import time

import numpy as np

import op_utils
import utils
from ekg import importance, landscape, losses, memory_bank, training
from ekg.graph import Graph
from ekg.objective import Objective

logger = logging.getLogger(__name__)

WEIGHT_FILES = 3  # parameter files of a run, at most
CHECKPOINT_COPIES = 2 * 3  # weights and momentum of the last two checkpoints and of the one that is being written


def run(settings, data, strategy, team, folder, model, makers, make_supernet):
    """Runs one step of every phase to come on the unpruned network, which needs the most memory, and checks the disk.

    Args:
        settings: pipeline.Settings.
        data: dataloader Dataset.
        strategy: tf.distribute.Strategy.
        team: devices.Team.
        folder: pathlib.Path of the run folder.
        model: the unpruned keras.Model; it stays as it is.
        makers: {phase: function from a copy of the model to its op_utils.Trainer, as the run makes it} of the phases
            "baseline", "subset" and "fine-tune" that the run has before it.
        make_supernet: model -> Supernet, as the run makes it; None where the search is done.

    Raises:
        utils.UserError: the disk has no room, or data cannot be read.
    """
    start = time.perf_counter()
    team.on_chief(lambda: check_disk(settings, data, folder, model.count_params()))
    copy = training.copy_model(model, strategy)
    for phase, make_trainer in makers.items():
        _check_finite(phase, make_trainer(copy).step(_first_batch(phase, settings, data, team), 0.0))
        utils.check_stopped()
    if make_supernet is not None:
        _search_step(settings, data, team, make_supernet(model))
    sample = data.test.take(np.arange(min(settings.val_batch_size, len(data.test))))
    op_utils.evaluate(strategy, copy, sample, data.normalise, settings.val_batch_size, forward=Graph(copy).stateless_call,
                      jit=settings.jit, shard=(team.worker, team.num_workers))
    logger.info("preflight: one step of every phase ran, %.1f s", time.perf_counter() - start)


def check_disk(settings, data, folder, num_params):
    """Logs the bytes a run writes and those that are free.

    Raises:
        utils.UserError: it needs more than there are.
    """
    bank = 0
    if settings.finetune_teacher == "ensemble":
        bank = len(data.train) * settings.num_teacher * data.num_classes * _bank_dtype(data).itemsize
        array = folder / "memory_bank" / memory_bank.ARRAY_FILE
        bank -= array.stat().st_size if array.exists() else 0
    needed, free = max(bank, 0) + (WEIGHT_FILES + CHECKPOINT_COPIES) * 4 * num_params, shutil.disk_usage(folder).free
    logger.info("preflight: at most %s bytes to write in %s, %s free", f"{needed:,}", folder, f"{free:,}")
    if needed > free:
        raise utils.UserError(f"{folder}: the run needs {needed:,} bytes and {free:,} are free; make room, or name another "
                              "--train_path.")


def _bank_dtype(data):
    return np.dtype(memory_bank.dtype_for(data.num_classes))


def _first_batch(phase, settings, data, team):
    """Returns a batch of the phase; rows of a memory bank that is not there yet are zeros."""
    if phase == "subset":
        subset = data.first_of_each_class(settings.subset_per_class, settings.seed)
        return next(data.epoch(settings.search_batch_size, 0, 0, split=subset))
    num_views = losses.NUM_VIEWS if phase == "fine-tune" else 1
    batch = next(data.epoch(settings.fine_tuning.batch_size, 0, 0, num_views, shard=(team.worker, team.num_workers)))
    if phase == "fine-tune" and settings.finetune_teacher == "ensemble":
        batch["bank"] = np.zeros((len(batch["labels"]), settings.num_teacher, data.num_classes), _bank_dtype(data))
    return batch


def _check_finite(phase, metrics):
    broken = [name for name, value in metrics.items() if not math.isfinite(float(value))]
    if broken:
        raise FloatingPointError(f"{', '.join(broken)} of the first step of phase {phase} is not finite; are the weights "
                                 "those of a trained network?")


def _search_step(settings, data, team, supernet):
    """Runs importance, one candidate, the knowledge, and what is asked of the landscape on the first batch of D_val."""
    size = settings.search_batch_size // settings.accum
    split = data.last_of_each_class(settings.val_per_class, settings.seed)
    split = split.take(np.arange(min(size, len(split))))
    objective = Objective(supernet, split, data.normalise, batch_size=size, teacher=settings.search_teacher,
                          jit=settings.jit, team=team)
    whole = supernet.whole()
    objective.learn(whole)
    scores = importance.CRITERIA[settings.criterion](objective, whole)
    result = objective.scores(whole, [(0, whole.with_width(0, 0.5))])[0]
    _check_finite("search", {"reward": result.reward, "importance": scores.sum()})
    if settings.reward == "condition_number" or settings.log_condition:
        scene = landscape.of_subnetwork(supernet, whole, split, data.normalise, batch_size=size, jit=settings.jit)
        _check_finite("search", {"Hessian-vector product": scene.product(np.ones(scene.dimension)).sum()})
