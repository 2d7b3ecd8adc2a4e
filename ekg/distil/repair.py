"""Repair of a cut network without training: its kernels are fitted to what the unpruned network computes.

One sweep over both networks, call by call, on a few hundred images without labels and with batch statistics. Where the
input of a layer differs from the unpruned network's, because channels are gone or something before it has changed, its
kernel becomes the one that minimises

    ‖T − P·W‖² + ρ·‖W − W₀‖²,    P and T centred,

with P the patches that the layer reads in the network repaired so far, and T what it computes in the unpruned network
before its activation. W₀ is what the unpruned kernel becomes where each channel that is gone is replaced by the best linear
combination of the kept ones, the same at all positions: so few examples already know something of large kernels. Three
things besides bring the outputs closer:

- Where a batch norm follows, the fit is that of the batch norm's output, and the norm's scale is set so that it passes the
  fit on as it is. Least squares shrink what they cannot explain, and the norm would blow it up again.
- Where the result is added to a residual stream whose other part is there already, the target holds that part's error, too.
  So a block corrects what the stream carries past it.
- The ridge ρ is the one of RIDGES, as a share of the mean diagonal, with the least error on images left out of the fit.
"""

import dataclasses
import functools
import logging
import math

import keras
import numpy as np
import tensorflow as tf

from ekg.data import Batches
from ekg.devices.compute import full_float32
from ekg.errors import EkgError
from ekg.graph import execute, norms, patches, records
from ekg.graph.calls import Graph, layer_variables
from ekg.graph.readers import sole_readers
from ekg.train.evaluate import StatisticsEstimation

logger = logging.getLogger(__name__)

MOST_EXAMPLES, LEAST_EXAMPLES = 512, 16
ACTIVATION_BYTES = 2**30  # of the activations that both networks hold at a time, unless LEAST_EXAMPLES take more
POSITIONS = 40_000  # of each layer, at which it is fitted
RIDGES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
MAP_RIDGE = 1e-8  # of the map of channels, which has many positions for each of its unknowns
HELD_OUT = 0.125  # share of the images that choose the ridge
BATCH = 256  # examples that share statistics where these are estimated
CHUNK_NUMBERS = 2**24  # of patches at a time
TINY = 1e-12  # of the mean diagonal: a channel that never moves has none


@dataclasses.dataclass(eq=False)
class _Moments:
    """Sums over positions of patches P [positions, blocks, rows] and targets T [positions, blocks, columns], float64."""
    count: int = 0
    sums: tuple = (0.0, 0.0, 0.0, 0.0, 0.0)

    def add(self, p, t):
        p, t = tf.cast(p, tf.float64), tf.cast(t, tf.float64)
        by_block = tf.transpose(p, (1, 2, 0))
        new = (tf.reduce_sum(p, 0), tf.reduce_sum(t, 0), by_block @ tf.transpose(p, (1, 0, 2)),
               by_block @ tf.transpose(t, (1, 0, 2)), tf.reduce_sum(t**2, 0))
        self.count += p.shape[0]
        self.sums = tuple(old + value for old, value in zip(self.sums, new))

    def means(self, has_intercept):
        """Returns (mean of P, mean of T, P'P, P'T, T'T) per position; the products are centred if there is an intercept."""
        p, t, pp, pt, tt = (value / self.count for value in self.sums)
        if has_intercept:
            pp, pt, tt = pp - p[:, :, None] * p[:, None], pt - p[:, :, None] * t[:, None], tt - t**2
        return p, t, pp, pt, tt


def fit(fitting, held_out, prior, has_intercept=True):
    """Returns (kernel [blocks, rows, columns], intercept [blocks, columns], share of the variance that is left).

    Args:
        fitting: _Moments of the positions that are fitted.
        held_out: _Moments of the positions that choose the ridge and measure what is left.
        prior: kernel that the ridge draws towards, float64 [blocks, rows, columns].
        has_intercept: whether a constant is added to each column; else the intercept is zero.
    """
    p, t, pp, pt, _ = fitting.means(has_intercept)
    _, _, held_pp, held_pt, held_tt = held_out.means(has_intercept)
    mean_diagonal = tf.linalg.trace(pp) / pp.shape[-1]
    identity = tf.eye(pp.shape[-1], dtype=pp.dtype)
    best = None
    for ridge in RIDGES:
        added = (ridge * mean_diagonal + TINY * (mean_diagonal + 1))[:, None, None] * identity
        kernel = prior + tf.linalg.cholesky_solve(tf.linalg.cholesky(pp + added), pt - pp @ prior)
        error = tf.reduce_sum(held_tt - 2 * tf.reduce_sum(kernel * held_pt, 1)
                              + tf.reduce_sum(kernel * (held_pp @ kernel), 1))
        if best is None or error < best[0]:
            best = error, kernel
    error, kernel = best
    intercept = t - tf.reduce_sum(p[:, :, None] * kernel, 1) if has_intercept else tf.zeros_like(t)
    return kernel.numpy(), intercept.numpy(), float(error / tf.maximum(tf.reduce_sum(held_tt), TINY))


def repair(supernet, subnetwork, inputs):
    """Returns a sub-network cut out and repaired, or the plain cut where that comes closer to the unpruned network.

        smaller = ekg.repair(supernet, subnetwork, images)

    Nothing is trained and no labels are needed. Moving statistics are estimated from the same examples. What decides is the
    mean squared difference from the unpruned network's outputs on the examples that were left out of the fit.

    Args:
        supernet: the Supernet.
        subnetwork: the Subnetwork.
        inputs: examples as the network takes them, array [examples, ...], or a structure of arrays for several inputs; at
            least LEAST_EXAMPLES, and of more than num_examples() the first ones.

    Raises:
        EkgError: there are too few examples, or their numbers are not finite.
    """
    inputs = _checked(inputs, supernet.graph)
    held_out = keras.tree.map_structure(lambda array: array[_first_held_out(len(array)):], inputs)
    model = supernet.cut(subnetwork)
    estimate = StatisticsEstimation(model)
    batches = Batches(_Unlabelled(inputs), lambda images: images, BATCH)
    wanted = keras.tree.flatten(supernet.model(held_out, training=False))

    def distance():
        found = keras.tree.flatten(model(held_out, training=False))
        return float(sum(tf.reduce_mean((a - b) ** 2) for a, b in zip(found, wanted, strict=True)))

    estimate(batches)
    repair_if_better_(model, supernet, subnetwork, inputs, functools.partial(estimate, batches), distance)
    return model


def repair_if_better_(model, supernet, subnetwork, inputs, estimate, loss):
    """Repairs, in place, a network that was cut out; it gets its weights back where that does not lower its loss.

    Args:
        model: keras.Model, as supernet.cut(subnetwork) gives, with moving statistics that fit.
        supernet: the Supernet.
        subnetwork: the Subnetwork.
        inputs: examples as the network takes them.
        estimate: function without arguments that lets the moving statistics of the model fit its weights.
        loss: function without arguments that returns what is to be low of the model.

    Returns:
        Whether the network is repaired.
    """
    weights, before = model.get_weights(), loss()
    repair_(model, supernet, subnetwork, inputs)
    estimate()
    after = loss()
    if after <= before:
        logger.info("repair: %.4g with the plain cut, %.4g repaired", before, after)
        return True
    model.set_weights(weights)
    logger.warning("the repair is left out: the plain cut has a loss of %.4g, the repaired network %.4g.", before, after)
    return False


def num_examples(graph):
    """Returns how many examples a repair takes at most: as many as keep the activations of both networks in memory."""
    last = {number: position for position, call in enumerate(graph.calls) for number in call.inputs}
    sizes = {number: 4 * math.prod(size or 1 for size in shape[1:]) for number, shape in graph.shapes.items()}
    live, most = set(graph.inputs), 0
    for position, call in enumerate(graph.calls):
        live |= set(call.outputs)
        most = max(most, sum(sizes[number] for number in live))
        live -= {number for number in live if last.get(number, -1) <= position and number not in graph.outputs}
    return min(max(ACTIVATION_BYTES // (2 * most), LEAST_EXAMPLES), MOST_EXAMPLES)


def _first_held_out(count):
    """Returns the number of the first of so many examples that is left out of the fit."""
    return count - max(int(count * HELD_OUT), 1)


def _checked(inputs, graph):
    """Returns the examples as float arrays, not more than are of use.

    Raises:
        EkgError: there are too few, or a number is not finite.
    """
    most = num_examples(graph)
    inputs = keras.tree.map_structure(lambda array: np.asarray(array)[:most], inputs)
    for array in keras.tree.flatten(inputs):
        if len(array) < LEAST_EXAMPLES:
            raise EkgError(f"`images`: a repair needs at least {LEAST_EXAMPLES} examples; received {len(array)}.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise EkgError("`images` must be finite numbers; there are NaN or infinite ones.")
    return inputs


class _Unlabelled:
    """Examples without labels as a split that is read in batches."""

    def __init__(self, inputs):
        self._inputs = inputs

    def __len__(self):
        return len(keras.tree.flatten(self._inputs)[0])

    def stream(self, index_batches):
        for indices in index_batches:
            yield keras.tree.map_structure(lambda array, chosen=indices: array[chosen], self._inputs)


def repair_(model, supernet, subnetwork, inputs):
    """Repairs, in place, a network that was cut out; returns {layer: share of its output's variance that the fit leaves}.

    Batch norms keep moving statistics that fit nothing: estimate them afterwards. A layer that is called several times,
    and one whose record has no `patches`, keep the weights that they were cut out with.

    Args:
        model: keras.Model, as supernet.cut(subnetwork) gives.
        supernet: the Supernet.
        subnetwork: the Subnetwork.
        inputs: examples as the network takes them, at least 16; no labels are needed.
    """
    with full_float32():
        return _Sweep(model, supernet, subnetwork, inputs).run()


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """How a call is fitted.

    Attributes:
        is_linear: whether the layer has no activation of its own, so that what it writes is what is fitted.
        norm: the call of a batch norm that follows and whose scale and offset can be set, or None.
        has_intercept: whether a constant per channel can be added: by a bias, or as a batch norm takes any away.
        error: what the other part of a residual sum lacks, [examples, positions..., kept channels], or None.
    """
    is_linear: bool
    norm: object
    has_intercept: bool
    error: object


class _Sweep:
    """One pass over the unpruned and the cut network, side by side; all examples go through each call at once."""

    def __init__(self, model, supernet, subnetwork, inputs):
        self._full = supernet.graph
        self._cut = Graph(model, self._full.input_shapes)
        self._layout, self._mask = supernet.layout, supernet.mask(subnetwork) > 0
        self._whole, self._mine = self._full.tensors_of(inputs), self._cut.tensors_of(inputs)  # {tensor number: value}
        self._unchanged = set(self._full.inputs)  # tensors that are the same in both
        self._followers = sole_readers(self._full)
        self._pairs = list(zip(self._full.calls, self._cut.calls, strict=True))
        self._own = dict(self._pairs)
        self._last = {number: position for position, call in enumerate(self._full.calls) for number in call.inputs}
        self._once = {call for call in self._full.calls
                      if sum(other.key == call.key for other in self._full.calls) == 1}
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
            if not self._differs(call) and (plan is None or plan.error is None) and all(
                    self._mask[self._layout.index[number]].all() for number in call.outputs):
                self._unchanged.update(call.outputs)
            for mine, theirs in zip(call.inputs, own.inputs):
                if self._last[mine] == position and mine not in self._full.outputs:
                    self._whole.pop(mine, None)
                    self._mine.pop(theirs, None)
        return left

    def _run(self, call, tensors):
        options = execute.ExecutionOptions(collect_moments=True)
        variables = [tf.convert_to_tensor(variable.value) for variable in layer_variables(call.layer)]
        outputs, _ = execute.run_call(call, variables, tensors, norms.uses_batch_statistics(call.layer), options)
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
        """Returns the _Plan of a call, or None if its kernel stays as it was cut."""
        record = records.record_of(call.layer)
        if record is None or record.patches is None or call not in self._once:
            return None
        is_linear = getattr(call.layer, "activation", None) in (None, keras.activations.linear)
        follower = self._followers.get(call) if is_linear else None
        is_normed = follower is not None and norms.supports(follower.layer) and follower.layer.trainable
        norm = follower if is_normed and follower.layer.scale and follower.layer.center else None
        adding = self._followers.get(norm) if norm is not None else None if is_normed else follower
        error = None if adding is None else self._error_beside((norm or call).output, adding)
        if not self._differs(call) and error is None:
            return None
        return _Plan(is_linear, norm, is_normed or getattr(call.layer, "use_bias", False), error)

    def _error_beside(self, number, adding):
        """Returns what the other summands of a sum lack, or None if there is nothing, or it is not known yet."""
        own = self._own[adding]
        others = [(mine, theirs) for mine, theirs in zip(adding.inputs, own.inputs) if mine != number]
        shapes = {self._full.shapes[other] for other in (*adding.inputs, adding.output)}
        if not _is_sum(adding.layer) or len(others) != len(adding.inputs) - 1 or len(shapes) > 1 or not all(
                mine in self._whole and theirs in self._mine for mine, theirs in others) or all(
                mine in self._unchanged for mine, _ in others):
            return None
        return sum(tf.gather(self._channels_last(self._whole[mine], mine), self._kept(mine), axis=-1)
                   - self._channels_last(self._mine[theirs], mine) for mine, theirs in others)

    def _targets(self, call, plan, part):
        """Returns what a call computes before its activation for some examples, [examples, positions..., kept channels]."""
        if plan.is_linear:
            value = self._channels_last(self._whole[call.output][part], call.output)
        else:
            read = self._whole[call.inputs[0]][part]
            p = records.record_of(call.layer).patches(call.layer, read)
            variable, weight = records.fitted_of(call.layer)
            kernel = patches.kernel_matrix(variable.numpy(), weight, p.shape[-2])
            value = tf.einsum("...br,brc->...bc", p, kernel)
            value = tf.reshape(value, (*value.shape[:-2], -1))
            value = value + call.layer.bias.value if getattr(call.layer, "use_bias", False) else value
        return tf.gather(value, self._kept(call.output), axis=-1)

    def _norm_as_affine(self, call, plan):
        """Returns (factor, offset, deviation) per kept channel: a batch norm maps y to factor·y + offset; y's deviation."""
        value = self._channels_last(self._whole[call.output], call.output)
        mean, variance = (tf.gather(moment, self._kept(call.output)) for moment in tf.nn.moments(
            tf.cast(value, tf.float64), range(len(value.shape) - 1)))
        layer = plan.norm.layer
        gamma, beta = (tf.gather(tf.cast(variable.value, tf.float64), self._kept(call.output))
                       for variable in (layer.gamma, layer.beta))
        factor = gamma / tf.sqrt(variance + layer.epsilon)
        return tf.cast(factor, tf.float32), tf.cast(beta - factor * mean, tf.float32), tf.sqrt(variance).numpy()

    def _moments(self, call, own, plan, affine, examples):
        """Returns the _Moments of a range of examples, at a random choice of positions."""
        record, moments = records.record_of(own.layer), _Moments()
        first = record.patches(own.layer, self._mine[own.inputs[0]][:1])
        blocks, rows = first.shape[-2:]
        positions = int(np.prod(first.shape[1:-2]))
        taken = min(positions, -(-POSITIONS // self._num_examples))
        together = max(1, CHUNK_NUMBERS // (positions * blocks * rows))
        for start in range(examples.start, examples.stop, together):
            part = slice(start, min(start + together, examples.stop))
            p = tf.reshape(record.patches(own.layer, self._mine[own.inputs[0]][part]), (-1, blocks, rows))
            t = self._targets(call, plan, part)
            t = t if affine is None else affine[0] * t + affine[1]
            t = tf.reshape(t if plan.error is None else t + plan.error[part], (p.shape[0], blocks, -1))
            if taken < positions:
                chosen = self._rng.choice(p.shape[0], taken * (part.stop - part.start), replace=False)
                p, t = tf.gather(p, chosen), tf.gather(t, chosen)
            moments.add(p, t)
        return moments

    # ---------------------------------------------------------------- the map of channels

    def _mapped_kernel(self, call, own, has_intercept):
        """Returns the unpruned kernel for what the cut layer reads, each channel as a combination of the kept ones.

        That is W'_k = Σ_c M_ck·W_c with M = Cov(X, Y)·(Cov(Y, Y) + ρI)⁻¹ for the channels X of the unpruned network and
        the kept ones Y. Layers that work in groups keep the kernel that was cut.

        Returns:
            float64 array of the shape of the cut layer's kernel.
        """
        record = records.record_of(call.layer)
        (whole, weight), (mine, _) = records.fitted_of(call.layer), records.fitted_of(own.layer)
        number, kept = call.inputs[0], self._kept(call.inputs[0])
        axis = weight.axes.index(records.IN) if record.mixes else None
        entries = len(self._layout.index[number])
        if axis is None or whole.shape[axis] != entries or len(kept) == entries and number in self._unchanged:
            return mine.numpy().astype(np.float64)
        groups = self._entries_by_channel(number)  # [channels, entries of each]
        own_place = np.full(entries, -1)
        own_place[kept] = np.arange(len(kept))
        own_groups = own_place[groups[own_place[groups[:, 0]] >= 0]]
        x, y = (self._by_channel(value, number, places) for value, places in (
            (self._whole[number], groups), (self._mine[own.inputs[0]], own_groups)))
        if has_intercept:
            x, y = x - x.mean(0), y - y.mean(0)
        products = y.T @ y
        products += (MAP_RIDGE * np.trace(products) / len(products) + TINY) * np.eye(len(products))
        mapping = np.linalg.solve(products, y.T @ x)  # [kept channels, channels]
        kernel = np.moveaxis(np.take(whole.numpy().astype(np.float64), self._kept(call.output),
                                     weight.axes.index(records.OUT)), axis, 0)
        mapped = np.zeros((len(kept), *kernel.shape[1:]))
        for column, own_column in zip(groups.T, own_groups.T):
            mapped[own_column] = np.tensordot(mapping, kernel[column], 1)
        return np.moveaxis(mapped, 0, axis)

    def _entries_by_channel(self, number):
        """Returns the entries of a tensor's channel axis by channel, int array [channels, entries of each].

        A flattened map has each channel at every position; fixed channels, which are not told apart, count one by one.
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
        value = value[::max(1, len(value) * places.shape[1] // POSITIONS)].numpy().astype(np.float64)
        return value[:, places.T].reshape(-1, len(places))

    # ---------------------------------------------------------------- the fit

    def _fit(self, call, own, plan):
        """Sets the kernel of a cut layer, and its bias.

        Returns:
            (share of the target's variance that is left; where a batch norm follows, by how much each filter is larger than
            the fit of the norm's output, float64 [kept channels], 0 where there is nothing to fit; else None).
        """
        affine = None if plan.norm is None else self._norm_as_affine(call, plan)
        end = _first_held_out(self._num_examples)
        fitting, held_out = (self._moments(call, own, plan, affine, examples)
                             for examples in (range(end), range(end, self._num_examples)))
        variable, weight = records.fitted_of(own.layer)
        blocks = fitting.sums[0].shape[0]
        prior = patches.kernel_matrix(self._mapped_kernel(call, own, plan.has_intercept), weight, blocks)
        if affine is not None:
            prior = prior * affine[0].numpy().reshape(blocks, 1, -1)
        matrix, intercept, left = fit(fitting, held_out, prior, plan.has_intercept)
        factor = None
        if plan.norm is not None:
            # The norm takes any scale: each filter gets the one at which its output varies as it did.
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
        """Lets the batch norm that follows pass the fit on as it is: undo the factor, and add the mean of the error."""
        value = self._channels_last(self._mine[own.output], call.output)
        axes = range(len(value.shape) - 1)
        variance = tf.math.reduce_variance(tf.cast(value, tf.float64), axes).numpy()
        layer = self._own[plan.norm].layer
        gamma = np.sqrt(variance + layer.epsilon) / np.where(factor > 0, factor, 1)
        layer.gamma.assign(np.where(factor > 0, gamma, 0))
        if plan.error is not None:
            layer.beta.assign(layer.beta.value + tf.reduce_mean(plan.error, axes))


def _is_sum(operation):
    return type(operation) is keras.layers.Add or records.published_name(type(operation)) == "keras.ops.Add"
