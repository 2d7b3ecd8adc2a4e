"""The losses that networks are trained with; each function makes a loss_fn for
train.step.Trainer.
"""

import tensorflow as tf

from ekg.errors import EkgError
from ekg.tasks.kinds import Classification


def plain(data):
    """Returns the loss_fn of labels on images as they are."""
    return _labels(data.task.in_training(), lambda batch: data.normalise(batch["images"]))


def baseline(data, label_smoothing=0.0):
    """Returns the loss_fn of labels on one view, flipped and cropped.

    Args:
        data: data.Dataset.
        label_smoothing: share of the labels that is spread over all classes evenly.
    """
    return _labels(data.task.in_training(), data.plain_view, label_smoothing)


def _labels(task, view, label_smoothing=0.0):
    def loss_fn(network, batch, _):
        outputs = task.of(network(view(batch)))
        loss = tf.reduce_mean(task.loss(batch["labels"], outputs, label_smoothing))
        return loss, _first_metric(task, batch["labels"], outputs)

    return loss_fn


def _first_metric(task, labels, outputs):
    name = task.metrics[0]
    return {name: tf.reduce_mean(task.measure(labels, outputs)[name])}


def check_teacher(data, teacher):
    """Raises EkgError if this teacher cannot follow the views of a data set, or leaves outputs
    untrained.
    """
    if teacher == "none" and not data.task.has_labels:
        raise EkgError(
            '`finetune_teacher` "none" trains by labels alone, and an output has none: take '
            '"single" or "ensemble", or give its labels.'
        )
    if teacher == "ensemble" and data.num_views > 1 and data.task.needs_teacher_of_views:
        raise EkgError(
            "`augment` may move what an output without labels says, and the memory bank knows "
            'images as they are: take the finetune_teacher "single", which teaches each view.'
        )
    if teacher == "ensemble" and data.changes_labels:
        raise EkgError(
            "`augment` returns labels, and the memory bank knows nothing of these; take the "
            'finetune_teacher "single", which teaches each view, or "none".'
        )


def fine_tuning(
    data, teacher, temperature, teacher_forward=None, label_smoothing=0.0, num_views=None
):
    """Returns the loss_fn of fine-tuning: mean over views of [CE(labels, view) + KL(knowledge ‖
    view)], batch mean.

    For another task than classification its loss and its divergence stand in place of CE and KL.
    All views of a batch go through the network together. Views that move maps move their labels and
    the bank's rows alike, and each is compared with the knowledge by itself, as no place is the
    same in all of them.

    Args:
        data: data.Dataset.
        teacher: "ensemble" takes the knowledge from batch["bank"] (float [batch, K, ...]), "single"
            from a teacher that runs along on each view with moving statistics, "none" leaves it
            out.
        temperature: τ.
        teacher_forward: for "single": the teacher's pure forward function; its variables come as
            constants.
        label_smoothing: see baseline.
        num_views: views of each image, see LabelledData.fine_tune_views; None takes as many as the
            data set has.

    Raises:
        EkgError: see check_teacher().
    """
    check_teacher(data, teacher)
    task, num_views = data.task.in_training(), num_views or data.num_views

    def loss_fn(network, batch, constants):
        views = _joined(data.fine_tune_views(batch, num_views))
        outputs = task.of(network(views))
        labels = _joined([data.fine_tune_labels(batch, a) for a in range(num_views)])
        terms = {
            LABEL_TERM: tf.reduce_mean(task.label_loss(labels, outputs, label_smoothing)),
            **_first_metric(task, labels, outputs),
        }
        loss = terms[LABEL_TERM]
        if teacher == "ensemble" and data.moves_knowledge:
            rows = _joined([data.fine_tune_knowledge(batch, a) for a in range(num_views)])
            knowledge, terms["num_teachers"] = choose_knowledge(
                tf.cast(rows, tf.float32), tf.stop_gradient(outputs), temperature, task
            )
        elif teacher == "ensemble":
            mean = tf.reduce_mean(tf.reshape(outputs, [num_views, -1, *outputs.shape[1:]]), axis=0)
            bank = tf.cast(batch["bank"], tf.float32)
            knowledge, terms["num_teachers"] = choose_knowledge(
                bank, tf.stop_gradient(mean), temperature, task
            )
            knowledge = _repeated(knowledge, num_views)
        elif teacher == "single":
            knowledge = task.of(teacher_forward(*constants, views, False)[0])
        if teacher != "none":
            terms["distillation"] = tf.reduce_mean(task.divergence(knowledge, outputs, temperature))
            loss += terms["distillation"]
        return loss, terms

    return loss_fn


LABEL_TERM = "cross_entropy"  # name of the loss with the labels in the curves, whatever the task


def _joined(views):
    """Returns the views of a batch, tensors or structures of them, as one batch."""
    return tf.nest.map_structure(lambda *parts: tf.concat(parts, 0), *views)


def _repeated(values, times):
    return tf.tile(values, [times] + [1] * (len(values.shape) - 1))


def choose_knowledge(bank, student, temperature, task=None):
    """Returns (M̄ [batch, ...], number of teachers in G): the mean of the teachers that still know
    more.

    G = { k : Σ over the batch of KL(top ‖ M_k) < Σ over the batch of KL(top ‖ student) }, and the
    top teacher always belongs to it (Lee and Song 2022). Where a batch is split over replicas or
    micro-batches, each part chooses for
    itself: what the whole batch knows of the student is there only after all parts have run.

    Args:
        bank: outputs of the teachers, [batch, K, ...], of a classification logits; teacher 0 is the
            top one.
        student: outputs of the network in training, [batch, ...], the mean over its views.
        temperature: τ.
        task: Task whose divergence stands for KL; None stands for a classification.
    """
    task, top = task or Classification(), bank[:, 0]
    num_teachers = bank.shape[1]
    gaps = tf.stack(
        [tf.reduce_sum(task.divergence(top, bank[:, k], temperature)) for k in range(num_teachers)]
    )
    student_gap = tf.reduce_sum(task.divergence(top, student, temperature))
    is_top = tf.range(num_teachers) == 0
    chosen = tf.cast((gaps < student_gap) | is_top, bank.dtype)
    count = tf.reduce_sum(chosen)
    shares = tf.reshape(chosen, [1, -1] + [1] * (len(bank.shape) - 2))
    return tf.reduce_sum(bank * shares, axis=1) / count, count
