"""The training losses; each function returns a loss_fn for train.step.Trainer."""

import tensorflow as tf

from ekg.errors import EkgError
from ekg.tasks.kinds import Classification


def plain(data):
    """Returns the loss_fn for labels and images without augmentation."""
    return _labels(data.task.in_training(), lambda batch: data.normalise(batch["images"]))


def baseline(data, label_smoothing=0.0):
    """Returns the loss_fn for labels and one flipped and cropped view per image.

    Args:
        data: data.Dataset.
        label_smoothing: share of each label that is spread evenly over all classes.
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
    """Raises EkgError if a teacher does not fit a data set's views, or leaves outputs untrained.

    Args:
        data: data.Dataset.
        teacher: "ensemble", "single" or "none".
    """
    if teacher == "none" and not data.task.has_labels:
        raise EkgError(
            '`finetune_teacher` "none" trains with labels alone, and an output has none: take '
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
    """Returns the loss_fn of fine-tuning: the mean of CE(labels, view) + KL(knowledge ‖ view).

    The mean is over the views and images of a batch. Other tasks than classification use their own
    loss and divergence instead of CE and KL. All views of a batch go through the network together.
    Views that move maps also move their labels and the bank's rows. Each of them is compared with
    its own knowledge, since no position is the same in all views.

    Args:
        data: data.Dataset.
        teacher: "ensemble" takes the knowledge from batch["bank"], float [batch, K, ...]; "single"
            from a teacher that computes each view with moving statistics; "none" trains with labels
            alone.
        temperature: the temperature τ.
        teacher_forward: pure forward function of the "single" teacher; its variables are passed as
            constants.
        label_smoothing: share of each label that is spread evenly over all classes.
        num_views: number of views per image, see LabelledData.fine_tune_views; None takes the
            number of the data set.

    Raises:
        EkgError: see check_teacher().
    """
    check_teacher(data, teacher)
    task = data.task.in_training()
    num_views = num_views or data.num_views

    def loss_fn(network, batch, constants):
        views = _joined(data.fine_tune_views(batch, num_views))
        outputs = task.of(network(views))
        labels = _joined([data.fine_tune_labels(batch, view) for view in range(num_views)])
        terms = {
            LABEL_TERM: tf.reduce_mean(task.label_loss(labels, outputs, label_smoothing)),
            **_first_metric(task, labels, outputs),
        }
        loss = terms[LABEL_TERM]
        if teacher == "ensemble" and data.moves_knowledge:
            rows = _joined([data.fine_tune_knowledge(batch, view) for view in range(num_views)])
            knowledge, terms["num_teachers"] = choose_knowledge(
                tf.cast(rows, tf.float32), tf.stop_gradient(outputs), temperature, task
            )
        elif teacher == "ensemble":
            by_view = tf.reshape(outputs, [num_views, -1, *outputs.shape[1:]])
            mean = tf.reduce_mean(by_view, axis=0)
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


LABEL_TERM = "cross_entropy"  # name of the label loss in the curves, for every task


def _joined(views):
    """Concatenates the views of a batch, tensors or structures of tensors, to one batch."""
    return tf.nest.map_structure(lambda *parts: tf.concat(parts, 0), *views)


def _repeated(values, times):
    return tf.tile(values, [times] + [1] * (len(values.shape) - 1))


def choose_knowledge(bank, student, temperature, task=None):
    """Returns (M̄ [batch, ...], |G|): the mean over the set G of teachers that are still useful.

    G = { k : Σ over the batch of KL(top ‖ M_k) < Σ over the batch of KL(top ‖ student) }, and the
    top teacher always belongs to G (Lee and Song 2022). If a batch is split over replicas or
    micro-batches, each part chooses for itself, because the student's outputs for the whole batch
    are known only after all parts have run.

    Args:
        bank: outputs M of the teachers, [batch, K, ...]; logits for classification; teacher 0 is
            the top one.
        student: outputs of the network in training, [batch, ...], averaged over its views.
        temperature: the temperature τ.
        task: Task whose divergence replaces KL; None for classification.
    """
    task = task or Classification()
    top = bank[:, 0]
    num_teachers = bank.shape[1]
    divergences = [task.divergence(top, bank[:, k], temperature) for k in range(num_teachers)]
    gaps = tf.stack([tf.reduce_sum(values) for values in divergences])
    student_gap = tf.reduce_sum(task.divergence(top, student, temperature))
    is_top = tf.range(num_teachers) == 0
    chosen = tf.cast((gaps < student_gap) | is_top, bank.dtype)
    count = tf.reduce_sum(chosen)
    shares = tf.reshape(chosen, [1, -1] + [1] * (len(bank.shape) - 2))
    return tf.reduce_sum(bank * shares, axis=1) / count, count
