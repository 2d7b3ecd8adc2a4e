"""The whole job: baseline, search, memory bank, fine-tuning, table. Every phase leaves a file, and is skipped where
that file is there already."""

import contextlib
import dataclasses
import logging
import time

import keras
import tensorflow as tf

import op_utils
import utils
from ekg import analysis, cutting, losses, memory_bank, preflight, report, training
from ekg.graph import Graph, Numerics
from ekg.greedy_search import HistoryEntry, check_target, search
from ekg.supernet import Supernet

logger = logging.getLogger(__name__)

SUBSET_LEARNING_RATE = 1e-3  # of step 0 on D_subset


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained: SGD, step schedule; decay_points are fractions of the epochs."""
    epochs: int
    batch_size: int
    learning_rate: float
    decay_points: tuple[float, ...]
    decay_rate: float
    weight_decay: float
    warmup_epochs: int = 0

    @property
    def schedule(self):
        return op_utils.Schedule(self.learning_rate, self.decay_points, self.decay_rate, self.epochs, self.warmup_epochs)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything a run is asked for besides its data and network."""
    target_rate: float
    search_step: float
    search_batch_size: int
    search_teacher: str
    finetune_teacher: str
    num_teacher: int
    subset_per_class: int
    val_per_class: int
    temperature: float
    label_smoothing: float
    val_batch_size: int
    baseline: TrainingSettings
    fine_tuning: TrainingSettings
    accum: int
    precision: str
    search_precision: str
    sync_bn: bool
    criterion: str
    reward: str
    shortlist: int
    log_condition: bool
    checkpoint_minutes: float
    jit: bool
    seed: int


class Pipeline:
    """Prunes one network.

    Attributes:
        folder: run_folder.RunFolder that holds everything the run leaves.
    """

    def __init__(self, settings, data, strategy, team, folder, build, from_params):
        """
        Args:
            settings: Settings.
            data: dataloader Dataset.
            strategy: tf.distribute.Strategy.
            team: devices.Team of the strategy. All its processes run the same; the chief alone writes.
            folder: run_folder.RunFolder.
            build: function that returns the unpruned keras.Model with new weights.
            from_params: (params, source) -> keras.Model of whatever widths the parameters tell.
        """
        self.folder = folder
        self._settings, self._data, self._strategy, self._team = settings, data, strategy, team
        self._build, self._from_params = build, from_params

    def run(self, trained_param=None):
        """Runs all phases that are not done yet and returns the rows of the final table.

        A phase that was stopped goes on behind its last finished search step or epoch.

        Args:
            trained_param: parameter file of a trained network; None trains a baseline first.

        Raises:
            utils.UserError: a file of an earlier part of the run is damaged.
        """
        if self._has("summary.json"):
            logger.info("this run is finished; its table is")
            if not self._has("report.html"):  # stopped between the two
                self._team.on_chief(lambda: analysis.write_report(self.folder.path))
            return [utils.Row(**row) for row in utils.read_json(self.folder / "summary.json")["table"]]
        keras.utils.set_random_seed(self._settings.seed)
        baseline_file = trained_param or self.folder / "baseline_param.pkl"
        baseline = self._load(trained_param) if trained_param else self._baseline(baseline_file)
        supernet, history = self._search(baseline)
        slimmed_file = self._slim(supernet, history)
        bank = self._bank(supernet, history) if self._settings.finetune_teacher == "ensemble" else None
        trained_file = self._fine_tune(supernet, baseline, bank, slimmed_file)
        return self._report({"baseline": baseline_file, "slimmed": slimmed_file, "fine-tuned": trained_file})

    def preflight(self, model, trains_baseline):
        """Runs one step of every phase that is not done yet; see preflight.run.

        Args:
            model: the unpruned keras.Model.
            trains_baseline: whether run() gets no trained network.
        """
        if not self._has("trained_param.pkl"):
            makers = {"fine-tune": lambda copy: self._fine_tune_trainer(copy, model)}
            if not self._has("supernet_param.pkl"):
                makers["subset"] = lambda _: self._subset_trainer(model)
            if trains_baseline and not self._has("baseline_param.pkl"):
                makers["baseline"] = self._baseline_trainer
            preflight.run(self._settings, self._data, self._strategy, self._team, self.folder.path, model, makers,
                          None if self._has("slimmed_param.pkl") else self._supernet)

    def _has(self, name):
        """Returns whether the run folder holds a file, as the chief sees it."""
        return self._team.chief_says((self.folder / name).exists())

    def _save(self, model, path):
        self._team.on_chief(lambda: utils.save_params(model, path))

    def _load(self, path):
        with self._strategy.scope():
            return self._from_params(utils.load_params(path), path)

    def _trainer(self, model, loss_fn, weight_decay, **options):
        """Returns a Trainer on all devices, in the precision asked for."""
        settings = self._settings
        sync = settings.sync_bn and self._team.count > 1
        if sync and settings.jit:
            logger.warning("--sync_bn: the training step runs uncompiled, as replicas meet inside it.")
        numerics = Numerics(settings.precision, sync)
        return op_utils.Trainer(self._strategy, model, loss_fn, weight_decay=weight_decay, accum=settings.accum,
                                forward=Graph(model, numerics).stateless_call, jit=settings.jit and not sync, sync=sync,
                                scale_loss=settings.precision == "float16", **options)

    def _baseline_trainer(self, model):
        loss_fn = losses.baseline(self._data, self._settings.label_smoothing)
        return self._trainer(model, loss_fn, self._settings.baseline.weight_decay)

    def _subset_trainer(self, baseline):
        """Returns the Trainer of a copy of the baseline, on one device, for the epoch on D_subset."""
        settings, strategy = self._settings, tf.distribute.OneDeviceStrategy(self._team.device or "CPU:0")
        model = training.copy_model(baseline, strategy)
        return op_utils.Trainer(strategy, model, losses.plain(self._data.normalise), accum=settings.accum,
                                weight_decay=settings.fine_tuning.weight_decay, jit=settings.jit,
                                forward=Graph(model).stateless_call, update_statistics=False)

    def _fine_tune_trainer(self, model, baseline):
        settings = self._settings
        is_single = settings.finetune_teacher == "single"
        loss_fn = losses.fine_tuning(self._data, settings.finetune_teacher, settings.temperature,
                                     Graph(baseline).stateless_call if is_single else None, settings.label_smoothing)
        return self._trainer(model, loss_fn, settings.fine_tuning.weight_decay, constants=baseline if is_single else ())

    def _supernet(self, model):
        return Supernet(model, Numerics(self._settings.search_precision))

    @property
    def _images_together(self):
        """Images that share batch statistics in search and bank, at most: those of a micro-batch."""
        return self._settings.search_batch_size // self._settings.accum

    @contextlib.contextmanager
    def _phase(self, name):
        logger.info("phase %s", name)
        start = time.perf_counter()
        try:
            yield
        finally:  # a phase that is stopped has its time in the summary, too
            seconds = time.perf_counter() - start
            peak = utils.peak_memory_mib()
            if self._team.is_chief:
                utils.append_json_line(self.folder / "phases.jsonl", {"phase": name, "seconds": round(seconds, 1),
                                                                     "peak_memory_mib": round(peak)})
        logger.info("phase %s took %.1f s, peak memory so far %.0f MiB", name, seconds, peak)

    def _baseline(self, path):
        """Returns the trained network of this run's file, which is trained first if it is not there yet."""
        settings = self._settings.baseline
        if not self._has(path.name):
            with self._phase("baseline"):
                with self._strategy.scope():
                    model = self._build()
                trainer = self._baseline_trainer(model)
                training.fit("baseline", trainer, self._data, settings.schedule, batch_size=settings.batch_size,
                             seed=self._settings.seed, folder=self.folder, num_views=1, team=self._team,
                             checkpoint_minutes=self._settings.checkpoint_minutes)
                self._save(model, path)
        return self._load(path)

    def _search(self, baseline):
        """Returns (supernet after one epoch on D_subset, history)."""
        settings, weights_file = self._settings, self.folder / "supernet_param.pkl"
        if not self._has(weights_file.name):
            with self._phase("subset"):
                self._team.on_chief(lambda: self._tune_on_subset(baseline, weights_file))
        supernet = self._supernet(self._load(weights_file))
        file = self.folder / "history.jsonl"
        history = [HistoryEntry.from_json(line) for line in utils.read_json_lines(file)] if self._has(file.name) else []
        if history:
            self._team.on_chief(lambda: self._log_search(history[-1]))
            if history[-1].rate <= settings.target_rate:
                return supernet, history
        total = round(1000 * (1 - settings.target_rate))
        with self._phase("search"), utils.progress_bar("search", total, "‰ of FLOPs") as progress:
            def show(entry):
                progress.update(min(round(1000 * (1 - entry.rate)), total) - progress.n)
                progress.set_postfix(step=entry.step, rate=f"{entry.rate:.4f}", loss=f"{entry.loss:.4f}",
                                     accuracy=f"{100 * entry.accuracy:.2f}%")

            def write(entry):
                utils.append_json_line(file, entry.to_json())
                self._log_search(entry)

            def keep(entry):
                self._team.on_chief(lambda: write(entry))
                show(entry)

            if history:
                show(history[-1])
            result = search(supernet, self._data, target_rate=settings.target_rate, step_size=settings.search_step,
                            batch_size=self._images_together, teacher=settings.search_teacher, seed=settings.seed,
                            val_per_class=settings.val_per_class, jit=settings.jit, history=history, on_step=keep,
                            team=self._team, state_file=self.folder / "search_state.pkl",
                            criterion=settings.criterion, reward=settings.reward, shortlist=settings.shortlist,
                            log_condition=settings.log_condition)
        return supernet, list(result.history)

    def _log_search(self, entry):
        self.folder.log_curves("search", entry.step, {"rate": entry.rate, "loss": entry.loss, "accuracy": entry.accuracy,
                                                      "reward": entry.reward})

    def _tune_on_subset(self, baseline, path):
        """Trains a copy of the baseline for one epoch on D_subset.

        On one device, whatever the number of devices: all statistics of a batch are those of the whole batch, so that the
        search starts from the same weights.
        """
        settings, trainer = self._settings, self._subset_trainer(baseline)
        subset = self._data.first_of_each_class(settings.subset_per_class, settings.seed)
        training.fit("subset", trainer, self._data, op_utils.Schedule(SUBSET_LEARNING_RATE, (), 1.0, 1),
                     batch_size=settings.search_batch_size, seed=settings.seed, folder=self.folder, split=subset,
                     checkpoint_minutes=settings.checkpoint_minutes)
        utils.save_params(trainer.model, path)

    def _slim(self, supernet, history):
        """Cuts Θ* out, estimates its moving statistics and returns its parameter file."""
        path = self.folder / "slimmed_param.pkl"
        if not self._has(path.name):
            with self._phase("slim"):
                with self._strategy.scope():
                    model = supernet.cut(history[-1].subnetwork)
                training.estimate_statistics_(model, self._data, self._images_together, self._settings.jit)
                self._save(model, path)
        return path

    def _bank(self, supernet, history):
        folder = self.folder / "memory_bank"
        teachers = [history[step] for step in memory_bank.select_teachers([entry.loss for entry in history],
                                                                          self._settings.num_teacher)]
        logger.info("teachers: %s", ", ".join(f"Θ{entry.step} (loss {entry.loss:.4f})" for entry in teachers))
        total = len(teachers) * len(self._data.train)
        with self._phase("bank"), utils.progress_bar("bank", total, "image") as progress:
            memory_bank.build(folder, supernet, teachers, self._data.train, self._data.normalise,
                              batch_size=self._images_together, jit=self._settings.jit, progress=progress,
                              team=self._team)
        return memory_bank.open_bank(folder)

    def _fine_tune(self, supernet, baseline, bank, slimmed_file):
        """Trains Θ* with the knowledge of the bank (or of the baseline) and returns its parameter file."""
        path, settings = self.folder / "trained_param.pkl", self._settings.fine_tuning
        if self._has(path.name):
            return path
        with self._phase("fine-tune"):
            model = self._load(slimmed_file)
            cutting.restore_norms_(model, supernet.model)
            trainer = self._fine_tune_trainer(model, baseline)
            training.fit("fine-tune", trainer, self._data, settings.schedule, batch_size=settings.batch_size,
                         seed=self._settings.seed, folder=self.folder, num_views=losses.NUM_VIEWS, team=self._team,
                         checkpoint_minutes=self._settings.checkpoint_minutes,
                         extend=(lambda batch: {"bank": bank.rows(batch["index"])}) if bank else None)

            def save():
                model.save(self.folder / "unfinished.keras")
                (self.folder / "unfinished.keras").rename(self.folder / "trained_param.keras")
                utils.save_params(model, path)

            self._team.on_chief(save)
        return path

    def _report(self, files):
        with self._phase("report"):
            rows = [report.measure(name, self._load(path), path, self._data, self._strategy,
                                   self._settings.val_batch_size, self._settings.jit,
                                   (self._team.worker, self._team.num_workers)) for name, path in files.items()]
        self._team.on_chief(lambda: self._write_summary(rows))
        return rows

    def _write_summary(self, rows):
        phases = {}
        for line in utils.read_json_lines(self.folder / "phases.jsonl"):
            phase = phases.setdefault(line["phase"], {"seconds": 0.0, "peak_memory_mib": 0})
            phase["seconds"] = round(phase["seconds"] + line["seconds"], 1)
            phase["peak_memory_mib"] = max(phase["peak_memory_mib"], line["peak_memory_mib"])
        utils.write_json(self.folder / "summary.json",
                         {"table": [dataclasses.asdict(row) for row in rows], "phases": phases})
        analysis.write_report(self.folder.path)


def check(settings, data, model):
    """Raises utils.UserError if a run could not be finished, before anything is written or trained.

    Args:
        settings: Settings.
        data: dataloader Dataset.
        model: the keras.Model that is to be pruned.
    """
    supernet = Supernet(model)
    check_target(supernet, settings.target_rate)
    logger.info("smallest possible rate %.4f, asked for %.4f", supernet.rate(supernet.smallest()), settings.target_rate)
    subset = data.first_of_each_class(settings.subset_per_class, settings.seed)
    data.last_of_each_class(settings.val_per_class, settings.seed)
    for flag, batch_size, images in (("--batch_size", settings.fine_tuning.batch_size, len(data.train)),
                                     ("--search_batch_size", settings.search_batch_size, len(subset))):
        if batch_size > images:
            raise utils.UserError(f"{flag} {batch_size} is larger than the {images} images to train on; make it smaller.")
