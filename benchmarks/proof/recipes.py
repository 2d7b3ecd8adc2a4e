"""How the arms of the proof train: the library's losses, and the changes that are tried beside
them.
"""

import contextlib
import dataclasses
import math
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from ekg.devices.compute import in_graph
from ekg.distil import bank as banks
from ekg.distil import losses
from ekg.distil.bank import MemoryBank
from ekg.graph.execute import ExecutionOptions, pure_forward
from ekg.distil.settings import FineTuneSettings
from ekg.tasks.kinds import Classification
from ekg.train.evaluate import Evaluation
from ekg.train.step import Schedule

SETTINGS = FineTuneSettings()
TAU = SETTINGS.temperature
EMA_MOMENTUM = 0.999  # of the average of the weights, a step; an epoch of the proof has 78 steps
NUM_TEACHER = SETTINGS.num_teacher


@dataclasses.dataclass(frozen=True, eq=False)
class Teaching:
    """What teaches a network.

    Attributes:
        loss_fn: see train.step.Trainer.
        constants: keras.Model whose variables loss_fn gets, or ().
        complete: function from a batch to further entries of it, or None; see TrainingBatches.
    """

    loss_fn: Any
    constants: Any = ()
    complete: Any = None


@dataclasses.dataclass(frozen=True)
class WeightedClassification(Classification):
    """A classification whose distillation loss has another weight.

    G is chosen by the same numbers: all its sums have the weight.

    Attributes:
        weight: factor of the distillation loss.
    """

    weight: float = 1.0

    def divergence(self, teacher, outputs, temperature):
        return self.weight * super().divergence(teacher, outputs, temperature)


WEIGHTS = {"squared": TAU, "twice": 2.0}  # of the distillation loss, which has the factor τ already


@dataclasses.dataclass(frozen=True)
class Cosine:
    """A learning rate that falls along half a cosine, from the first one to 0.

    Attributes:
        learning_rate: the first one.
        epochs: length of the training.
    """

    learning_rate: float
    epochs: int

    def __call__(self, epoch):
        """Returns the learning rate at an epoch, which may be a fraction."""
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


def make_schedule(run):
    """Returns the schedule of a Run."""
    if run.change == "cosine":
        return Cosine(SETTINGS.learning_rate, run.epochs)
    return Schedule(SETTINGS.learning_rate, SETTINGS.decay_points, SETTINGS.decay_rate, run.epochs)


@contextlib.contextmanager
def averaging(is_averaged):
    """Lets optimizers that are made meanwhile keep an average of the weights, if asked."""
    if not is_averaged:
        yield
        return
    plain = keras.optimizers.SGD

    def make(**options):
        return plain(**options, use_ema=True, ema_momentum=EMA_MOMENTUM)

    with mock.patch.object(keras.optimizers, "SGD", make):
        yield


# ---------------------------------------------------------------- teachers


def make_teaching(run, data, unpruned, make_bank, make_teachers):
    """Returns the Teaching of a Run.

    Args:
        run: Run.
        data: data.Dataset.
        unpruned: the unpruned keras.Model, before the epoch on D_subset.
        make_bank: function that returns the MemoryBank of the run's search.
        make_teachers: function that returns the networks of that bank, the top one first.
    """
    if run.change in WEIGHTS:
        data = dataclasses.replace(data, task=WeightedClassification(weight=WEIGHTS[run.change]))
    if run.teacher == "labels":
        return Teaching(losses.fine_tuning(data, "none", TAU, num_views=run.num_views))
    if run.teacher == "single":
        forward = pure_forward(unpruned)
        loss_fn = losses.fine_tuning(data, "single", TAU, forward, num_views=run.num_views)
        return Teaching(loss_fn, unpruned)
    if run.teacher == "five":
        together = join(make_teachers())
        return Teaching(fine_tuning_by_five(data, run.num_views, together), together)
    memory_bank = clean_bank(data, unpruned) if run.teacher == "clean" else make_bank()
    if run.change == "by-image":
        loss_fn = fine_tuning_by_image(data, run.num_views)
    else:
        loss_fn = losses.fine_tuning(data, "ensemble", TAU, num_views=run.num_views)
    return Teaching(loss_fn, complete=lambda batch: {"bank": memory_bank.rows(batch["index"])})


def clean_bank(data, unpruned):
    """Returns the MemoryBank of the unpruned network alone, of images as they are, moving
    statistics.
    """
    forward = in_graph(lambda images: unpruned(data.normalise(images), training=False))
    batches = data.batches(data.train, SETTINGS.batch_size)
    logits = np.concatenate([forward(images).numpy() for images in batches.images()])
    return MemoryBank(logits[:, None])


def join(models):
    """Returns a keras.Model from images to the outputs of several networks, [batch, networks,
    classes].

    Args:
        models: list of keras.Models of one input shape; their names change.
    """
    inputs = keras.Input(models[0].input_shape[1:])
    for number, model in enumerate(models):
        model.name = f"teacher{number}"
    outputs = [model(inputs) for model in models]
    return keras.Model(inputs, outputs)


def fine_tuning_by_five(data, num_views, together):
    """Returns the loss_fn of teachers that run along on each view, with the statistics of the
    batch.

    Each view counts as an image of its own: G compares sums over all views of the batch.

    Args:
        data: data.Dataset.
        num_views: views of each image.
        together: keras.Model of all teachers, the top one first; see join.
    """
    forward = pure_forward(together, ExecutionOptions(norms_alone=True))

    def know(batch, views, outputs, constants):
        bank = tf.stack(forward(*constants, views, True)[0], axis=1)
        return losses.choose_knowledge(bank, outputs, TAU, data.task)

    return _fine_tuning(data, num_views, know)


def fine_tuning_by_image(data, num_views):
    """Returns the loss_fn of a memory bank whose teachers G each image chooses for itself."""

    def know(batch, views, outputs, constants):
        bank = tf.cast(batch["bank"], tf.float32)
        mean = tf.reduce_mean(tf.reshape(outputs, [num_views, -1, outputs.shape[-1]]), axis=0)
        top = bank[:, :1]
        gaps = data.task.divergence(top, bank, TAU)  # [batch, K]
        student_gap = data.task.divergence(top, mean[:, None], TAU)  # [batch, 1]
        is_top = tf.range(bank.shape[1]) == 0
        chosen = tf.cast((gaps < student_gap) | is_top, tf.float32)
        count = tf.reduce_sum(chosen, axis=1)
        knowledge = tf.reduce_sum(bank * chosen[..., None], axis=1) / count[:, None]
        return tf.tile(knowledge, [num_views, 1]), tf.reduce_mean(count)

    return _fine_tuning(data, num_views, know)


def _fine_tuning(data, num_views, know):
    """Returns the loss_fn of fine-tuning as losses.fine_tuning(), with other knowledge.

    Args:
        data: data.Dataset.
        num_views: views of each image.
        know: function (batch, views, outputs without gradient, constants) -> (knowledge of every
            view [views of the batch, classes], number of teachers that it is the mean of).
    """
    task = data.task

    def loss_fn(network, batch, constants):
        views = tf.concat(data.fine_tune_views(batch, num_views), 0)
        outputs = network(views)
        labels = tf.tile(batch["labels"], [num_views])
        knowledge, count = know(batch, views, tf.stop_gradient(outputs), constants)
        terms = {
            losses.LABEL_TERM: tf.reduce_mean(task.loss(labels, outputs)),
            "top1": tf.reduce_mean(task.measure(labels, outputs)["top1"]),
            "num_teachers": count,
            "distillation": tf.reduce_mean(task.divergence(knowledge, outputs, TAU)),
        }
        return terms[losses.LABEL_TERM] + terms["distillation"], terms

    return loss_fn


def teachers_of(history):
    """Returns the history entries that the memory bank takes, the one with the lowest loss
    first.
    """
    steps = banks.select_teachers([entry.loss for entry in history], NUM_TEACHER)
    return [history[step] for step in steps]


def top1(model, batches):
    """Returns the top-1 of a network on images, in %."""
    return 100 * Evaluation(model, batches)().top1
