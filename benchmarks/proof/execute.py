"""One run of the proof from its beginning, or from where it was stopped, to its record."""

import dataclasses
import json
import logging

import keras
import tensorflow as tf
import utils
from analyses.records import Record
from ekg.io import files
from ekg.data.dataset import TrainingBatches
from ekg.devices.compute import Compute
from ekg.report.measure import measure
from ekg.run import folder as names
from ekg.run.arguments import describe, origin
from ekg.run.folder import RunFolder
from ekg.run.lock import held
from ekg.train.batch_norm_statistics import fit_statistics_
from ekg.train.evaluate import Evaluation
from ekg.train.loop import fit
from ekg.train.step import StepOptions, Trainer

from benchmarks.proof import recipes, runs, setting
from benchmarks.proof.starts import Start

logger = logging.getLogger(__name__)

TRAINING = "fine-tune"


@dataclasses.dataclass(frozen=True)
class ProofRecord(Record):
    """A finished run of the proof.

    Attributes:
        num_teachers: mean number of teachers in G in each epoch; empty where there is no G.
    """

    num_teachers: list = dataclasses.field(default_factory=list)


def perform(run, place):
    """Makes a run, writes its record and returns it; what an earlier call finished is kept.

    Args:
        run: runs.Run.
        place: setting.Place.

    Raises:
        EkgError: another process makes this run, or something that it needs is missing.
        Stopped: a signal asked this process to end, and a checkpoint is written.
    """
    with held(place.folder(run)):
        made_for = setting.Setting(run, place)
        keras.utils.set_random_seed(run.seed)
        tf.config.experimental.enable_op_determinism()
        arguments = _arguments(made_for)
        folder = RunFolder.prepare(place.folder(run), json.loads(json.dumps(arguments)))
        start = Start(made_for)
        rows = [_measure(made_for, "baseline", start.unpruned, made_for.baseline)]
        model = _slimmed(made_for, folder, start)
        rows.append(_measure(made_for, "slimmed", model, folder / names.SLIMMED))
        logger.info(
            "%s: top-1 %.2f unpruned, %.2f cut", run.name, *(100 * row.top1 for row in rows)
        )
        with folder.timed(TRAINING):
            train(made_for, model, start, folder)
            utils.save_params(model, folder / names.TRAINED)
        rows.append(_measure(made_for, "fine-tuned", model, folder / names.TRAINED))
        record = _record(made_for, arguments, folder, start, rows)
        place.records.mkdir(parents=True, exist_ok=True)
        record.write(place.record(run))
    print(
        f"{run.name}: {record.rate:.4f} of the FLOPs, top-1 {record.top1(0):.2f} unpruned, "
        f"{record.top1(1):.2f} cut, {record.top1(2):.2f} fine-tuned"
    )
    return record


def _slimmed(made_for, folder, start):
    """Returns the network that training starts from; the folder keeps it."""
    path = folder / names.SLIMMED
    if not path.exists():
        with folder.timed("slim"):
            utils.save_params(start.cut(), path)
    return made_for.load(path)


def train(made_for, model, start, folder):
    """Trains a network in place as its run says; a training that was stopped resumes.

    Args:
        made_for: setting.Setting of the run.
        model: keras.Model.
        start: starts.Start.
        folder: RunFolder of checkpoints and curves.
    """
    run, data, compute = made_for.run, made_for.data, made_for.compute
    teaching = recipes.make_teaching(
        run, data, start.unpruned, start.make_bank, start.make_teachers
    )
    is_averaged = run.change == "ema"
    with recipes.averaging(is_averaged):
        trainer = Trainer(
            compute.team.strategy,
            model,
            teaching.loss_fn,
            constants=teaching.constants,
            weight_decay=recipes.SETTINGS.weight_decay,
            options=StepOptions(1, compute.use_xla, compute.dtype),
        )
    batches = TrainingBatches(
        data,
        recipes.SETTINGS.batch_size,
        run.seed,
        run.num_views,
        phase=TRAINING,
        complete=teaching.complete,
    )
    fit(TRAINING, trainer, batches, recipes.make_schedule(run), folder=folder, team=compute.team)
    if is_averaged:
        trainer.optimizer.finalize_variable_values(model.trainable_variables)
    fit_statistics_(model, made_for.train_batches, compute.use_xla)


def _measure(made_for, name, model, path):
    test = made_for.data.batches(made_for.data.test, setting.BATCH)
    evaluation = Evaluation(model, test, Compute(made_for.compute.team))
    return measure(name, evaluation, path.stat().st_size)


def _arguments(made_for):
    """Returns all that the result depends on, in the form of arguments.json."""
    run = made_for.run
    return {
        "arch": run.arch,
        "dataset": setting.DATASET,
        "search_teacher": "ensemble" if run.is_searched else "",
        "finetune_teacher": run.teacher,
        "criterion": runs.CUTS[run.cut],
        "target_rate": run.rate,
        "train_epoch": run.epochs,
        "num_views": run.num_views,
        "is_repaired": run.is_repaired,
        "change": run.change,
        "batch_size": recipes.SETTINGS.batch_size,
        "precision": made_for.compute.dtype,
        "seed": run.seed,
        "trained_param": files.sha256(made_for.baseline),
        **describe(made_for.data, made_for.compute.use_xla),
    }


def _record(made_for, arguments, folder, start, rows):
    run, history = made_for.run, start.history
    curves = files.read_report_lines(folder / names.CURVES)
    num_teachers = [line["num_teachers"] for line in curves if "num_teachers" in line]
    return ProofRecord(
        run.name,
        arguments,
        [dataclasses.asdict(row) for row in rows],
        max(len(history) - 1, 0),
        folder.phases(),
        [],
        origin(),
        f"python -m benchmarks.proof run --only {run.name}",
        history[-1].loss if history else None,
        num_teachers,
    )
