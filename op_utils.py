"""What runs on devices: strategy, compiled steps, gradient accumulation, losses, schedule, exact evaluation.

On every replica a pure function, compiled with XLA where that pays, returns gradients, batch norm statistics and
metrics. Variables change outside it, so the same code runs on one CPU and on several GPUs under MirroredStrategy.
"""

import dataclasses
import functools
import logging

import keras
import numpy as np
import tensorflow as tf

import utils

logger = logging.getLogger("ekg")

MOMENTUM = 0.9
XLA_FAILURES = (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, tf.errors.InternalError)
LOSS_SCALE, LOSS_SCALE_GROWTH_STEPS = 2.0**15, 2000  # where float16 gradients start to be scaled, and when it doubles


# ---------------------------------------------------------------- compiled functions

class Compiled:
    """A function that is compiled with XLA if asked and if XLA can; else one warning line, and it goes on uncompiled.

    Attributes:
        is_compiled: whether calls run through XLA.
    """

    def __init__(self, make, name, jit):
        """
        Args:
            make: function from whether to compile to the tf.function.
            name: what to call it in the warning.
            jit: whether to compile with XLA.
        """
        self._make, self._name, self.is_compiled = make, name, jit
        self._function = make(jit)

    def __call__(self, *args):
        try:
            return self._function(*args)
        except XLA_FAILURES as error:
            if not self.is_compiled:
                raise
            plain = self._make(False)
            result = plain(*args)  # what is wrong with the arguments fails here, too
            self._function, self.is_compiled = plain, False
            reason = " ".join(error.message.split())
            logger.warning("XLA cannot compile the %s (%s); it runs uncompiled.", self._name, reason[:160])
            return result

    def count_traces(self):
        """Returns how many graphs were made of the function."""
        return self._function.experimental_get_tracing_count()


def compiled(function, name, jit):
    """Returns a pure function as Compiled."""
    return Compiled(lambda jit: tf.function(function, jit_compile=jit), name, jit)


def split_batch(strategy, batch):
    """Returns this process's part of a batch {name: array [part, ...]} as values of its replicas, split along axis 0."""
    if strategy.num_replicas_in_sync == 1:
        return {name: tf.convert_to_tensor(value) for name, value in batch.items()}
    replicas = len(strategy.extended.worker_devices)

    def part(context):
        number = context.replica_id_in_sync_group % replicas
        size = {name: len(value) // replicas for name, value in batch.items()}
        return {name: tf.convert_to_tensor(value[number * size[name]:(number + 1) * size[name]])
                for name, value in batch.items()}
    return strategy.experimental_distribute_values_from_function(part)


# ---------------------------------------------------------------- pure layers and losses

def batch_norm(layer, weights, x, training, sync=False, fuse=True):
    """Returns (output, new moving statistics) of a Keras BatchNormalization as one fused operation.

    Equals the layer's own call, whose separate moments and scaling take about three times as long. Returns None where
    the fused operation does not apply (other ranks or axes, no scale or offset, statistics shared by replicas).

    Args:
        layer: the keras.layers.BatchNormalization.
        weights: [gamma, beta, moving mean, moving variance], each [channels], float32.
        x: [batch, height, width, channels], float32 or of half the width.
        training: True normalises with the statistics of the batch and moves the moving ones towards them.
        sync: whether the statistics are those of all replicas' parts together; call it where replicas can meet then, in the
            strategy's own graph.
        fuse: whether to take the fused operation; its second derivatives are slow, those of its parts are not.
    """
    if len(x.shape) != 4 or layer.axis not in (-1, 3) or not (layer.scale and layer.center):
        return None
    if layer.synchronized or getattr(layer, "renorm", False):
        return None
    gamma, beta, mean, variance = weights
    if not (training and layer.trainable):
        if not fuse:
            return tf.nn.batch_normalization(x, mean, variance, beta, gamma, layer.epsilon), [mean, variance]
        y = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, mean, variance, epsilon=layer.epsilon, is_training=False)[0]
        return y, [mean, variance]
    if sync:
        whole = functools.partial(tf.distribute.get_replica_context().all_reduce, tf.distribute.ReduceOp.MEAN)
        batch_mean = whole(tf.reduce_mean(tf.cast(x, tf.float32), axis=(0, 1, 2)))
        batch_variance = whole(tf.reduce_mean((tf.cast(x, tf.float32) - batch_mean) ** 2, axis=(0, 1, 2)))
        y = tf.nn.batch_normalization(tf.cast(x, tf.float32), batch_mean, batch_variance, beta, gamma, layer.epsilon)
        y = tf.cast(y, x.dtype)
    elif not fuse:
        # Not tf.nn.moments: it takes the mean as a constant in the variance, so its second derivatives are wrong.
        batch_mean = tf.reduce_mean(x, axis=(0, 1, 2))
        centred = x - batch_mean
        batch_variance = tf.reduce_mean(centred**2, axis=(0, 1, 2))
        y = centred * (tf.math.rsqrt(batch_variance + layer.epsilon) * gamma) + beta
    else:
        y, batch_mean, batch_variance = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=layer.epsilon)
        # The fused operation reports the unbiased variance; Keras moves towards the biased one that normalises.
        count = tf.cast(tf.reduce_prod(tf.shape(x)[:3]), tf.float32)
        batch_variance *= (count - 1) / count
    keep = layer.momentum
    return y, [mean * keep + batch_mean * (1 - keep), variance * keep + batch_variance * (1 - keep)]


def cross_entropy(labels, logits):
    """Returns the cross-entropy of every example with its label, [batch], nats.

    Args:
        labels: class numbers [batch], int.
        logits: [batch, classes].
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int32), logits)


def soft_cross_entropy(teacher, logits):
    """Returns -sum softmax(teacher) log softmax(logits) of every example, [batch], nats; both are logits."""
    return tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(teacher), logits)


def kl_divergence(teacher, logits, temperature):
    """Returns the distillation loss of every example: temperature times KL(softmax(teacher/t) || softmax(logits/t)).

    Args:
        teacher: logits [..., classes].
        logits: logits [..., classes], of a shape that broadcasts with the teacher's.
        temperature: t; the factor t is the method's.
    """
    log_p = tf.nn.log_softmax(teacher / temperature)
    log_q = tf.nn.log_softmax(logits / temperature)
    return temperature * tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def top_k_hits(labels, logits, k):
    """Returns whether the label is among the k highest logits, [batch], float32; of equal ones the first is the highest."""
    labels = tf.cast(labels, tf.int32)[:, None]
    own = tf.gather(logits, labels, axis=1, batch_dims=1)
    is_before = (logits == own) & (tf.range(tf.shape(logits)[1])[None] < labels)
    rank = tf.reduce_sum(tf.cast(~(logits <= own) | is_before, tf.int32), axis=1)  # a NaN hits nothing
    return tf.cast(rank < k, tf.float32)


# ---------------------------------------------------------------- training

@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate that rises linearly at first, if asked, and is multiplied by decay_rate at each decay point.

    Attributes:
        learning_rate: the first one.
        decay_points: fractions of the training, in (0, 1).
        decay_rate: factor at each point.
        epochs: length of the training.
        warmup_epochs: epochs w of the rise, from 1/(w + 1) of the learning rate to all of it.
    """
    learning_rate: float
    decay_points: tuple[float, ...]
    decay_rate: float
    epochs: int
    warmup_epochs: int = 0

    def __call__(self, epoch):
        """Returns the learning rate at an epoch, which may be a fraction."""
        passed = sum(epoch >= point * self.epochs - 1e-9 for point in self.decay_points)
        return self.learning_rate * self.decay_rate**passed * min((epoch + 1) / (self.warmup_epochs + 1), 1.0)


def graph_step(forward, loss_fn, trainable, non_trainable, constants, batch, accum, weight_decay, loss_scale=1.0):
    """Returns (gradients, new non-trainable values, metrics) of one replica's batch. Pure.

    The batch is cut into `accum` micro-batches that run one after the other; gradients and metrics are means over them, and
    so are the new moving statistics, each of which starts from the old ones.

    Args:
        forward: (trainable, non-trainable, images, training) -> (logits, new non-trainable), like stateless_call.
        loss_fn: (network, batch, constants) -> (mean loss, {name: mean metric}); network is images -> logits.
        trainable: list of tensors.
        non_trainable: list of tensors.
        constants: whatever else loss_fn needs, such as a teacher's weights.
        batch: {name: tensor [batch, ...]}; batch is a multiple of accum.
        accum: number of micro-batches.
        weight_decay: added to the gradient as weight_decay * weight.
        loss_scale: the loss is multiplied by it on the way back, and the gradients divided: those of float16 activations
            would be too small for their format.
    """
    pieces = {name: tf.reshape(value, [accum, value.shape[0] // accum, *value.shape[1:]])
              for name, value in batch.items()}

    def micro_batch(number):
        updated = []

        def network(images):
            logits, new = forward(trainable, non_trainable, images, True)
            updated.append(new)
            return logits

        with tf.GradientTape() as tape:
            tape.watch(trainable)
            loss, metrics = loss_fn(network, {name: piece[number] for name, piece in pieces.items()}, constants)
            scaled = loss * loss_scale
        gradients = tape.gradient(scaled, trainable, unconnected_gradients="zero")
        return gradients, updated[-1], {"loss": loss, **metrics}

    total = micro_batch(0)
    if accum > 1:
        def body(number, so_far):
            # What is not floating, the state of a random generator, is taken from the last micro-batch.
            return number + 1, tf.nest.map_structure(lambda old, new: old + new if new.dtype.is_floating else new,
                                                     so_far, micro_batch(number))
        _, total = tf.while_loop(lambda number, _: number < accum, body, (tf.constant(1), total))
    gradients, new, metrics = tf.nest.map_structure(
        lambda value: value / accum if value.dtype.is_floating else value, total)
    gradients = [gradient / loss_scale + weight_decay * weight for gradient, weight in zip(gradients, trainable)]
    return gradients, new, metrics


class Trainer:
    """Trains one model: SGD with Nesterov momentum 0.9, weight decay added to the gradient.

    Attributes:
        model: the keras.Model, created under the strategy's scope.
        optimizer: the keras.optimizers.SGD.
        loss_scale: tf.Variable, 1 unless the loss is scaled.
        good_steps: tf.Variable, steps with finite gradients since the loss scale last changed.
    """

    def __init__(self, strategy, model, loss_fn, *, weight_decay, forward=None, constants=(), accum=1, jit=False,
                 update_statistics=True, scale_loss=False, sync=False):
        """
        Args:
            strategy: tf.distribute.Strategy under whose scope the model was created.
            model: the keras.Model.
            loss_fn: (network, batch, constants) -> (mean loss, {name: mean metric}); see graph_step.
            weight_decay: factor.
            forward: pure forward function of the model; None takes model.stateless_call.
            constants: keras.Model whose variables loss_fn gets as [trainable, non-trainable], or ().
            accum: number of micro-batches a replica's batch is cut into.
            jit: whether to compile the step with XLA.
            update_statistics: whether the moving statistics of batch norms move.
            scale_loss: whether the loss is scaled for float16: the scale doubles after LOSS_SCALE_GROWTH_STEPS steps with
                finite gradients; a step without is left out and halves it.
            sync: whether replicas meet inside the forward pass; then the step is neither compiled nor cut.
        """
        if sync and (accum > 1 or jit):
            raise ValueError("sync and accum or jit exclude each other: replicas cannot meet inside a compiled function.")
        self.model = model
        self._strategy, self._constants, self._update_statistics = strategy, constants, update_statistics
        self._scales_loss = scale_loss
        with strategy.scope():
            self.optimizer = keras.optimizers.SGD(learning_rate=0.0, momentum=MOMENTUM, nesterov=True)
            self.optimizer.build(model.trainable_variables)
            self.loss_scale = tf.Variable(LOSS_SCALE if scale_loss else 1.0, trainable=False)
            self.good_steps = tf.Variable(0, trainable=False)
        replicas = strategy.num_replicas_in_sync  # the optimizer sums their gradients

        def replica_step(trainable, non_trainable, constants, loss_scale, batch):
            gradients, new, metrics = graph_step(forward or model.stateless_call, loss_fn, trainable, non_trainable,
                                                 constants, batch, accum, weight_decay, loss_scale)
            return [gradient / replicas for gradient in gradients], new, metrics

        def make_step(jit):
            function = replica_step if sync else tf.function(replica_step, jit_compile=jit)
            return tf.function(functools.partial(self._distributed_step, function))

        self._step = Compiled(make_step, "training step", jit)
        self._learning_rate = None

    def step(self, batch, learning_rate):
        """Updates the model with one global batch and returns {name: mean metric} as scalar tensors.

        Args:
            batch: {name: array [part, ...]} with a static shape: this process's part of the global batch.
            learning_rate: of this step.
        """
        if learning_rate != self._learning_rate:
            self.optimizer.learning_rate.assign(learning_rate)
            self._learning_rate = learning_rate
        return self._step(split_batch(self._strategy, batch))

    def _distributed_step(self, replica_step, batch):
        gradients, new, metrics = self._strategy.run(self._run_replica, args=(replica_step, batch))
        if self._scales_loss:
            broken = self._strategy.run(_count_non_finite, args=(gradients,))
            is_finite = self._strategy.reduce(tf.distribute.ReduceOp.SUM, broken, axis=None) == 0
            tf.cond(is_finite, lambda: self._update(gradients, new), lambda: self._assign_scale(self.loss_scale / 2, 0))
        else:
            self._update(gradients, new)
        return {name: self._mean(value) for name, value in metrics.items()}

    def _run_replica(self, replica_step, batch):
        trainable, non_trainable = read_variables(self.model)
        constants = read_variables(self._constants) if self._constants else ()
        return replica_step(trainable, non_trainable, constants, tf.convert_to_tensor(self.loss_scale), batch)

    def _update(self, gradients, new):
        self._strategy.run(lambda own: self.optimizer.apply(own, self.model.trainable_variables), args=(gradients,))
        if self._update_statistics:
            for variable, value in zip(self.model.non_trainable_variables, new):
                is_mean = variable.value.dtype.is_floating
                variable.value.assign(self._mean(value) if is_mean else self._strategy.experimental_local_results(value)[0])
        if self._scales_loss:
            steps = self.good_steps + 1
            grows = steps >= LOSS_SCALE_GROWTH_STEPS
            self._assign_scale(tf.where(grows, 2 * self.loss_scale, self.loss_scale), tf.where(grows, 0, steps))

    def _assign_scale(self, loss_scale, good_steps):
        self.loss_scale.assign(loss_scale)
        self.good_steps.assign(good_steps)

    def _mean(self, value):
        return self._strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None)


def _count_non_finite(tensors):
    return tf.add_n([tf.reduce_sum(tf.cast(~tf.math.is_finite(tensor), tf.int32)) for tensor in tensors])


def read_variables(model):
    """Returns (trainable, non-trainable) of a model as two lists of tensors."""
    return ([tf.convert_to_tensor(variable.value) for variable in model.trainable_variables],
            [tf.convert_to_tensor(variable.value) for variable in model.non_trainable_variables])


# ---------------------------------------------------------------- evaluation

@dataclasses.dataclass(frozen=True)
class Metrics:
    """Mean loss (cross-entropy, nats) and shares of right answers in [0, 1] over a whole split."""
    loss: float
    top1: float
    top5: float


def evaluate(strategy, model, split, normalise, batch_size, *, forward=None, jit=False, progress=None, shard=(0, 1)):
    """Returns exact Metrics of a model over a split, with moving statistics.

    Losses and hits are summed; the last short batch is filled up with images that count nothing, so one compilation
    serves all and no mean of means is taken.

    Args:
        strategy: tf.distribute.Strategy.
        model: keras.Model from normalised images to logits.
        split: dataloader split with stream(batches of indices) and labels.
        normalise: uint8 images -> float32 images.
        batch_size: global batch; a multiple of the number of replicas.
        forward: pure forward function of the model; None takes model.stateless_call.
        jit: whether to compile with XLA.
        progress: progress bar that gets update(number of images), or None.
        shard: (number of this process, number of processes); each reads its own part of every batch.
    """
    forward = forward or model.stateless_call

    def sums(trainable, non_trainable, batch):
        logits = tf.cast(forward(trainable, non_trainable, normalise(batch["images"]), False)[0], tf.float32)
        labels = batch["labels"]
        values = tf.stack([cross_entropy(labels, logits), top_k_hits(labels, logits, 1), top_k_hits(labels, logits, 5)])
        return tf.reduce_sum(tf.cast(values * batch["weight"], tf.float64), axis=1)

    def make_step(jit):
        replica_sums = tf.function(sums, jit_compile=jit)

        def step(batch):
            result = strategy.run(lambda part: replica_sums(*read_variables(model), part), args=(batch,))
            return strategy.reduce(tf.distribute.ReduceOp.SUM, result, axis=None)
        return tf.function(step)

    step, total = Compiled(make_step, "evaluation step", jit), np.zeros(3)
    batches = [np.arange(start, start + batch_size) for start in range(0, len(split), batch_size)]
    batches = [np.array_split(indices, shard[1])[shard[0]] for indices in batches]
    padded = [np.minimum(indices, len(split) - 1) for indices in batches]
    for indices, read, images in zip(batches, padded, split.stream(padded)):
        batch = {"weight": (indices < len(split)).astype(np.float32), "images": images, "labels": split.labels[read]}
        total += step(split_batch(strategy, batch)).numpy()
        utils.check_stopped()
        if progress is not None:
            progress.update(int(batch["weight"].sum()) * shard[1])
    return Metrics(*(float(value) for value in total / len(split)))


def reestimate_statistics_(model, batches, forward=None, jit=False):
    """Sets the moving mean and variance of every batch norm to those of the images in `batches`, exactly.

    Each batch passes with batch statistics; mean and mean square are averaged over all images.

    Args:
        model: keras.Model, changed in place.
        batches: iterable of normalised images [batch, height, width, channels].
        forward: pure forward function of the model; None takes model.stateless_call.
        jit: whether to compile with XLA.
    """
    forward = forward or model.stateless_call
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    position = {id(variable): i for i, variable in enumerate(model.non_trainable_variables)}
    zeros = [tf.zeros_like(value) for value in read_variables(model)[1]]

    def moments(trainable, images):
        # From statistics of zero the moving average returns (1 - momentum) times those of the batch.
        new = forward(trainable, zeros, images, True)[1]
        result = []
        for layer in norms:
            mean = new[position[id(layer.moving_mean)]] / (1 - layer.momentum)
            variance = new[position[id(layer.moving_variance)]] / (1 - layer.momentum)
            result.append((mean, variance + mean**2))
        return result

    moments = compiled(moments, "pass for batch norm statistics", jit)
    trainable, count, total = read_variables(model)[0], 0, None
    for images in batches:
        utils.check_stopped()
        size = len(images)
        values = [[value.numpy().astype(np.float64) * size for value in pair] for pair in moments(trainable, images)]
        total = values if total is None else tf.nest.map_structure(np.add, total, values)
        count += size
    for layer, (mean, square) in zip(norms, total):
        layer.moving_mean.assign(mean / count)
        layer.moving_variance.assign(square / count - (mean / count) ** 2)


def even_batches(count, batch_size):
    """Returns index ranges (start, stop) of the fewest batches of at most batch_size that differ by at most one.

    For batch statistics a short last batch would be a noisier one; even batches have at most two shapes.
    """
    num_batches = -(-count // batch_size)
    edges = [count * i // num_batches for i in range(num_batches + 1)]
    return list(zip(edges[:-1], edges[1:]))
