"""A pruning job: its settings, data, networks, devices and folder."""

import contextlib
import dataclasses
import functools
import logging
import math
from typing import Any

import numpy as np
import tensorflow as tf

from ekg.data.dataset import mixed_order
from ekg.data.inputs import num_bytes
from ekg.devices.compute import Compute
from ekg.errors import EkgError
from ekg.graph import cutting
from ekg.io import parameters
from ekg.network.supernet import Supernet
from ekg.run import folder as names
from ekg.run.folder import PHASES, RunFolder
from ekg.run.settings import JobSettings
from ekg.train.evaluate import Evaluation
from ekg.train.step import StepOptions

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """Everything that the phases of a run need.

    Attributes:
        settings: JobSettings.
        data: data.Dataset.
        supernet: Supernet of the unpruned network. Networks are read from parameter files; their
            structure is that of this one, or of a sub-network of it.
        compute: Compute of training and evaluation. All processes of its team run the same job; the
            chief alone writes.
        folder: RunFolder.
        head: heads.Head that was taken off the network, or None.
    """

    settings: JobSettings
    data: Any
    supernet: Supernet
    compute: Compute
    folder: RunFolder
    head: Any = None

    @property
    def team(self):
        return self.compute.team

    @property
    def model(self):
        """The unpruned keras.Model; it stays as it is."""
        return self.supernet.model

    @property
    def search_compute(self):
        """Compute of search and memory bank."""
        return dataclasses.replace(self.compute, dtype=self.settings.run.search_precision)

    @property
    def float32_compute(self):
        """Compute of evaluations, whose logits are float32."""
        return dataclasses.replace(self.compute, dtype="float32")

    @property
    def step_options(self):
        """StepOptions of trainings on all devices, in the precision asked for."""
        run = self.settings.run
        sync_norms = run.sync_bn and self.team.size > 1
        if sync_norms and self.compute.use_xla:
            logger.warning("the training step runs uncompiled, as replicas meet inside it.")
        use_xla = self.compute.use_xla and not sync_norms
        return StepOptions(run.accum, use_xla, self.compute.dtype, sync_norms)

    # ---------------------------------------------------------------- data

    @property
    def output_shape(self):
        """Shape of the output of one example."""
        return self.data.task.shape(self.supernet.graph)

    @property
    def images_together(self):
        """The most images that share batch statistics in search and bank: a micro-batch."""
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

    def val_split(self):
        """Returns D_val, the training images that the search evaluates on."""
        return self.data.last_of_each_class(
            self.settings.search.val_per_class, self.settings.run.seed
        )

    @functools.cached_property
    def val_batches(self):
        """data.Batches of D_val, for evaluations."""
        return self.data.batches(self.val_split().in_memory(), self.settings.run.val_batch_size)

    def val_bytes(self):
        """Returns the bytes of the images of D_val, or 0 where they are read again each time."""
        split = self.val_split()
        size = len(split) * num_bytes(split.read(np.array([0])))
        return size if size <= getattr(split, "memory_budget", size) else 0

    def curve_measure(self, model):
        """Returns a function from the number of epochs done to the entries of the curves for a
        model in training.

        These are loss and accuracy, or the task's first metric, on D_val; and on the test images,
        for the curve alone, after every `test_every` epochs.
        """
        evaluate_val = Evaluation(model, self.val_batches, self.float32_compute)
        evaluate_test = Evaluation(model, self.test_batches, self.float32_compute)
        every = self.settings.run.test_every
        first = self.data.task.metrics[0]

        def measure(epochs):
            metrics = evaluate_val()
            measured = {"val_loss": metrics.loss, f"val_{first}": metrics.values[first]}
            if every and epochs % every == 0:
                measured[f"test_{first}"] = evaluate_test().values[first]
            return measured

        return measure

    # ---------------------------------------------------------------- networks

    @property
    def result_names(self):
        """Names of the parameter file and the .keras file that the job ends with."""
        if self.settings.fine_tunes:
            return names.TRAINED, names.TRAINED_KERAS
        return names.SLIMMED, names.SLIMMED_KERAS

    @property
    def handed_out(self):
        """Names of the same files for the network that a finished run hands out: where fine-tuning
        made it worse, the one before it.
        """
        if self.folder.hands_out_cut():
            return names.SLIMMED, names.SLIMMED_KERAS
        return self.result_names

    @property
    def has_bank(self):
        """Whether fine-tuning reads a memory bank."""
        return self.settings.fine_tunes and self.settings.fine_tuning.finetune_teacher == "ensemble"

    def copy(self, model, strategy=None):
        """Returns a copy of a network made under a strategy; None means the team's."""
        with (strategy or self.team.strategy).scope():
            return cutting.copy(model, self.supernet.choices["input_shape"])

    def save(self, model, name):
        """Writes the weights of a network into the folder; the chief does."""
        self.team.on_chief(lambda: parameters.save_params(model, self.folder / name))

    def load(self, path, subnetwork=None):
        """Returns the network in a file, made under the team's strategy.

        Args:
            path: the parameter file.
            subnetwork: the Subnetwork that it holds; None means the unpruned network.

        Raises:
            EkgError: the file cannot be read, or holds another network.
        """
        with self.team.strategy.scope():
            return self.read(path, subnetwork)

    def load_(self, model, path):
        """Gives a network of the same structure the weights in a file; raises what load() does."""
        with self.team.strategy.scope():
            parameters.assign_params_(model, parameters.load_params(path), path)

    def finished(self, path, subnetwork=None):
        """Returns the network in a file as it is handed out: under no strategy, its head put
        back.
        """
        return self.with_head(self.read(path, subnetwork))

    def with_head(self, model):
        """Returns a network with its head put back; it may be changed."""
        return model if self.head is None else self.head.put_back(model)

    def read(self, path, subnetwork=None):
        """Returns the network in a file, made under no strategy; see load()."""
        if subnetwork is None:
            model = cutting.copy(self.model, self.supernet.choices["input_shape"])
        else:
            model = self.supernet.cut(subnetwork)
        parameters.assign_params_(model, parameters.load_params(path), path)
        return model

    # ---------------------------------------------------------------- phases

    def has(self, name):
        """Returns whether the run folder holds a file, as the chief sees it."""
        return self.team.as_chief_sees(self.folder.has(name))

    def is_done(self, phase):
        """Returns whether a phase is over."""
        return self.has(PHASES[phase].last_file)

    def once(self, phase, make):
        """Runs a phase, timed, unless its last file is there already.

        Args:
            phase: one of PHASES.
            make: function that does the work and leaves the file.
        """
        if not self.is_done(phase):
            with self.timed(phase):
                make()

    @contextlib.contextmanager
    def timed(self, phase):
        """Logs a phase and keeps its seconds and its peak memory, even if it is stopped."""
        logger.info("phase %s", phase)
        with self.folder.timed(phase, self.team.is_chief) as taken, out_of_memory(phase):
            yield
        logger.info("phase %s took %.1f s, peak memory %s", phase, taken["seconds"], taken["peak"])


@contextlib.contextmanager
def out_of_memory(phase):
    """Names the phase that needs too much memory, and what lowers it.

    Raises:
        EkgError: TensorFlow or NumPy got no memory.
    """
    try:
        yield
    except (tf.errors.ResourceExhaustedError, MemoryError):
        raise EkgError(f"phase {phase}: out of memory; {PHASES[phase].less_memory}.") from None


def check_finite(phase, metrics):
    """Raises FloatingPointError if a metric of the first step of a phase, {name: number}, is not
    finite.
    """
    broken = [name for name, value in metrics.items() if not math.isfinite(float(value))]
    if broken:
        raise FloatingPointError(
            f"{', '.join(broken)} of the first step of phase {phase} is not finite; are the "
            "weights those of a trained network?"
        )
