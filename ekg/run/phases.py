"""The phases of a pruning job up to its report, each a function of the job.

A phase leaves files in the run folder; where its last one is there, what it made is read from it.
What a preflight has traced and compiled is handed to the phase as `ready`.
"""

import dataclasses
import logging

import tensorflow as tf

from ekg import phases
from ekg.distil.slim import cut_with_statistics, restore_norms_
from ekg.errors import EkgError, first_line
from ekg.io import files, parameters
from ekg.process.progress import progress_bar
from ekg.run import folder as names
from ekg.searching import greedy
from ekg.searching.front import SharedState
from ekg.tasks.metrics import metric_named
from ekg.train.batch_norm_statistics import fit_statistics_
from ekg.train.step import StepOptions

logger = logging.getLogger(__name__)


def train_baseline(job, baseline, ready=None):
    """Returns the parameter file of the network that is pruned, which is trained if it is not
    there.

    Args:
        job: Job.
        baseline: object with build(), which returns the unpruned keras.Model with new weights, and
            training(job, model), which returns the phases.Training of it.
        ready: the Training of a preflight, or None.
    """

    def train():
        with job.team.strategy.scope():
            model = baseline.build()
            training = ready or baseline.training(job, model)
            training.trainer.start_from(model)
        model = training.trainer.model
        training.run(
            job.folder,
            job.team,
            checkpoint_minutes=job.settings.run.checkpoint_minutes,
            measure=job.curve_measure(model),
        )
        fit_statistics_(model, job.train_batches, job.compute.use_xla)
        job.save(model, names.BASELINE)

    job.once("baseline", train)
    return job.folder / names.BASELINE


def make_warm_up(job, model):
    """Returns the Training of a copy of a network before the search, on the first device alone."""
    strategy = tf.distribute.OneDeviceStrategy(job.team.device or "CPU:0")
    return phases.warm_up(
        strategy,
        job.copy(model, strategy),
        job.data,
        job.settings.subset,
        job.settings.search.search_batch_size,
        weight_decay=job.settings.fine_tuning.weight_decay,
        seed=job.settings.run.seed,
        options=StepOptions(job.settings.run.accum, job.compute.use_xla),
    )


def warm_up(job, unpruned, ready=None):
    """Returns the Supernet of the network after the epoch on D_subset.

    Args:
        job: Job.
        unpruned: the trained keras.Model; it stays as it is.
        ready: the Training of a preflight, or None.
    """

    def train():
        training = ready or make_warm_up(job, unpruned)
        training.trainer.start_from(unpruned)
        training.run(job.folder, checkpoint_minutes=job.settings.run.checkpoint_minutes)
        parameters.save_params(training.trainer.model, job.folder / names.SUPERNET)

    job.once("subset", lambda: job.team.on_chief(train))
    return job.supernet.remade(job.load(job.folder / names.SUPERNET))


def search_settings(job):
    """Returns the SearchSettings with the number of images that run together."""
    return dataclasses.replace(job.settings.search, search_batch_size=job.images_together)


def search(job, supernet, target, ready=None):
    """Returns the history of the greedy search, a list of HistoryEntry from Θ₀ to Θ*.

    Args:
        job: Job.
        supernet: Supernet of the network that is searched.
        target: prepared Target.
        ready: the Objective of a preflight, or None.
    """
    history = job.folder.history() if job.has(names.HISTORY) else []
    for entry in history:
        target.recall(supernet, entry)
    if history:
        # A run that was killed before its last line of the curves was there writes it now.
        job.team.on_chief(lambda: _log(job.folder, history[-1]))
        if target.is_reached(supernet, history[-1].subnetwork):
            return history
    with job.timed("search"), progress_bar("search", None, "step") as progress:
        bar = _SearchBar(progress, job.data.task.metrics[0], target, supernet)

        shared = None
        if job.settings.target is None:
            paths = (job.folder / names.SEARCH_STATE, job.folder / names.SHARED_STATE)
            shared = SharedState(supernet, job.settings.search, *paths, history)

        def write(entry):
            if shared is not None:
                shared.add(entry)
            job.folder.append_history(entry)
            _log(job.folder, entry)

        def keep(entry):
            job.team.on_chief(lambda: write(entry))
            bar.show(entry)

        if history:
            bar.start_from(history[-1])
        result = greedy.search_toward(
            target,
            supernet,
            job.data,
            search_settings(job),
            seed=job.settings.run.seed,
            compute=job.search_compute,
            history=history,
            on_step=keep,
            state_file=job.folder / names.SEARCH_STATE,
            objective=ready,
        )
    return list(result.history)


def _log(folder, entry):
    values = {name: getattr(entry, name) for name in ("rate", "loss", "accuracy", "reward")}
    folder.log_curves("search", entry.step, values)


class _SearchBar:
    """Shows a search on a progress bar, whose length is guessed from the pace so far."""

    def __init__(self, progress, metric, target, supernet):
        self._progress, self._metric = progress, metric_named(metric)
        self._target, self._supernet = target, supernet

    def start_from(self, entry):
        """Counts the steps of an earlier start, whose time is not part of the pace."""
        self._progress.n = self._progress.initial = entry.step
        self.show(entry)

    def show(self, entry):
        """Shows a HistoryEntry."""
        way = self._target.way(self._supernet, entry.subnetwork)
        if way > 0:
            self._progress.total = max(round(entry.step / way), entry.step)
        self._progress.update(entry.step - self._progress.n)
        metric = self._metric
        self._progress.set_postfix(
            {
                "rate": f"{entry.rate:.4f}",
                "loss": f"{entry.loss:.4f}",
                metric.words: metric.text(entry.accuracy) + "%" * metric.is_share,
            }
        )


def slim(job, supernet, subnetwork):
    """Returns the network that fine-tuning starts from.

    What the folder keeps is the pruned network before the norms of its kernels are restored.
    """

    def cut():
        val_batches = job.val_batches if job.settings.slim.repair else None
        model = cut_with_statistics(
            supernet, subnetwork, job.train_batches, job.compute, val_batches
        )
        if job.settings.fine_tunes:
            job.save(model, names.SLIMMED)
        else:
            save_with_keras(job, model, subnetwork, names.SLIMMED, names.SLIMMED_KERAS)

    job.once("slim", cut)
    model = job.load(job.folder / names.SLIMMED, subnetwork)
    restore_norms_(model, supernet.graph)
    return model


def build_bank(job, supernet, history, sources=()):
    """Returns the MemoryBank of what the chosen interim sub-networks know of every training
    image.

    Args:
        job: Job.
        supernet: Supernet that was searched.
        history: of the search.
        sources: see bank.build_bank().
    """
    with job.timed("bank"):
        return phases.build_bank(
            job.folder / names.BANK,
            supernet,
            history,
            job.data,
            num_teacher=job.settings.fine_tuning.num_teacher,
            compute=job.search_compute,
            search_batch_size=job.images_together,
            sources=sources,
        )


def make_fine_tuning(job, model, knowledge):
    """Returns the Training after the search of a network; see phases.fine_tuning()."""
    return phases.fine_tuning(
        job.team.strategy,
        model,
        job.data,
        job.settings.fine_tuning,
        job.settings.recipe,
        knowledge=knowledge,
        seed=job.settings.run.seed,
        options=job.step_options,
    )


def fine_tune(job, model, unpruned, memory_bank, subnetwork):
    """Trains the slimmed network with the knowledge of the bank, of the unpruned network, or with
    labels alone.

    A single teacher is Θ₀ before the epoch on D_subset: it runs along with moving statistics, which
    that epoch leaves alone, so they fit the weights before it and not those after it.

    Args:
        job: Job.
        model: the network that slim() returned; it is trained in place.
        unpruned: the unpruned keras.Model.
        memory_bank: MemoryBank, or None.
        subnetwork: the Subnetwork that was cut out.
    """
    is_single = job.settings.fine_tuning.finetune_teacher == "single"
    with job.timed("fine-tune"):
        training = make_fine_tuning(job, model, unpruned if is_single else memory_bank)
        training.run(
            job.folder,
            job.team,
            checkpoint_minutes=job.settings.run.checkpoint_minutes,
            measure=job.curve_measure(model),
        )
        fit_statistics_(model, job.train_batches, job.compute.use_xla)
        save_with_keras(job, model, subnetwork, names.TRAINED, names.TRAINED_KERAS)


# ---------------------------------------------------------------- files of networks


def save_with_keras(job, model, subnetwork, name, keras_name):
    """Writes a network as a .keras file with its head and then as a parameter file: a run whose
    parameter file is there has both.

    Args:
        job: Job.
        model: keras.Model.
        subnetwork: the Subnetwork that it holds.
        name: of the parameter file.
        keras_name: of the .keras file.
    """

    def write():
        unfinished = job.folder / names.UNFINISHED_PARAM
        parameters.save_params(model, unfinished)
        write_keras(job.finished(unfinished, subnetwork), job.folder, keras_name, name)
        unfinished.rename(job.folder / name)

    job.team.on_chief(write)


def write_keras(model, folder, name, weights):
    """Writes a network as a .keras file, or warns that a layer of it cannot be written so.

    Args:
        model: keras.Model.
        folder: RunFolder.
        name: of the file.
        weights: name of the parameter file that holds its weights.
    """
    try:
        with files.writing(folder / names.UNFINISHED_KERAS):
            model.save(folder / names.UNFINISHED_KERAS)
    except EkgError:
        raise
    except Exception as error:  # anything that Keras, or a layer of the user's own, raises
        logger.warning(
            "the network cannot be written as %s (%s); %s holds its weights.",
            name,
            first_line(error),
            weights,
        )
    else:
        (folder / names.UNFINISHED_KERAS).rename(folder / name)
