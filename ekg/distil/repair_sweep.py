"""The sweep of a repair: runs unpruned and cut network side by side and fits kernels on the way."""

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
from ekg.graph.neighbours import matching_calls, sole_readers

logger = logging.getLogger(__name__)

POSITIONS = 40_000  # positions at which each layer is fitted
MAP_RIDGE = 1e-8  # ridge of the map of channels, which has many positions per unknown
HELD_OUT = 0.125  # share of the examples that is held out to choose the ridge
DENSITY = 4  # on large maps, at least one in so many positions of an example is used
CHUNK_NUMBERS = 2**24  # numbers in the patches that are held in memory at a time


def first_held_out(count):
    """Returns the index of the first of `count` examples that is held out of the fit."""
    return count - max(int(count * HELD_OUT), 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """How a call is fitted.

    Attributes:
        is_linear: whether the layer has no activation, so that its output itself is fitted.
        norm: call of the batch norm that follows, if its scale and offset can be set, or None.
        has_intercept: whether a constant per channel is free: through a bias, or because a batch
            norm removes it.
        error: error of the other summands of a residual sum, [examples, positions..., kept
            channels], or None.
    """

    is_linear: bool
    norm: object
    has_intercept: bool
    error: object


class Sweep:
    """One pass over the unpruned and the cut network, side by side.

    All examples go through a call at once. A call of the unpruned network is named `call`, the same
    call of the cut network `cut_call`.
    """

    def __init__(self, model, supernet, subnetwork, inputs):
        """
        Args:
            model: keras.Model from supernet.cut(subnetwork), changed in place by run().
            supernet: the Supernet.
            subnetwork: the Subnetwork.
            inputs: inputs of the network.
        """
        self._graph = supernet.graph
        self._cut_graph = Graph(model, self._graph.input_shapes)
        self._layout = supernet.layout
        self._mask = supernet.mask(subnetwork) > 0
        self._full_tensors = self._graph.tensors_of(inputs)  # {tensor number: value}
        self._cut_tensors = self._cut_graph.tensors_of(inputs)
        self._unchanged = set(self._graph.inputs)  # tensors that are equal in both networks
        self._followers = sole_readers(self._graph)
        removed = supernet.removed(self._mask)
        self._removed = frozenset() if removed is None else removed.gone | removed.constants
        self._pairs = matching_calls(self._graph, self._cut_graph, removed)
        self._cut_call_of = dict(self._pairs)
        self._last_cut_use = {
            number: cut_call
            for _, cut_call in self._pairs
            if cut_call is not None
            for number in cut_call.inputs
        }
        self._last_use = {
            number: position
            for position, call in enumerate(self._graph.calls)
            for number in call.inputs
        }
        num_calls = collections.Counter(call.key for call in self._graph.calls)
        self._called_once = {call for call in self._graph.calls if num_calls[call.key] == 1}
        self._num_examples = int(self._full_tensors[self._graph.inputs[0]].shape[0])
        self._rng = np.random.default_rng(0)

    def run(self):
        """Runs every call of both networks and fits the kernels of the cut one on the way.

        Returns:
            {layer: residual share of the variance of its output}.
        """
        residuals = {}
        for position, (call, cut_call) in enumerate(self._pairs):
            self._run(call, self._full_tensors)
            plan = self._plan(call)
            factor = None
            if plan is not None:
                residuals[call.key], factor = self._fit(call, cut_call, plan)
                logger.debug(
                    "repair of %r leaves %.4f of its variance", call.key, residuals[call.key]
                )
            if cut_call is not None:
                self._run(cut_call, self._cut_tensors)
            if factor is not None:
                self._set_norm(call, cut_call, plan, factor)
            is_same = plan is None or plan.error is None
            is_same = is_same and call not in self._removed and not self._differs(call)
            if is_same and self._keeps_all(call.outputs):
                self._unchanged.update(call.outputs)
            for number in call.inputs:
                if self._last_use[number] == position and number not in self._graph.outputs:
                    self._full_tensors.pop(number, None)
            for number in () if cut_call is None else cut_call.inputs:
                is_last = self._last_cut_use[number] is cut_call
                if is_last and number not in self._cut_graph.outputs:
                    self._cut_tensors.pop(number, None)
        return residuals

    def _run(self, call, tensors):
        """Computes the outputs of a call and adds them to the tensors of its network."""
        options = execute.ExecutionOptions(collect_moments=True)
        variables = [
            tf.convert_to_tensor(variable.value) for variable in layer_variables(call.layer)
        ]
        uses_batch_statistics = norms.uses_batch_statistics(call.layer)
        outputs, _ = execute.run_call(call, variables, tensors, uses_batch_statistics, options)
        tensors.update(zip(call.outputs, outputs))

    def _differs(self, call):
        """Returns whether an input of a call differs between the two networks."""
        return any(number not in self._unchanged for number in call.inputs)

    def _keeps_all(self, numbers):
        """Returns whether all channels of these tensors are kept."""
        return all(self._mask[self._layout.index[number]].all() for number in numbers)

    def _kept(self, number):
        """Returns the indices of a tensor's kept channels."""
        return np.flatnonzero(self._mask[self._layout.index[number]])

    def _channels_last(self, value, number):
        axis = self._layout.axes[number]
        return value if axis is None else tf.experimental.numpy.moveaxis(value, axis, -1)

    # ---------------------------------------------------------------- plans and targets

    def _plan(self, call):
        """Returns the Plan of a call, or None if its kernel stays as it was cut."""
        record = registry.record_of(call.layer)
        if record is None or record.patches is None or call not in self._called_once:
            return None
        if call in self._removed:
            return None
        is_linear = getattr(call.layer, "activation", None) in (None, keras.activations.linear)
        norm = adding = None
        has_intercept = getattr(call.layer, "use_bias", False)
        follower = self._followers.get(call) if is_linear else None
        if follower is None or not norms.supports(follower.layer) or not follower.layer.trainable:
            adding = follower
        else:
            has_intercept = True
            if follower.layer.scale and follower.layer.center:
                norm = follower
                adding = self._followers.get(norm)
        error = None
        if adding is not None:
            error = self._error_beside((norm or call).output, adding)
        if not self._differs(call) and error is None:
            return None
        return Plan(is_linear, norm, has_intercept, error)

    def _error_beside(self, number, adding):
        """Returns the error of the other summands of a sum.

        Args:
            number: number of the summand that is being fitted.
            adding: call of the sum.

        Returns:
            Tensor [examples, positions..., kept channels]; None if the other summands have no
            error, or are not computed yet, or if the call is no plain sum.
        """
        cut_adding = self._cut_call_of[adding]
        if cut_adding is None or len(cut_adding.inputs) != len(adding.inputs):
            return None  # other summands are gone
        pairs = zip(adding.inputs, cut_adding.inputs)
        others = [(other, cut_other) for other, cut_other in pairs if other != number]
        shapes = {self._graph.shapes[tensor] for tensor in (*adding.inputs, adding.output)}
        if not _is_sum(adding.layer) or len(others) != len(adding.inputs) - 1 or len(shapes) > 1:
            return None
        for other, cut_other in others:
            if other not in self._full_tensors or cut_other not in self._cut_tensors:
                return None
        if all(other in self._unchanged for other, _ in others):
            return None
        errors = []
        for other, cut_other in others:
            full_value = self._channels_last(self._full_tensors[other], other)
            cut_value = self._channels_last(self._cut_tensors[cut_other], other)
            errors.append(tf.gather(full_value, self._kept(other), axis=-1) - cut_value)
        return sum(errors)

    def _targets(self, call, plan, part):
        """Returns the unpruned layer's outputs before the activation.

        Args:
            call: call of the unpruned network.
            plan: its Plan.
            part: slice of the examples.

        Returns:
            Tensor [examples, positions..., kept channels].
        """
        if plan.is_linear:
            value = self._channels_last(self._full_tensors[call.output][part], call.output)
        else:
            inputs = self._full_tensors[call.inputs[0]][part]
            p = registry.record_of(call.layer).patches(call.layer, inputs)
            variable, weight = registry.fitted_of(call.layer)
            kernel = patches.kernel_matrix(variable.numpy(), weight, p.shape[-2])
            value = tf.einsum("...br,brc->...bc", p, kernel)
            value = tf.reshape(value, (*value.shape[:-2], -1))
            if getattr(call.layer, "use_bias", False):
                value = value + call.layer.bias.value
        return tf.gather(value, self._kept(call.output), axis=-1)

    def _norm_as_affine(self, call, plan):
        """Returns (factor, offset, deviation of y) per kept channel.

        The batch norm after the call maps the call's output y to factor·y + offset.
        """
        kept = self._kept(call.output)
        value = self._channels_last(self._full_tensors[call.output], call.output)
        moments = tf.nn.moments(tf.cast(value, tf.float64), range(len(value.shape) - 1))
        mean, variance = (tf.gather(moment, kept) for moment in moments)
        layer = plan.norm.layer
        gamma = tf.gather(tf.cast(layer.gamma.value, tf.float64), kept)
        beta = tf.gather(tf.cast(layer.beta.value, tf.float64), kept)
        factor = gamma / tf.sqrt(variance + layer.epsilon)
        offset = beta - factor * mean
        return (tf.cast(factor, tf.float32), tf.cast(offset, tf.float32), tf.sqrt(variance).numpy())

    def _moments(self, call, cut_call, plan, affine, examples):
        """Returns the Moments of a range of examples, at randomly chosen positions."""
        record = registry.record_of(cut_call.layer)
        inputs = self._cut_tensors[cut_call.inputs[0]]
        first = record.patches(cut_call.layer, inputs[:1])
        blocks, rows = first.shape[-2:]
        positions = int(np.prod(first.shape[1:-2]))
        wanted = math.ceil(POSITIONS * len(examples) / self._num_examples)
        # Patches are computed for whole examples, so on large maps it is cheaper to use a quarter
        # of the positions of few examples than a few positions of all.
        num_used = min(len(examples), math.ceil(DENSITY * wanted / positions))
        num_positions = min(positions, math.ceil(wanted / num_used))
        chunk = max(1, CHUNK_NUMBERS // (positions * blocks * rows))
        stop = examples.start + num_used
        moments = Moments()
        for start in range(examples.start, stop, chunk):
            part = slice(start, min(start + chunk, stop))
            p = tf.reshape(record.patches(cut_call.layer, inputs[part]), (-1, blocks, rows))
            t = self._targets(call, plan, part)
            if affine is not None:
                t = affine[0] * t + affine[1]
            if plan.error is not None:
                t = t + plan.error[part]
            t = tf.reshape(t, (p.shape[0], blocks, -1))
            if num_positions < positions:
                count = num_positions * (part.stop - part.start)
                chosen = self._rng.choice(p.shape[0], count, replace=False)
                p = tf.gather(p, chosen)
                t = tf.gather(t, chosen)
            moments.add(p, t)
        return moments

    # ---------------------------------------------------------------- the map of channels

    def _mapped_kernel(self, call, cut_call, has_intercept):
        """Returns the prior of a fit: the unpruned kernel, applied to the kept channels.

        Each channel of the unpruned network is replaced by a linear combination of the kept ones:
        W'_k = Σ_c M_ck·W_c with M = Cov(X, Y)·(Cov(Y, Y) + ρI)⁻¹ for the channels X of the unpruned
        network and the kept channels Y. Layers that work in groups keep the kernel that was cut.

        Returns:
            float64 array with the shape of the cut layer's kernel.
        """
        record = registry.record_of(call.layer)
        full_kernel, weight = registry.fitted_of(call.layer)
        cut_kernel, _ = registry.fitted_of(cut_call.layer)
        number = call.inputs[0]
        kept = self._kept(number)
        axis = weight.axes.index(records.IN) if record.mixes else None
        entries = len(self._layout.index[number])
        is_same = len(kept) == entries and number in self._unchanged
        if axis is None or full_kernel.shape[axis] != entries or is_same:
            return cut_kernel.numpy().astype(np.float64)

        groups = self._entries_by_channel(number)  # [channels, entries per channel]
        cut_index = np.full(entries, -1)
        cut_index[kept] = np.arange(len(kept))
        cut_groups = cut_index[groups[cut_index[groups[:, 0]] >= 0]]
        x = self._by_channel(self._full_tensors[number], number, groups)
        y = self._by_channel(self._cut_tensors[cut_call.inputs[0]], number, cut_groups)
        if has_intercept:
            x, y = x - x.mean(0), y - y.mean(0)
        products = y.T @ y
        products += (MAP_RIDGE * np.trace(products) / len(products) + TINY) * np.eye(len(products))
        mapping = np.linalg.solve(products, y.T @ x)  # [kept channels, channels]

        kernel = full_kernel.numpy().astype(np.float64)
        kernel = np.take(kernel, self._kept(call.output), weight.axes.index(records.OUT))
        kernel = np.moveaxis(kernel, axis, 0)
        mapped = np.zeros((len(kept), *kernel.shape[1:]))
        for column, cut_column in zip(groups.T, cut_groups.T):
            mapped[cut_column] = np.tensordot(mapping, kernel[column], 1)
        return np.moveaxis(mapped, 0, axis)

    def _entries_by_channel(self, number):
        """Returns the entries of a tensor's channel axis by channel, int [channels, entries].

        A flattened map has an entry per channel and position. Fixed channels all have the same
        index, so with these every entry counts as a channel.
        """
        index = self._layout.index[number]
        counts = np.unique(index, return_counts=True)[1]
        if (index == self._layout.num_channels).any() or len(set(counts)) > 1:
            return np.arange(len(index))[:, None]
        return np.argsort(index, kind="stable").reshape(len(counts), -1)

    def _by_channel(self, value, number, groups):
        """Returns a tensor's values at evenly spaced positions, float64 [positions, channels].

        Args:
            value: value of the tensor.
            number: number of the tensor in the unpruned network.
            groups: entries of each channel, int [channels, entries].
        """
        value = self._channels_last(value, number)
        value = tf.reshape(value, (-1, value.shape[-1]))
        step = max(1, len(value) * groups.shape[1] // POSITIONS)
        value = value[::step].numpy().astype(np.float64)
        return value[:, groups.T].reshape(-1, len(groups))

    # ---------------------------------------------------------------- the fit

    def _fit(self, call, cut_call, plan):
        """Sets the kernel of a cut layer, and its bias.

        Returns:
            (residual share of the target's variance, factor). The factor is None without a batch
            norm; otherwise each filter is larger by it than the fit to the norm's output, float64
            [kept channels], with 0 for constant channels.
        """
        affine = None if plan.norm is None else self._norm_as_affine(call, plan)
        end = first_held_out(self._num_examples)
        fitting = self._moments(call, cut_call, plan, affine, range(end))
        held_out = self._moments(call, cut_call, plan, affine, range(end, self._num_examples))
        variable, weight = registry.fitted_of(cut_call.layer)
        blocks = fitting.sums[0].shape[0]
        mapped = self._mapped_kernel(call, cut_call, plan.has_intercept)
        prior = patches.kernel_matrix(mapped, weight, blocks)
        if affine is not None:
            prior = prior * affine[0].numpy().reshape(blocks, 1, -1)
        matrix, intercept, residual = fit(fitting, held_out, prior, plan.has_intercept)
        factor = None
        if plan.norm is not None:
            # The norm cancels any scale of a filter, so each filter is scaled such that its output
            # has the deviation that it had in the unpruned network.
            products = fitting.means(True)[2].numpy()
            deviation = np.sqrt(np.maximum((matrix * (products @ matrix)).sum(1), 0)).reshape(-1)
            is_constant = deviation <= TINY**0.5
            factor = np.where(is_constant, 0, affine[2] / np.where(is_constant, 1, deviation))
            by_column = factor.reshape(len(matrix), 1, -1)
            old = patches.kernel_matrix(variable.numpy(), weight, len(matrix))
            matrix = np.where(by_column > 0, by_column * matrix, old)
        elif getattr(cut_call.layer, "use_bias", False):
            cut_call.layer.bias.assign(intercept.reshape(-1))
        variable.assign(patches.kernel_from_matrix(matrix, weight, tuple(variable.shape)))
        return residual, factor

    def _set_norm(self, call, cut_call, plan, factor):
        """Sets the batch norm after a call so that it undoes the factor and adds the mean error."""
        value = self._channels_last(self._cut_tensors[cut_call.output], call.output)
        axes = range(len(value.shape) - 1)
        variance = tf.math.reduce_variance(tf.cast(value, tf.float64), axes).numpy()
        layer = self._cut_call_of[plan.norm].layer
        gamma = np.sqrt(variance + layer.epsilon) / np.where(factor > 0, factor, 1)
        layer.gamma.assign(np.where(factor > 0, gamma, 0))
        if plan.error is not None:
            layer.beta.assign(layer.beta.value + tf.reduce_mean(plan.error, axes))


def _is_sum(operation):
    is_layer = type(operation) is keras.layers.Add
    return is_layer or registry.published_name(type(operation)) == "keras.ops.Add"
