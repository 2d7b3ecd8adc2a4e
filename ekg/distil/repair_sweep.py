"""The sweep of a repair: unpruned and cut network run side by side, call by call, and kernels are
fitted on the way.
"""

import collections
import dataclasses
import logging
import math

import keras
import numpy as np
import tensorflow as tf

from ekg.distil.least_squares import TINY, Moments, fit
from ekg.graph import execute, norms, patches, records, registry
from ekg.graph.calls import Graph, layer_variables
from ekg.graph.neighbours import sole_readers

logger = logging.getLogger(__name__)

POSITIONS = 40_000  # of each layer, at which it is fitted
MAP_RIDGE = 1e-8  # of the map of channels, which has many positions for each of its unknowns
HELD_OUT = 0.125  # share of the examples that choose the ridge
DENSITY = 4  # positions of an example for each one that is taken, at most
CHUNK_NUMBERS = 2**24  # of patches at a time


def first_held_out(count):
    """Returns the number of the first of so many examples that is left out of the fit."""
    return count - max(int(count * HELD_OUT), 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """How a call is fitted.

    Attributes:
        is_linear: whether the layer has no activation of its own, so that what it writes is what is
            fitted.
        norm: the call of a batch norm that follows and whose scale and offset can be set, or None.
        has_intercept: whether a constant per channel can be added: by a bias, or as a batch norm
            takes any away.
        error: what the other part of a residual sum lacks, [examples, positions..., kept channels],
            or None.
    """

    is_linear: bool
    norm: object
    has_intercept: bool
    error: object


class Sweep:
    """One pass over the unpruned and the cut network, side by side; all examples go through each
    call at once.
    """

    def __init__(self, model, supernet, subnetwork, inputs):
        self._full = supernet.graph
        self._cut = Graph(model, self._full.input_shapes)
        self._layout, self._mask = supernet.layout, supernet.mask(subnetwork) > 0
        self._whole, self._mine = (
            self._full.tensors_of(inputs),
            self._cut.tensors_of(inputs),
        )  # {tensor number: value}
        self._unchanged = set(self._full.inputs)  # tensors that are the same in both
        self._followers = sole_readers(self._full)
        self._pairs = list(zip(self._full.calls, self._cut.calls, strict=True))
        self._own = dict(self._pairs)
        self._last = {
            number: position
            for position, call in enumerate(self._full.calls)
            for number in call.inputs
        }
        times = collections.Counter(call.key for call in self._full.calls)
        self._once = {call for call in self._full.calls if times[call.key] == 1}
        self._num_examples = int(self._whole[self._full.inputs[0]].shape[0])
        self._rng = np.random.default_rng(0)

    def run(self):
        """Runs every call of both networks, and fits the cut one's kernels on the way."""
        left = {}
        for position, (call, own) in enumerate(self._pairs):
            self._run(call, self._whole)
            plan = self._plan(call)
            factor = None
            if plan is not None:
                left[call.key], factor = self._fit(call, own, plan)
                logger.debug("repair of %r leaves %.4f of its variance", call.key, left[call.key])
            self._run(own, self._mine)
            if factor is not None:
                self._set_norm(call, own, plan, factor)
            if (
                not self._differs(call)
                and (plan is None or plan.error is None)
                and all(self._mask[self._layout.index[number]].all() for number in call.outputs)
            ):
                self._unchanged.update(call.outputs)
            for mine, theirs in zip(call.inputs, own.inputs):
                if self._last[mine] == position and mine not in self._full.outputs:
                    self._whole.pop(mine, None)
                    self._mine.pop(theirs, None)
        return left

    def _run(self, call, tensors):
        options = execute.ExecutionOptions(collect_moments=True)
        variables = [
            tf.convert_to_tensor(variable.value) for variable in layer_variables(call.layer)
        ]
        outputs, _ = execute.run_call(
            call, variables, tensors, norms.uses_batch_statistics(call.layer), options
        )
        tensors.update(zip(call.outputs, outputs))

    def _differs(self, call):
        return any(number not in self._unchanged for number in call.inputs)

    def _kept(self, number):
        return np.flatnonzero(self._mask[self._layout.index[number]])

    def _channels_last(self, value, number):
        axis = self._layout.axes[number]
        return value if axis is None else tf.experimental.numpy.moveaxis(value, axis, -1)

    # ---------------------------------------------------------------- what is fitted, and to what

    def _plan(self, call):
        """Returns the Plan of a call, or None if its kernel stays as it was cut."""
        record = registry.record_of(call.layer)
        if record is None or record.patches is None or call not in self._once:
            return None
        is_linear = getattr(call.layer, "activation", None) in (None, keras.activations.linear)
        follower = self._followers.get(call) if is_linear else None
        is_normed = (
            follower is not None and norms.supports(follower.layer) and follower.layer.trainable
        )
        norm = follower if is_normed and follower.layer.scale and follower.layer.center else None
        adding = self._followers.get(norm) if norm is not None else None if is_normed else follower
        error = None if adding is None else self._error_beside((norm or call).output, adding)
        if not self._differs(call) and error is None:
            return None
        return Plan(is_linear, norm, is_normed or getattr(call.layer, "use_bias", False), error)

    def _error_beside(self, number, adding):
        """Returns what the other summands of a sum lack, or None if there is nothing, or it is not
        known yet.
        """
        own = self._own[adding]
        others = [
            (mine, theirs) for mine, theirs in zip(adding.inputs, own.inputs) if mine != number
        ]
        shapes = {self._full.shapes[other] for other in (*adding.inputs, adding.output)}
        if (
            not _is_sum(adding.layer)
            or len(others) != len(adding.inputs) - 1
            or len(shapes) > 1
            or not all(mine in self._whole and theirs in self._mine for mine, theirs in others)
            or all(mine in self._unchanged for mine, _ in others)
        ):
            return None
        return sum(
            tf.gather(self._channels_last(self._whole[mine], mine), self._kept(mine), axis=-1)
            - self._channels_last(self._mine[theirs], mine)
            for mine, theirs in others
        )

    def _targets(self, call, plan, part):
        """Returns what a call computes before its activation for some examples, [examples,
        positions..., kept channels].
        """
        if plan.is_linear:
            value = self._channels_last(self._whole[call.output][part], call.output)
        else:
            read = self._whole[call.inputs[0]][part]
            p = registry.record_of(call.layer).patches(call.layer, read)
            variable, weight = registry.fitted_of(call.layer)
            kernel = patches.kernel_matrix(variable.numpy(), weight, p.shape[-2])
            value = tf.einsum("...br,brc->...bc", p, kernel)
            value = tf.reshape(value, (*value.shape[:-2], -1))
            value = (
                value + call.layer.bias.value if getattr(call.layer, "use_bias", False) else value
            )
        return tf.gather(value, self._kept(call.output), axis=-1)

    def _norm_as_affine(self, call, plan):
        """Returns (factor, offset, deviation) per kept channel: a batch norm maps y to factor·y +
        offset; y's deviation.
        """
        value = self._channels_last(self._whole[call.output], call.output)
        mean, variance = (
            tf.gather(moment, self._kept(call.output))
            for moment in tf.nn.moments(tf.cast(value, tf.float64), range(len(value.shape) - 1))
        )
        layer = plan.norm.layer
        gamma, beta = (
            tf.gather(tf.cast(variable.value, tf.float64), self._kept(call.output))
            for variable in (layer.gamma, layer.beta)
        )
        factor = gamma / tf.sqrt(variance + layer.epsilon)
        return (
            tf.cast(factor, tf.float32),
            tf.cast(beta - factor * mean, tf.float32),
            tf.sqrt(variance).numpy(),
        )

    def _moments(self, call, own, plan, affine, examples):
        """Returns the Moments of a range of examples, at a random choice of positions."""
        record, moments = registry.record_of(own.layer), Moments()
        first = record.patches(own.layer, self._mine[own.inputs[0]][:1])
        blocks, rows = first.shape[-2:]
        positions = int(np.prod(first.shape[1:-2]))
        wanted = math.ceil(POSITIONS * len(examples) / self._num_examples)
        # Patches are made of whole examples: of large maps a quarter of the positions is taken of
        # fewer examples.
        used = min(len(examples), math.ceil(DENSITY * wanted / positions))
        taken = min(positions, math.ceil(wanted / used))
        together = max(1, CHUNK_NUMBERS // (positions * blocks * rows))
        stop = examples.start + used
        for start in range(examples.start, stop, together):
            part = slice(start, min(start + together, stop))
            p = tf.reshape(
                record.patches(own.layer, self._mine[own.inputs[0]][part]), (-1, blocks, rows)
            )
            t = self._targets(call, plan, part)
            t = t if affine is None else affine[0] * t + affine[1]
            t = tf.reshape(
                t if plan.error is None else t + plan.error[part], (p.shape[0], blocks, -1)
            )
            if taken < positions:
                chosen = self._rng.choice(
                    p.shape[0], taken * (part.stop - part.start), replace=False
                )
                p, t = tf.gather(p, chosen), tf.gather(t, chosen)
            moments.add(p, t)
        return moments

    # ---------------------------------------------------------------- the map of channels

    def _mapped_kernel(self, call, own, has_intercept):
        """Returns the unpruned kernel for what the cut layer reads, each channel as a combination
        of the kept ones.

        That is W'_k = Σ_c M_ck·W_c with M = Cov(X, Y)·(Cov(Y, Y) + ρI)⁻¹ for the channels X of the
        unpruned network and the kept ones Y. Layers that work in groups keep the kernel that was
        cut.

        Returns:
            float64 array of the shape of the cut layer's kernel.
        """
        record = registry.record_of(call.layer)
        (whole, weight), (mine, _) = registry.fitted_of(call.layer), registry.fitted_of(own.layer)
        number, kept = call.inputs[0], self._kept(call.inputs[0])
        axis = weight.axes.index(records.IN) if record.mixes else None
        entries = len(self._layout.index[number])
        if (
            axis is None
            or whole.shape[axis] != entries
            or len(kept) == entries
            and number in self._unchanged
        ):
            return mine.numpy().astype(np.float64)
        groups = self._entries_by_channel(number)  # [channels, entries of each]
        own_place = np.full(entries, -1)
        own_place[kept] = np.arange(len(kept))
        own_groups = own_place[groups[own_place[groups[:, 0]] >= 0]]
        x, y = (
            self._by_channel(value, number, places)
            for value, places in (
                (self._whole[number], groups),
                (self._mine[own.inputs[0]], own_groups),
            )
        )
        if has_intercept:
            x, y = x - x.mean(0), y - y.mean(0)
        products = y.T @ y
        products += (MAP_RIDGE * np.trace(products) / len(products) + TINY) * np.eye(len(products))
        mapping = np.linalg.solve(products, y.T @ x)  # [kept channels, channels]
        kernel = np.moveaxis(
            np.take(
                whole.numpy().astype(np.float64),
                self._kept(call.output),
                weight.axes.index(records.OUT),
            ),
            axis,
            0,
        )
        mapped = np.zeros((len(kept), *kernel.shape[1:]))
        for column, own_column in zip(groups.T, own_groups.T):
            mapped[own_column] = np.tensordot(mapping, kernel[column], 1)
        return np.moveaxis(mapped, 0, axis)

    def _entries_by_channel(self, number):
        """Returns the entries of a tensor's channel axis by channel, int array [channels, entries
        of each].

        A flattened map has each channel at every position; fixed channels, which are not told
        apart, count one by one.
        """
        index = self._layout.index[number]
        counts = np.unique(index, return_counts=True)[1]
        if (index == self._layout.num_channels).any() or len(set(counts)) > 1:
            return np.arange(len(index))[:, None]
        return np.argsort(index, kind="stable").reshape(len(counts), -1)

    def _by_channel(self, value, number, places):
        """Returns values [positions, channels] as float64, at a regular choice of positions."""
        value = self._channels_last(value, number)
        value = tf.reshape(value, (-1, value.shape[-1]))
        value = (
            value[:: max(1, len(value) * places.shape[1] // POSITIONS)].numpy().astype(np.float64)
        )
        return value[:, places.T].reshape(-1, len(places))

    # ---------------------------------------------------------------- the fit

    def _fit(self, call, own, plan):
        """Sets the kernel of a cut layer, and its bias.

        Returns:
            (share of the target's variance that is left; where a batch norm follows, by how much
            each filter is larger than the fit of the norm's output, float64 [kept channels], 0
            where there is nothing to fit; else None).
        """
        affine = None if plan.norm is None else self._norm_as_affine(call, plan)
        end = first_held_out(self._num_examples)
        fitting, held_out = (
            self._moments(call, own, plan, affine, examples)
            for examples in (range(end), range(end, self._num_examples))
        )
        variable, weight = registry.fitted_of(own.layer)
        blocks = fitting.sums[0].shape[0]
        prior = patches.kernel_matrix(
            self._mapped_kernel(call, own, plan.has_intercept), weight, blocks
        )
        if affine is not None:
            prior = prior * affine[0].numpy().reshape(blocks, 1, -1)
        matrix, intercept, left = fit(fitting, held_out, prior, plan.has_intercept)
        factor = None
        if plan.norm is not None:
            # The norm takes any scale: each filter gets the one at which its output varies as it
            # did.
            products = fitting.means(True)[2].numpy()
            deviation = np.sqrt(np.maximum((matrix * (products @ matrix)).sum(1), 0)).reshape(-1)
            is_constant = deviation <= TINY**0.5
            factor = np.where(is_constant, 0, affine[2] / np.where(is_constant, 1, deviation))
            by_column = factor.reshape(len(matrix), 1, -1)
            old = patches.kernel_matrix(variable.numpy(), weight, len(matrix))
            matrix = np.where(by_column > 0, by_column * matrix, old)
        elif getattr(own.layer, "use_bias", False):
            own.layer.bias.assign(intercept.reshape(-1))
        variable.assign(patches.kernel_from_matrix(matrix, weight, tuple(variable.shape)))
        return left, factor

    def _set_norm(self, call, own, plan, factor):
        """Lets the batch norm that follows pass the fit on as it is: undo the factor, and add the
        mean of the error.
        """
        value = self._channels_last(self._mine[own.output], call.output)
        axes = range(len(value.shape) - 1)
        variance = tf.math.reduce_variance(tf.cast(value, tf.float64), axes).numpy()
        layer = self._own[plan.norm].layer
        gamma = np.sqrt(variance + layer.epsilon) / np.where(factor > 0, factor, 1)
        layer.gamma.assign(np.where(factor > 0, gamma, 0))
        if plan.error is not None:
            layer.beta.assign(layer.beta.value + tf.reduce_mean(plan.error, axes))


def _is_sum(operation):
    return (
        type(operation) is keras.layers.Add
        or registry.published_name(type(operation)) == "keras.ops.Add"
    )
