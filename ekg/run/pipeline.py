"""The whole job: search, memory bank, fine-tuning, table. Every phase leaves a file, and is skipped
where that file is there already."""

import contextlib
import logging

import keras
import tensorflow as tf

from ekg.data.examples import draw_examples
from ekg.errors import EkgError
from ekg.graph.layer_losses import warn_of_weight_decay
from ekg.network.masked_check import check_promise, num_examples
from ekg.run import environment, phases, preflight
from ekg.run import folder as names
from ekg.run.choice import FEW_STEPS, count_steps
from ekg.run.reporting import ReportPhase
from ekg.run.verify import is_whole

logger = logging.getLogger(__name__)

FEW_IMAGES = 100  # below which what a search finds is chance to a good part


class Pipeline:
    """Prunes one network.

    Attributes:
        job: Job.
    """

    def __init__(self, job, baseline=None):
        """
        Args:
            job: Job.
            baseline: Phase whose run() trains the network and returns its parameter file; None if
                there is a trained one.
        """
        self.job, self._baseline = job, baseline
        self._subset, self._search, self._slim = (
            phase(job) for phase in (phases.SubsetPhase, phases.SearchPhase, phases.SlimPhase)
        )
        self._bank, self._fine_tune, self._report = (
            phase(job) for phase in (phases.BankPhase, phases.FineTunePhase, ReportPhase)
        )

    def preflight(self, model):
        """Runs one step of every phase that is not done yet, and checks the room on disk; see
        preflight.

        Args:
            model: the unpruned keras.Model; it stays as it is.
        """
        last = self._fine_tune if self.job.settings.fine_tunes else self._slim
        if not last.is_done():
            self._search.prepare()
            todo = [
                self._fine_tune if self.job.settings.fine_tunes else None,
                self._subset,
                self._baseline,
                self._search,
                self._bank if self.job.has_bank else None,
            ]
            todo = [phase for phase in todo if phase is not None and not phase.is_done()]
            preflight.rehearse(self.job, [*todo, self._report], model)

    def keep_environment(self):
        """Names what the last digits depend on, where the run resumes with another such; see
        environment.keep().
        """
        job = self.job
        if self._report.is_done():
            return  # nothing is computed
        here = environment.of_team(job.team)
        path, is_strict = job.folder / names.ENVIRONMENTS, job.settings.run.strict
        job.team.on_chief(lambda: environment.keep(path, here, is_strict))

    def run(self, trained_file=None):
        """Runs all phases that are not done yet and returns the rows of the final table.

        A phase that was stopped goes on behind its last finished search step or epoch.

        Args:
            trained_file: pathlib.Path of the trained network; None trains the baseline first.

        Raises:
            EkgError: a file of an earlier part of the run is damaged.
            FloatingPointError: a loss or a reward is not finite.
            Stopped: a signal asked the run to end.
        """
        job, folder = self.job, self.job.folder
        if self._report.is_done():
            if job.team.from_chief(lambda: is_whole(job)):
                logger.info("this run is finished; its table is")
                job.team.on_chief(self._complete)
                return folder.table()
            self.keep_environment()
        self._search.prepare()
        trained_file = trained_file or self._baseline.run()
        baseline = job.load(trained_file)
        supernet = self._subset.run(baseline)
        history = self._search.run(supernet)
        found = history[-1].subnetwork
        model = self._slim.run(supernet, found)
        rows = {"baseline": (trained_file, None), "slimmed": (folder / names.SLIMMED, found)}
        if job.settings.fine_tunes:
            self._run_fine_tuning(model, baseline, supernet, history)
            rows["fine-tuned"] = (folder / names.TRAINED, found)
        return self._report.run(rows)

    def _complete(self):
        """Makes again what a finished run's result and numbers are enough for."""
        job, folder = self.job, self.job.folder
        for result, made in dict.fromkeys([job.result_names, job.handed_out]):
            if not job.has(made):
                found = folder.history()[-1].subnetwork
                phases.write_keras(
                    job.networks.finished(folder / result, found), folder, made, result
                )
        if job.settings.writes_page and not (
            job.has(names.REPORT_PAGE) and job.has(names.REPORT_PICTURE)
        ):
            self._report.write_page()  # stopped between the two, or removed

    def _run_fine_tuning(self, model, baseline, supernet, history):
        job, memory_bank = self.job, None
        if job.has_bank:
            memory_bank = self._bank.run(supernet, history)
        if not self._fine_tune.is_done():
            self._fine_tune.run(model, baseline, memory_bank, history[-1].subnetwork)


def run_job(job, prepare_folder, *, baseline=None, trained_file=None, preflight=True):
    """Checks a job, runs it to its end, and returns the rows of its table.

    Args:
        job: Job.
        prepare_folder: function that makes or opens the run folder, after the checks; the chief
            alone calls it.
        baseline: see Pipeline.
        trained_file: see Pipeline.run.
        preflight: whether one step of every phase is tried first.
    """
    check(job.settings, job.data, job.networks.supernet)
    with contextlib.ExitStack() as stack:  # the chief owns the folder for all workers
        job.team.on_chief(lambda: stack.enter_context(job.folder.locked()))
        job.team.on_chief(prepare_folder)
        return _run_prepared(job, baseline, trained_file, preflight)


def _run_prepared(job, baseline, trained_file, preflight):
    keras.utils.set_random_seed(job.settings.run.seed)  # op determinism needs one
    tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(job.settings.run.tf32)
    pruning = Pipeline(job, baseline)
    pruning.keep_environment()
    if preflight:
        pruning.preflight(job.networks.model)
    keras.utils.set_random_seed(job.settings.run.seed)  # the same behind a preflight as without one
    return pruning.run(trained_file)


def check(settings, data, supernet):
    """Raises EkgError if a job could not be finished, before anything is written or trained.

    Args:
        settings: JobSettings.
        data: data.Dataset.
        supernet: the Supernet of the network that is to be pruned.
    """
    settings.targets().check(supernet)
    logger.info(
        "smallest possible rate %.4f; asked for %s",
        supernet.rate(supernet.smallest()),
        settings.targets().describe() or "all of the FLOPs",
    )
    subset = data.first_of_each_class(settings.subset.subset_per_class, settings.run.seed)
    _log_images_that_decide(data, settings.search.val_per_class)
    batches = [("search_batch_size", settings.search.search_batch_size, len(subset))]
    if settings.fine_tunes:
        batches.append(("batch_size", settings.fine_tuning.batch_size, len(data.train)))
    for name, batch_size, num_images in batches:
        if batch_size > num_images:
            raise EkgError(
                f"`{name}` {batch_size} is larger than the {num_images} images to train on; make "
                f"it smaller."
            )
    if settings.fine_tunes and (steps := count_steps(settings, data)) < FEW_STEPS:
        logger.warning(
            "fine-tuning takes %d steps in all; fewer than %d seldom make up for what was cut: "
            "take more epochs, "
            "or a smaller `batch_size`.",
            steps,
            FEW_STEPS,
        )
    warn_of_weight_decay(supernet.model, settings.recipe.decay(settings.fine_tuning))
    check_promise(supernet, draw_examples(data, num_examples(supernet.graph)))


def _log_images_that_decide(data, val_per_class):
    """Logs how many images the search evaluates on, and warns of few.

    Raises:
        EkgError: no class has so many.
    """
    number = len(data.last_of_each_class(val_per_class, 0))
    fewest = min(int(data.class_sizes.min()), val_per_class)
    logger.info(
        "the search decides by %d images: %d of each of %d classes or parts%s",
        number,
        val_per_class,
        data.num_strata,
        f", but at least {fewest}" if fewest < val_per_class else "",
    )
    if number < FEW_IMAGES:
        logger.warning(
            "only %d images decide what is pruned; results on other images may be far from "
            "theirs. Give more "
            "training data, or raise `val_per_class`.",
            number,
        )
