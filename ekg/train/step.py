"""The training step: a pure, compiled function per replica, and the update of the variables.

The function returns gradients, batch norm statistics and metrics. Variables are updated outside of
it, so the same code runs on one CPU, on several GPUs (MirroredStrategy) and on several machines.
"""

import dataclasses
import functools

import keras
import tensorflow as tf

from ekg.devices.compute import Compiled, in_graph, split_batch
from ekg.errors import EkgError
from ekg.graph.execute import ExecutionOptions, pure_forward, read_variables

MOMENTUM = 0.9
REGULARIZATION_TERM = "regularization"  # name in the curves of losses that layers add themselves
LOSS_SCALE = 2.0**15  # initial scale of the loss in float16
LOSS_SCALE_GROWTH_STEPS = 2000  # steps with finite gradients after which the scale doubles


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate with optional linear warm-up that is multiplied at each decay point.

    Attributes:
        learning_rate: initial learning rate, after the warm-up.
        decay_points: decay points as fractions of the training, in (0, 1).
        decay_rate: factor at each decay point.
        epochs: number of epochs of the training.
        warmup_epochs: number of warm-up epochs w; the rate rises from 1/(w + 1) of its value.
        setting: name of the setting that the learning rate comes from, for messages; or None.
    """

    learning_rate: float
    decay_points: tuple[float, ...]
    decay_rate: float
    epochs: int
    warmup_epochs: int = 0
    setting: str | None = None

    def __call__(self, epoch):
        """Returns the learning rate at an epoch, which may be fractional."""
        num_passed = sum(epoch >= point * self.epochs - 1e-9 for point in self.decay_points)
        warmup = min((epoch + 1) / (self.warmup_epochs + 1), 1.0)
        return self.learning_rate * self.decay_rate**num_passed * warmup


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """How a training step is computed.

    Attributes:
        accum: number of micro-batches into which a replica's batch is cut.
        use_xla: whether to compile the step with XLA.
        dtype: number format of convolutions and activations; float16 scales the loss.
        sync_norms: whether batch norms use the statistics of the whole batch, over all replicas.
            Replicas then exchange data within the forward pass, so the step can be neither compiled
            nor cut.

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
    """Returns (gradients, new non-trainable values, metrics) for one replica's batch; it is pure.

    The batch is cut into `accum` micro-batches that run one after the other. Gradients, metrics and
    new moving statistics are means over the micro-batches, each of which starts from the old moving
    statistics.

    Args:
        forward: function (trainable, non-trainable, images, training, losses) -> (logits, new
            non-trainable) from pure_forward(), which appends losses of the layers to `losses`.
        loss_fn: function (network, batch, constants) -> (mean loss, {name: mean metric}), where
            network is a function from images to logits.
        variables: (trainable, non-trainable), two lists of tensors.
        constants: further inputs of loss_fn, such as a teacher's weights.
        batch: {name: tensor [batch, ...], or a structure of them}, where batch is a multiple of
            accum.
        accum: number of micro-batches.
        weight_decay: factor; weight_decay * weight is added to the gradient.
        loss_scale: factor of the loss in backpropagation, by which gradients are divided again;
            without it gradients of float16 activations would underflow.
        divisor: divisor of the loss, but not of the metrics; see tasks.Task.scale.
    """
    trainable, non_trainable = variables
    pieces = keras.tree.map_structure(
        lambda value: tf.reshape(value, [accum, value.shape[0] // accum, *value.shape[1:]]), batch
    )

    def micro_batch(number):
        updated = []
        added = []

        def network(images):
            logits, new = forward(trainable, non_trainable, images, True, added)
            updated.append(new)
            return logits

        with tf.GradientTape() as tape:
            tape.watch(trainable)
            loss, metrics = loss_fn(
                network, keras.tree.map_structure(lambda piece: piece[number], pieces), constants
            )
            if added:
                metrics = {**metrics, REGULARIZATION_TERM: tf.add_n(added)}
                loss += metrics[REGULARIZATION_TERM]
            scaled = loss * (loss_scale / divisor)
        gradients = tape.gradient(scaled, trainable, unconnected_gradients="zero")
        # The gradient of an embedding is sparse: it holds the rows that were read.
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        return gradients, updated[-1], {"loss": loss, **metrics}

    def added_up(old, new):
        # Integers, the states of random generators, are taken from the last micro-batch.
        return old + new if new.dtype.is_floating else new

    def mean(value):
        return value / accum if value.dtype.is_floating else value

    total = micro_batch(0)
    if accum > 1:

        def body(number, so_far):
            return number + 1, tf.nest.map_structure(added_up, so_far, micro_batch(number))

        _, total = tf.while_loop(lambda number, _: number < accum, body, (tf.constant(1), total))
    gradients, new, metrics = tf.nest.map_structure(mean, total)
    gradients = [
        gradient / loss_scale + weight_decay * weight
        for gradient, weight in zip(gradients, trainable)
    ]
    return gradients, new, metrics


def make_sgd():
    """Returns the published optimizer, whose learning rate is set at every step."""
    return keras.optimizers.SGD(learning_rate=0.0, momentum=MOMENTUM, nesterov=True)


class Trainer:
    """Trains one model with weight decay added to the gradient, by default with Nesterov SGD.

    In float16 the loss is scaled. The scale doubles after LOSS_SCALE_GROWTH_STEPS steps with finite
    gradients; a step with other gradients is skipped and halves the scale.

    Attributes:
        model: the keras.Model, created under the strategy's scope.
        optimizer: the keras.optimizers.Optimizer.
        loss_scale: tf.Variable, 1 unless the loss is scaled.
        good_steps: tf.Variable, number of steps with finite gradients since the scale changed.
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
            loss_fn: function (network, batch, constants) -> (mean loss, {name: mean metric}); see
                graph_step.
            weight_decay: factor of the weight decay.
            options: StepOptions.
            constants: keras.Model whose variables loss_fn gets as (trainable, non-trainable), or
                ().
            update_statistics: whether the moving statistics of batch norms are updated.
            divisor: divisor of the loss; see graph_step.
            make_optimizer: function that returns a new Keras Optimizer.
        """
        options = options or StepOptions()
        self.model = model
        self._strategy = strategy
        self._constants = constants
        self._update_statistics = update_statistics
        self._scales_loss = options.dtype == "float16"
        with strategy.scope():
            self.optimizer = make_optimizer()
            self.optimizer.build(model.trainable_variables)
            self.loss_scale = tf.Variable(LOSS_SCALE if self._scales_loss else 1.0, trainable=False)
            self.good_steps = tf.Variable(0, trainable=False)
        num_replicas = strategy.num_replicas_in_sync  # whose gradients the optimizer sums
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
            return [gradient / num_replicas for gradient in gradients], new, metrics

        def make_step(use_xla):
            function = replica_step if options.sync_norms else in_graph(replica_step, use_xla)
            return in_graph(functools.partial(self._distributed_step, function))

        self._step = Compiled(make_step, "training step", options.use_xla)
        self._learning_rate = None

    def start_from(self, model):
        """Resets the trainer to the variables of another model, without momentum and counts.

        Compiled functions are kept, so training after a dry run need not compile again.

        Args:
            model: keras.Model with the same structure.
        """
        for variable, value in zip(self.model.variables, model.variables, strict=True):
            variable.assign(value.value)
        for variable in self.optimizer.variables:
            variable.assign(tf.zeros(variable.shape, variable.dtype))
        self._learning_rate = None
        self._assign_scale(LOSS_SCALE if self._scales_loss else 1.0, 0)

    def finish(self):
        """Sets the optimizer's final weights, which may be means over steps; see Keras' use_ema."""
        self.optimizer.finalize_variable_values(self.model.trainable_variables)

    def step(self, batch, learning_rate):
        """Updates the model with one global batch; returns {name: mean metric}, scalar tensors.

        Args:
            batch: this process's part of the global batch, {name: array [part, ...]}, with a static
                shape.
            learning_rate: learning rate of this step.
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
                if variable.value.dtype.is_floating:
                    variable.value.assign(self._mean(value))
                else:  # states of random generators, equal on all replicas
                    first = self._strategy.experimental_local_results(value)[0]
                    variable.value.assign(first)
        if self._scales_loss:
            steps = self.good_steps + 1
            grows = steps >= LOSS_SCALE_GROWTH_STEPS
            loss_scale = tf.where(grows, 2 * self.loss_scale, self.loss_scale)
            self._assign_scale(loss_scale, tf.where(grows, 0, steps))

    def _assign_scale(self, loss_scale, good_steps):
        self.loss_scale.assign(loss_scale)
        self.good_steps.assign(good_steps)

    def _mean(self, value):
        return self._strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None)


def _count_non_finite(tensors):
    counts = [tf.reduce_sum(tf.cast(~tf.math.is_finite(tensor), tf.int32)) for tensor in tensors]
    return tf.add_n(counts)
