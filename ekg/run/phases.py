"""The phases of a pruning job up to its report: epoch on D_subset, search, slimming, memory bank,
fine-tuning.
"""

import dataclasses
import functools
import logging
import math

import numpy as np
import tensorflow as tf

from ekg.data.dataset import TrainingBatches
from ekg.distil import bank, bank_files, losses
from ekg.distil.slim import fit_statistics_, slim
from ekg.errors import EkgError, first_line
from ekg.graph.execute import pure_forward
from ekg.io import files
from ekg.landscape import lanczos
from ekg.landscape.subnetworks import MaskedLandscapes
from ekg.process.progress import progress_bar
from ekg.run import folder as names
from ekg.run.job import Phase, check_finite
from ekg.searching.criteria import CriterionContext, score_channels
from ekg.searching.evaluator import kept_state_bytes
from ekg.searching.greedy import search
from ekg.searching.objective import Objective
from ekg.tasks.metrics import metric_named
from ekg.train.loop import fit
from ekg.train.step import Schedule, StepOptions, Trainer

logger = logging.getLogger(__name__)


class SubsetPhase(Phase):
    """Step 0: one epoch on D_subset, labels alone; moving statistics stay.

    On one device, whatever the number of devices: all statistics of a batch are those of the whole
    batch, so that the search starts from the same weights.
    """

    name, leaves, num_epochs = "subset", names.SUPERNET, 1

    def make_trainer(self, model):
        """Returns the Trainer of a copy of the model."""
        job, strategy = self.job, tf.distribute.OneDeviceStrategy(self.job.team.device or "CPU:0")
        return Trainer(
            strategy,
            job.copy(model, strategy),
            losses.plain(job.data),
            weight_decay=job.settings.fine_tuning.weight_decay,
            update_statistics=False,
            options=StepOptions(job.settings.run.accum, job.compute.use_xla),
            divisor=job.loss_divisor,
        )

    def batches(self):
        settings = self.job.settings
        subset = self.job.data.first_of_each_class(
            settings.subset.subset_per_class, settings.run.seed
        )
        return TrainingBatches(
            self.job.data,
            settings.search.search_batch_size,
            settings.run.seed,
            split=subset,
            phase=self.name,
            even_pieces=settings.run.accum,
        )

    def rehearse(self, model):
        self.rehearsed = self.make_trainer(model)
        check_finite(self.name, self.rehearsed.step(next(self.batches().epoch(0)), 0.0))

    def run(self, baseline):
        """Returns the Supernet of the network behind the epoch."""
        job = self.job
        if not self.is_done():
            with job.timed(self.name):
                job.team.on_chief(lambda: self._train(baseline))
        self.rehearsed = None
        return job.networks.make_supernet(job.load(job.folder / self.leaves))

    def _train(self, baseline):
        job, trainer = self.job, self.trainer_from(baseline, self.make_trainer)
        schedule = Schedule(
            job.settings.subset.subset_learning_rate, (), 1.0, 1, setting="subset_learning_rate"
        )
        fit(
            self.name,
            trainer,
            self.batches(),
            schedule,
            folder=job.folder,
            checkpoint_minutes=job.settings.run.checkpoint_minutes,
        )
        job.networks.save(trainer.model, job.folder / self.leaves)


class SearchPhase(Phase):
    """The greedy search; its history is there line by line, and the slimmed network says that it is
    over.
    """

    name, leaves = "search", names.SLIMMED

    def __init__(self, job):
        super().__init__(job)
        self._own = job.settings.target

    def prepare(self):
        """Lets the target of the user's own measure what it needs."""
        if self._own is not None:
            self._own = self._own.prepare(
                self.job.networks.supernet, self.job.team, self.job.folder / names.LATENCY_TABLE
            )

    @property
    def settings(self):
        """SearchSettings with the images that run together."""
        return dataclasses.replace(
            self.job.settings.search, search_batch_size=self.job.images_together
        )

    def rehearse(self, model):
        """Runs importance, one candidate, the knowledge, and what is asked of the landscape on the
        first batch of D_val.
        """
        job, settings, supernet = self.job, self.settings, self.job.networks.make_supernet(model)
        batches = self._val_batches().head(self._images_rehearsed())
        objective = self.rehearsed = Objective(
            supernet, batches, settings.search_teacher, job.search_compute
        )
        whole = supernet.whole()
        objective.add_knowledge(whole)
        scores = score_channels(
            settings.criterion, CriterionContext(objective, whole, job.settings.run.seed)
        )
        result = objective.scores(whole, [(0, whole.with_width(0, 0.5))])[0]
        check_finite(self.name, {"reward": result.reward, "importance": scores.sum()})
        if settings.reward == "condition_number" or settings.log_condition:
            landscape = MaskedLandscapes(supernet, batches, use_xla=job.compute.use_xla)(whole)
            product = landscape.product(np.ones(landscape.dimension))
            check_finite(self.name, {"Hessian-vector product": product.sum()})
            size = len(job.team.local_members) * lanczos.basis_bytes(landscape.dimension)
            logger.info(
                "preflight: condition numbers take at most %.2f GiB of memory for their bases",
                size / 2**30,
            )

    def _val_batches(self):
        """Returns the data.Batches of D_val as the search runs them."""
        split = self.job.data.last_of_each_class(
            self.settings.val_per_class, self.job.settings.run.seed
        )
        return self.job.data.batches(split, self.settings.search_batch_size)

    def _images_rehearsed(self):
        return len(self._val_batches().indices[0])

    def further_bytes(self):
        """The states of D_val that every member keeps, and its images."""
        job, supernet = self.job, self.job.networks.supernet
        num_images = job.data.num_of_each_class(self.settings.val_per_class)
        states = kept_state_bytes(supernet, num_images) - kept_state_bytes(
            supernet, self._images_rehearsed()
        )
        return len(job.team.local_members) * max(states, 0) + job.val_bytes()

    def run(self, supernet):
        """Returns the history, a list of HistoryEntry from Θ₀ to Θ*."""
        job, target = self.job, self.job.settings.search.targets(self._own)
        history = job.folder.history() if job.has(names.HISTORY) else []
        for entry in history:
            target.recall(supernet, entry)
        if history:
            job.team.on_chief(lambda: self._log(history[-1]))
            if target.is_reached(supernet, history[-1].subnetwork):
                return history
        metric = metric_named(job.data.task.metrics[0])
        with job.timed(self.name), progress_bar(self.name, None, "step") as progress:

            def show(entry):
                way = target.way(supernet, entry.subnetwork)
                if way > 0:  # as many more as the way that is left takes at the pace so far
                    progress.total = max(round(entry.step / way), entry.step)
                progress.update(entry.step - progress.n)
                progress.set_postfix(
                    {
                        "rate": f"{entry.rate:.4f}",
                        "loss": f"{entry.loss:.4f}",
                        metric.words: metric.text(entry.accuracy) + "%" * metric.is_share,
                    }
                )

            def keep(entry):
                job.team.on_chief(lambda: self._write(entry))
                show(entry)

            if history:
                progress.n = progress.initial = history[-1].step  # the pace is that of this start
                show(history[-1])
            objective, self.rehearsed = self.rehearsed, None
            result = search(
                supernet,
                job.data,
                self.settings,
                seed=job.settings.run.seed,
                compute=job.search_compute,
                history=history,
                on_step=keep,
                state_file=job.folder / names.SEARCH_STATE,
                target=self._own,
                objective=objective,
            )
        return list(result.history)

    def _write(self, entry):
        self.job.folder.append_history(entry)
        self._log(entry)

    def _log(self, entry):
        self.job.folder.log_curves(
            self.name,
            entry.step,
            {name: getattr(entry, name) for name in ("rate", "loss", "accuracy", "reward")},
        )


class SlimPhase(Phase):
    """Cuts Θ* out; what is kept is the pruned network before the norms of its kernels are
    restored.
    """

    name, leaves = "slim", names.SLIMMED

    def run(self, supernet, subnetwork):
        """Returns the network that fine-tuning starts from."""
        job, keep = self.job, functools.partial(self._keep, subnetwork)
        val_batches = job.val_batches if job.settings.slim.repair else None
        return slim(supernet, subnetwork, job.train_batches, job.compute, keep, val_batches)

    def _keep(self, subnetwork, make):
        job = self.job
        if not self.is_done():
            with job.timed(self.name):
                model = make()
                if not job.settings.fine_tunes:
                    job.save(model, names.UNFINISHED_PARAM)
                    job.team.on_chief(
                        lambda: write_keras(
                            job.networks.finished(job.folder / names.UNFINISHED_PARAM, subnetwork),
                            job.folder,
                            names.SLIMMED_KERAS,
                            self.leaves,
                        )
                    )
                job.save(model, self.leaves)
        return job.load(job.folder / self.leaves, subnetwork)


def write_keras(model, folder, name, weights):
    """Writes a network as a .keras file, or says that a layer of it cannot be written so.

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
    except Exception as error:  # whatever Keras, or a layer of the user's own, raises
        logger.warning(
            "the network cannot be written as %s (%s); %s holds its weights.",
            name,
            first_line(error),
            weights,
        )
    else:
        (folder / names.UNFINISHED_KERAS).rename(folder / name)


class BankPhase(Phase):
    """What the chosen interim sub-networks know of every training image."""

    name, leaves = "bank", names.BANK

    def rehearse(self, model):
        """Its step is a forward pass of the supernet, as of the search."""

    def further_bytes(self):
        """Rows of a block, once as they came and once together, and the teachers' weights."""
        job, num_teacher = self.job, self.job.settings.fine_tuning.num_teacher
        rows = min(bank_files.BLOCK_ROWS, len(job.data.train)) * num_teacher
        weights = (
            2 * 4 * num_teacher * job.networks.supernet.model.count_params()
        )  # as variables, and on their device
        return (
            weights
            + 2
            * rows
            * math.prod(job.output_shape)
            * np.dtype(bank_files.dtype_for(job.output_shape)).itemsize
        )

    def run(self, supernet, history):
        """Returns the MemoryBank."""
        job, folder = self.job, self.job.folder / self.leaves
        steps = bank.select_teachers(
            [entry.loss for entry in history], job.settings.fine_tuning.num_teacher
        )
        teachers = [history[step] for step in steps]
        logger.info(
            "teachers: %s",
            ", ".join(f"Θ{entry.step} (loss {entry.loss:.4f})" for entry in teachers),
        )
        with (
            job.timed(self.name),
            progress_bar(self.name, len(teachers) * len(job.data.train), "image") as progress,
        ):
            bank.build_bank(
                folder, supernet, teachers, job.train_batches, job.search_compute, progress
            )
        return bank.open_bank(folder, job.train_batches)


class FineTunePhase(Phase):
    """Trains Θ* with the knowledge of the bank, of the unpruned network, or with the labels alone.

    A single teacher is Θ₀ before the epoch on D_subset: it runs along with moving statistics, which
    that epoch leaves alone, so they fit the weights before it and not those behind it.
    """

    name, leaves = "fine-tune", names.TRAINED

    @property
    def num_epochs(self):
        return self.job.settings.fine_tuning.train_epoch

    def make_trainer(self, model, teacher):
        job, settings = self.job, self.job.settings.fine_tuning
        is_single = settings.finetune_teacher == "single"
        loss_fn = losses.fine_tuning(
            job.data,
            settings.finetune_teacher,
            settings.temperature,
            pure_forward(teacher) if is_single else None,
            settings.label_smoothing,
            settings.views_of(job.data),
        )
        recipe = job.settings.recipe
        return job.make_trainer(
            model,
            loss_fn,
            recipe.decay(settings),
            teacher if is_single else (),
            recipe.make_optimizer,
        )

    def batches(self, memory_bank):
        """Returns the TrainingBatches, with rows of a memory bank unless it is None."""
        settings, data = self.job.settings, self.job.data
        return TrainingBatches(
            data,
            settings.fine_tuning.batch_size,
            settings.run.seed,
            settings.fine_tuning.views_of(data),
            phase=self.name,
            complete=None
            if memory_bank is None
            else lambda batch: {"bank": memory_bank.rows(batch["index"])},
        )

    def further_bytes(self):
        return self.job.val_bytes()

    def rehearse(self, model):
        job, settings = self.job, self.job.settings.fine_tuning
        batch = next(self.batches(None).epoch(0, job.team.shard))
        if settings.finetune_teacher == "ensemble":
            shape = job.output_shape
            batch["bank"] = np.zeros(
                (len(batch["labels"]), settings.num_teacher, *shape), bank_files.dtype_for(shape)
            )
        trainer = self.make_trainer(job.copy(model), model)
        check_finite(self.name, trainer.step(batch, 0.0))

    def run(self, model, baseline, memory_bank, subnetwork):
        """Trains the slimmed network, which changes, and keeps it as a parameter file and as a
        .keras file.

        Args:
            model: the network that fine-tuning starts from.
            baseline: the unpruned network.
            memory_bank: MemoryBank or None.
            subnetwork: the Subnetwork that was cut out.
        """
        job, batches = self.job, self.batches(memory_bank)
        schedule = job.settings.recipe.make_schedule(job.settings.fine_tuning, batches.num_steps)
        with job.timed(self.name):
            trainer = self.make_trainer(model, baseline)
            fit(
                self.name,
                trainer,
                batches,
                schedule,
                folder=job.folder,
                team=job.team,
                checkpoint_minutes=job.settings.run.checkpoint_minutes,
                measure=job.curve_measure(model),
            )
            trainer.finish()
            fit_statistics_(model, job.train_batches, job.compute.use_xla)
            job.team.on_chief(lambda: self._save(model, subnetwork))

    def _save(self, model, subnetwork):
        """Writes the .keras file first: a run whose parameter file is there has both."""
        folder, networks = self.job.folder, self.job.networks
        networks.save(model, folder / names.UNFINISHED_PARAM)
        write_keras(
            networks.finished(folder / names.UNFINISHED_PARAM, subnetwork),
            folder,
            names.TRAINED_KERAS,
            self.leaves,
        )
        (folder / names.UNFINISHED_PARAM).rename(folder / self.leaves)
