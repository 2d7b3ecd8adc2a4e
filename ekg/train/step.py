"""The training step: on every replica a pure, compiled function; the update of the variables
outside it.

On every replica the function returns gradients, batch norm statistics and metrics. Variables change
outside it, so the same code runs on one CPU, on several GPUs under MirroredStrategy and on several
machines.
"""

import dataclasses
import functools

import keras
import tensorflow as tf

from ekg.devices.compute import Compiled, in_graph, split_batch
from ekg.errors import EkgError
from ekg.graph.execute import ExecutionOptions, pure_forward, read_variables

MOMENTUM = 0.9
REGULARIZATION_TERM = (
    "regularization"  # name in the curves of what the network adds to the loss itself
)
LOSS_SCALE, LOSS_SCALE_GROWTH_STEPS = (
    2.0**15,
    2000,
)  # where float16 gradients start to be scaled, and when it doubles


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate that rises linearly at first, if asked, and is multiplied by decay_rate at each
    decay point.

    Attributes:
        learning_rate: the first one.
        decay_points: fractions of the training, in (0, 1).
        decay_rate: factor at each point.
        epochs: length of the training.
        warmup_epochs: epochs w of the rise, from 1/(w + 1) of the learning rate to all of it.
        setting: name of the setting that the learning rate comes from, for messages; None where it
            is none.
    """

    learning_rate: float
    decay_points: tuple[float, ...]
    decay_rate: float
    epochs: int
    warmup_epochs: int = 0
    setting: str | None = None

    def __call__(self, epoch):
        """Returns the learning rate at an epoch, which may be a fraction."""
        passed = sum(epoch >= point * self.epochs - 1e-9 for point in self.decay_points)
        return (
            self.learning_rate
            * self.decay_rate**passed
            * min((epoch + 1) / (self.warmup_epochs + 1), 1.0)
        )


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How a training step is computed.

    Attributes:
        accum: number of micro-batches a replica's batch is cut into.
        use_xla: whether to compile the step with XLA.
        dtype: of convolutions and activations; with float16 the loss is scaled.
        sync_norms: whether batch norms take the statistics of the whole batch, over all replicas.
            Replicas meet inside the forward pass then, so the step is neither compiled nor cut.

    Raises:
        EkgError: sync_norms is combined with accum or use_xla.
    """

    accum: int = 1
    use_xla: bool = False
    dtype: str = "float32"
    sync_norms: bool = False

    def __post_init__(self):
        if self.sync_norms and (self.accum > 1 or self.use_xla):
            raise EkgError(
                "`sync_norms` excludes `accum` above 1 and `use_xla`: replicas cannot meet "
                "inside a compiled function."
            )


def graph_step(
    forward,
    loss_fn,
    variables,
    constants,
    batch,
    *,
    accum,
    weight_decay,
    loss_scale=1.0,
    divisor=1.0,
):
    """Returns (gradients, new non-trainable values, metrics) of one replica's batch. Pure.

    The batch is cut into `accum` micro-batches that run one after the other; gradients and metrics
    are means over them, and so are the new moving statistics, each of which starts from the old
    ones.

    Args:
        forward: (trainable, non-trainable, images, training, losses) -> (logits, new
            non-trainable), as pure_forward() makes it: what the network adds to the loss itself
            goes into the list `losses`.
        loss_fn: (network, batch, constants) -> (mean loss, {name: mean metric}); network is images
            -> logits.
        variables: (trainable, non-trainable), two lists of tensors.
        constants: whatever else loss_fn needs, such as a teacher's weights.
        batch: {name: tensor [batch, ...]}; batch is a multiple of accum.
        accum: number of micro-batches.
        weight_decay: added to the gradient as weight_decay * weight.
        loss_scale: the loss is multiplied by it on the way back, and the gradients divided: those
            of float16 activations would be too small for their format.
        divisor: the loss, but not its metrics, is divided by it; see tasks.Task.scale.
    """
    trainable, non_trainable = variables
    pieces = {
        name: tf.reshape(value, [accum, value.shape[0] // accum, *value.shape[1:]])
        for name, value in batch.items()
    }

    def micro_batch(number):
        updated, added = [], []

        def network(images):
            logits, new = forward(trainable, non_trainable, images, True, added)
            updated.append(new)
            return logits

        with tf.GradientTape() as tape:
            tape.watch(trainable)
            loss, metrics = loss_fn(
                network, {name: piece[number] for name, piece in pieces.items()}, constants
            )
            if added:
                metrics = {**metrics, REGULARIZATION_TERM: tf.add_n(added)}
                loss += metrics[REGULARIZATION_TERM]
            scaled = loss * (loss_scale / divisor)
        gradients = tape.gradient(scaled, trainable, unconnected_gradients="zero")
        # That of an embedding comes as the rows that were read.
        return (
            [tf.convert_to_tensor(gradient) for gradient in gradients],
            updated[-1],
            {"loss": loss, **metrics},
        )

    total = micro_batch(0)
    if accum > 1:

        def body(number, so_far):
            # What is not floating, the state of a random generator, is taken from the last
            # micro-batch.
            return number + 1, tf.nest.map_structure(
                lambda old, new: old + new if new.dtype.is_floating else new,
                so_far,
                micro_batch(number),
            )

        _, total = tf.while_loop(lambda number, _: number < accum, body, (tf.constant(1), total))
    gradients, new, metrics = tf.nest.map_structure(
        lambda value: value / accum if value.dtype.is_floating else value, total
    )
    gradients = [
        gradient / loss_scale + weight_decay * weight
        for gradient, weight in zip(gradients, trainable)
    ]
    return gradients, new, metrics


def make_sgd():
    """Returns the published optimizer, whose learning rate is set step by step."""
    return keras.optimizers.SGD(learning_rate=0.0, momentum=MOMENTUM, nesterov=True)


class Trainer:
    """Trains one model: SGD with Nesterov momentum 0.9, or another optimizer; weight decay added to
    the gradient.

    Where the loss is scaled for float16, the scale doubles after LOSS_SCALE_GROWTH_STEPS steps with
    finite gradients; a step without is left out and halves it.

    Attributes:
        model: the keras.Model, created under the strategy's scope.
        optimizer: the keras.optimizers.Optimizer.
        loss_scale: tf.Variable, 1 unless the loss is scaled.
        good_steps: tf.Variable, steps with finite gradients since the loss scale last changed.
    """

    def __init__(
        self,
        strategy,
        model,
        loss_fn,
        *,
        weight_decay,
        options=None,
        constants=(),
        update_statistics=True,
        divisor=1.0,
        make_optimizer=make_sgd,
    ):
        """
        Args:
            strategy: tf.distribute.Strategy under whose scope the model was created.
            model: functional keras.Model.
            loss_fn: (network, batch, constants) -> (mean loss, {name: mean metric}); see
                graph_step.
            weight_decay: factor.
            options: StepOptions.
            constants: keras.Model whose variables loss_fn gets as (trainable, non-trainable), or
                ().
            update_statistics: whether the moving statistics of batch norms move.
            divisor: of the loss; see graph_step.
            make_optimizer: function that returns a new keras Optimizer.
        """
        self.model, options = model, options or StepOptions()
        self._strategy, self._constants, self._update_statistics = (
            strategy,
            constants,
            update_statistics,
        )
        self._scales_loss = options.dtype == "float16"
        with strategy.scope():
            self.optimizer = make_optimizer()
            self.optimizer.build(model.trainable_variables)
            self.loss_scale = tf.Variable(LOSS_SCALE if self._scales_loss else 1.0, trainable=False)
            self.good_steps = tf.Variable(0, trainable=False)
        replicas = strategy.num_replicas_in_sync  # the optimizer sums their gradients
        forward = pure_forward(model, ExecutionOptions(options.dtype, options.sync_norms))

        def replica_step(variables, constants, loss_scale, batch):
            gradients, new, metrics = graph_step(
                forward,
                loss_fn,
                variables,
                constants,
                batch,
                accum=options.accum,
                weight_decay=weight_decay,
                loss_scale=loss_scale,
                divisor=divisor,
            )
            return [gradient / replicas for gradient in gradients], new, metrics

        def make_step(use_xla):
            function = replica_step if options.sync_norms else in_graph(replica_step, use_xla)
            return in_graph(functools.partial(self._distributed_step, function))

        self._step = Compiled(make_step, "training step", options.use_xla)
        self._learning_rate = None

    def start_from(self, model):
        """Begins anew: weights and all other variables of another model of this structure, no
        momentum, nothing counted.

        What was compiled stays, so a training that follows a rehearsal need not compile again.
        """
        for variable, value in zip(self.model.variables, model.variables, strict=True):
            variable.assign(value.value)
        for variable in self.optimizer.variables:
            variable.assign(tf.zeros(variable.shape, variable.dtype))
        self._learning_rate = None
        self._assign_scale(LOSS_SCALE if self._scales_loss else 1.0, 0)

    def finish(self):
        """Gives the model the weights that the optimizer ends with, as means over its steps; see
        Keras' use_ema.
        """
        self.optimizer.finalize_variable_values(self.model.trainable_variables)

    def step(self, batch, learning_rate):
        """Updates the model with one global batch and returns {name: mean metric} as scalar
        tensors.

        Args:
            batch: {name: array [part, ...]} with a static shape: this process's part of the global
                batch.
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
            tf.cond(
                is_finite,
                lambda: self._update(gradients, new),
                lambda: self._assign_scale(self.loss_scale / 2, 0),
            )
        else:
            self._update(gradients, new)
        return {name: self._mean(value) for name, value in metrics.items()}

    def _run_replica(self, replica_step, batch):
        constants = read_variables(self._constants) if self._constants else ()
        return replica_step(
            read_variables(self.model), constants, tf.convert_to_tensor(self.loss_scale), batch
        )

    def _update(self, gradients, new):
        self._strategy.run(
            lambda replica_gradients: self.optimizer.apply(
                replica_gradients, self.model.trainable_variables
            ),
            args=(gradients,),
        )
        if self._update_statistics:
            for variable, value in zip(self.model.non_trainable_variables, new):
                is_mean = variable.value.dtype.is_floating
                variable.value.assign(
                    self._mean(value)
                    if is_mean
                    else self._strategy.experimental_local_results(value)[0]
                )
        if self._scales_loss:
            steps = self.good_steps + 1
            grows = steps >= LOSS_SCALE_GROWTH_STEPS
            self._assign_scale(
                tf.where(grows, 2 * self.loss_scale, self.loss_scale), tf.where(grows, 0, steps)
            )

    def _assign_scale(self, loss_scale, good_steps):
        self.loss_scale.assign(loss_scale)
        self.good_steps.assign(good_steps)

    def _mean(self, value):
        return self._strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None)


def _count_non_finite(tensors):
    return tf.add_n(
        [tf.reduce_sum(tf.cast(~tf.math.is_finite(tensor), tf.int32)) for tensor in tensors]
    )
