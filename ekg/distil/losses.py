"""The losses that networks are trained with; each function makes a loss_fn for train.step.Trainer."""

import tensorflow as tf

from ekg import tasks

NUM_VIEWS = 2


def plain(normalise):
    """Returns the loss_fn of cross-entropy on images as they are."""
    return _labels(lambda batch: normalise(batch["images"]))


def baseline(data, label_smoothing=0.0):
    """Returns the loss_fn of cross-entropy on one view, flipped and cropped; see with_labels."""
    return _labels(data.baseline_view, label_smoothing)


def _labels(view, label_smoothing=0.0):
    def loss_fn(network, batch, _):
        logits = network(view(batch))
        loss = with_labels(batch["labels"], logits, label_smoothing)
        return loss, {"top1": tf.reduce_mean(tasks.top_k_hits(batch["labels"], logits, 1))}
    return loss_fn


def with_labels(labels, logits, smoothing=0.0):
    """Returns the mean cross-entropy with the labels, of which a share `smoothing` is spread over all classes evenly.

    Szegedy et al. 2016, section 7.
    """
    loss = tasks.cross_entropy(labels, logits)
    if smoothing:
        loss = (1 - smoothing) * loss - smoothing * tf.reduce_mean(tf.nn.log_softmax(logits), axis=-1)
    return tf.reduce_mean(loss)


def fine_tuning(data, teacher, temperature, teacher_forward=None, label_smoothing=0.0):
    """Returns the loss_fn of fine-tuning: ½ Σ over views of [CE(labels, view) + KL(knowledge ‖ view)], batch mean.

    Both views of a batch go through the network together.

    Args:
        data: data.Dataset.
        teacher: "ensemble" takes the knowledge from batch["bank"] (float [batch, K, classes]), "single" from a teacher
            that runs along on each view with moving statistics, "none" leaves it out.
        temperature: τ.
        teacher_forward: for "single": the teacher's pure forward function; its variables come as constants.
        label_smoothing: see with_labels.
    """
    def loss_fn(network, batch, constants):
        views = tf.concat([data.fine_tune_view(batch, a) for a in range(NUM_VIEWS)], 0)
        logits = network(views)
        labels = tf.tile(batch["labels"], [NUM_VIEWS])
        terms = {"cross_entropy": with_labels(labels, logits, label_smoothing),
                 "top1": tf.reduce_mean(tasks.top_k_hits(labels, logits, 1))}
        loss = terms["cross_entropy"]
        if teacher == "ensemble":
            mean = tf.reduce_mean(tf.reshape(logits, [NUM_VIEWS, -1, data.num_classes]), axis=0)
            bank = tf.cast(batch["bank"], tf.float32)
            knowledge, terms["num_teachers"] = choose_knowledge(bank, tf.stop_gradient(mean), temperature)
            knowledge = tf.tile(knowledge, [NUM_VIEWS, 1])
        elif teacher == "single":
            knowledge = teacher_forward(*constants, views, False)[0]
        if teacher != "none":
            terms["distillation"] = tf.reduce_mean(tasks.kl_divergence(knowledge, logits, temperature))
            loss += terms["distillation"]
        return loss, terms
    return loss_fn


def choose_knowledge(bank, student, temperature):
    """Returns (M̄ [batch, classes], number of teachers in G): the mean of the teachers that still know more.

    G = { k : Σ over the batch of KL(top ‖ M_k) < Σ over the batch of KL(top ‖ student) }, and the top teacher always
    belongs to it (Lee and Song 2022). Where a batch is split over replicas or micro-batches, each part chooses for
    itself: what the whole batch knows of the student is there only after all parts have run.

    Args:
        bank: logits of the teachers, [batch, K, classes]; teacher 0 is the top one.
        student: logits of the network in training, [batch, classes], the mean over its views.
        temperature: τ.
    """
    top = bank[:, :1]
    gaps = tf.reduce_sum(tasks.kl_divergence(top, bank, temperature), axis=0)
    student_gap = tf.reduce_sum(tasks.kl_divergence(top[:, 0], student, temperature))
    is_top = tf.range(tf.shape(gaps)[0]) == 0
    chosen = tf.cast((gaps < student_gap) | is_top, bank.dtype)
    count = tf.reduce_sum(chosen)
    return tf.reduce_sum(bank * chosen[None, :, None], axis=1) / count, count
