"""What every phase of a pruning job needs, and what a phase is."""

import contextlib
import dataclasses
import functools
import logging
import math
from typing import Any

import numpy as np
import tensorflow as tf

from ekg.data.dataset import mixed_order
from ekg.devices.compute import Compute
from ekg.errors import EkgError
from ekg.run import folder as names
from ekg.run.folder import RunFolder
from ekg.run.networks import Networks
from ekg.settings import JobSettings
from ekg.train.evaluate import Evaluation
from ekg.train.step import StepOptions, Trainer, make_sgd

logger = logging.getLogger(__name__)

_LESS_FOR_SEARCH = "lower `search_batch_size` or raise `accum`"
_LESS_FOR_TRAINING = "lower `batch_size` or raise `accum`"
# What lowers the memory that a phase needs.
LESS_MEMORY = {
    "baseline": _LESS_FOR_TRAINING,
    "subset": _LESS_FOR_SEARCH,
    "search": _LESS_FOR_SEARCH,
    "slim": _LESS_FOR_SEARCH,
    "bank": _LESS_FOR_SEARCH,
    "fine-tune": _LESS_FOR_TRAINING,
    "report": "lower `val_batch_size`",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """What every phase of a pruning job needs.

    Attributes:
        settings: JobSettings.
        data: data.Dataset.
        networks: Networks of the run.
        compute: Compute of training and evaluation. All processes of its team run the same; the
            chief alone writes.
        folder: RunFolder.
    """

    settings: JobSettings
    data: Any
    networks: Networks
    compute: Compute
    folder: RunFolder

    @property
    def team(self):
        return self.compute.team

    @property
    def search_compute(self):
        """Compute of search and memory bank."""
        return dataclasses.replace(self.compute, dtype=self.settings.run.search_precision)

    @property
    def result_names(self):
        """Names of the parameter file and the .keras file that the job ends with."""
        return (
            (names.TRAINED, names.TRAINED_KERAS)
            if self.settings.fine_tunes
            else (names.SLIMMED, names.SLIMMED_KERAS)
        )

    @property
    def handed_out(self):
        """The same of the network that a finished run hands out: where fine-tuning made it worse,
        that before it.
        """
        return (
            (names.SLIMMED, names.SLIMMED_KERAS)
            if self.folder.hands_out_cut()
            else self.result_names
        )

    @property
    def has_bank(self):
        """Whether fine-tuning reads a memory bank."""
        return self.settings.fine_tunes and self.settings.fine_tuning.finetune_teacher == "ensemble"

    @property
    def output_shape(self):
        """Shape of what the networks say of one example."""
        return self.data.task.shape(self.networks.supernet.graph)

    @functools.cached_property
    def loss_divisor(self):
        """What losses are divided by before networks are trained with them; see
        tasks.Task.scale.
        """
        return self.data.task.scale(self.data.train.labels)

    @property
    def images_together(self):
        """Images that share batch statistics in search and bank, at most: those of a
        micro-batch.
        """
        return self.settings.search.search_batch_size // self.settings.run.accum

    @functools.cached_property
    def train_batches(self):
        """data.Batches of the training images as they are, all classes mixed."""
        return self.data.batches(
            self.data.train, self.images_together, mixed_order(self.data.strata)
        )

    @property
    def test_batches(self):
        """data.Batches of the test images."""
        return self.data.batches(self.data.test, self.settings.run.val_batch_size)

    @functools.cached_property
    def val_batches(self):
        """data.Batches of D_val, for evaluations."""
        split = self.data.last_of_each_class(
            self.settings.search.val_per_class, self.settings.run.seed
        ).in_memory()
        return self.data.batches(split, self.settings.run.val_batch_size)

    def val_bytes(self):
        """Returns the bytes of the images of D_val, or 0 where they are read again each time."""
        split = self.data.last_of_each_class(
            self.settings.search.val_per_class, self.settings.run.seed
        )
        size = len(split) * split.read(np.array([0])).nbytes
        return size if size <= getattr(split, "memory_budget", size) else 0

    def curve_measure(self, model):
        """Returns a function from the number of epochs done to what the curves hold of a model in
        training.

        That is loss and accuracy, or the task's first metric, on D_val; and on the test images, for
        the curve alone, after every `test_every` epochs.
        """
        evaluate_val, evaluate_test = (
            Evaluation(model, batches, Compute(self.team, self.compute.use_xla))
            for batches in (self.val_batches, self.test_batches)
        )

        def measure(epochs):
            metrics, first = evaluate_val(), self.data.task.metrics[0]
            measured = {"val_loss": metrics.loss, f"val_{first}": metrics.values[first]}
            every = self.settings.run.test_every
            if every and epochs % every == 0:
                measured[f"test_{first}"] = evaluate_test().values[first]
            return measured

        return measure

    def has(self, name):
        """Returns whether the run folder holds a file, as the chief sees it."""
        return self.team.as_chief_sees(self.folder.has(name))

    def save(self, model, name):
        self.team.on_chief(lambda: self.networks.save(model, self.folder / name))

    def load(self, path, subnetwork=None):
        """Returns the network in a file, made under the team's strategy; see Networks.load."""
        with self.team.strategy.scope():
            return self.networks.load(path, subnetwork)

    def copy(self, model, strategy=None):
        """Returns a copy of a network made under a strategy; None stands for the team's."""
        with (strategy or self.team.strategy).scope():
            return self.networks.copy(model)

    def make_trainer(self, model, loss_fn, weight_decay, constants=(), make_optimizer=make_sgd):
        """Returns a Trainer on all devices, in the precision asked for; see there."""
        run = self.settings.run
        sync_norms = run.sync_bn and self.team.size > 1
        if sync_norms and self.compute.use_xla:
            logger.warning("the training step runs uncompiled, as replicas meet inside it.")
        options = StepOptions(
            run.accum, self.compute.use_xla and not sync_norms, self.compute.dtype, sync_norms
        )
        return Trainer(
            self.team.strategy,
            model,
            loss_fn,
            weight_decay=weight_decay,
            options=options,
            constants=constants,
            divisor=self.loss_divisor,
            make_optimizer=make_optimizer,
        )

    @contextlib.contextmanager
    def timed(self, phase):
        """Logs a phase and keeps its seconds and its peak memory, also of one that is stopped."""
        logger.info("phase %s", phase)
        with self.folder.timed(phase, self.team.is_chief) as taken, out_of_memory(phase):
            yield
        logger.info("phase %s took %.1f s, peak memory %s", phase, taken["seconds"], taken["peak"])


class Phase:
    """A part of a job. It leaves a file, and is skipped where that file is there already.

    Attributes:
        name: in logs, curves and checkpoints.
        leaves: name of the file in the run folder.
        num_epochs: epochs of a phase that trains and keeps checkpoints; 0 of others.
    """

    name: str
    leaves: str
    num_epochs = 0  # of a phase that trains
    rehearsed = (
        None  # what a rehearsal leaves to the phase, so that nothing is traced or compiled twice
    )

    def __init__(self, job):
        self.job = job

    def is_done(self):
        return self.job.has(self.leaves)

    def rehearse(self, model):
        """Runs one step of the phase on the unpruned network, which needs the most memory; leaves
        it as it is.
        """
        raise NotImplementedError

    def trainer_from(self, model, make_trainer):
        """Returns the Trainer of the rehearsal, or a new one, as it begins with the weights of this
        model.
        """
        trainer, self.rehearsed = self.rehearsed or make_trainer(model), None
        trainer.start_from(model)
        return trainer

    def further_bytes(self):
        """Returns the memory that the whole phase takes besides that of one step: what it keeps of
        all examples.
        """
        return 0


@contextlib.contextmanager
def out_of_memory(phase):
    """Says which phase needs too much memory, and what lowers it.

    Raises:
        EkgError: TensorFlow or NumPy got no memory.
    """
    try:
        yield
    except (tf.errors.ResourceExhaustedError, MemoryError):
        raise EkgError(f"phase {phase}: out of memory; {LESS_MEMORY[phase]}.") from None


def check_finite(phase, metrics):
    """Raises FloatingPointError if a metric of the first step of a phase, {name: number}, is not
    finite.
    """
    broken = [name for name, value in metrics.items() if not math.isfinite(float(value))]
    if broken:
        raise FloatingPointError(
            f"{', '.join(broken)} of the first step of phase {phase} is not finite; are the "
            f"weights "
            "those of a trained network?"
        )
