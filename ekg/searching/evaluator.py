"""Evaluates sub-networks of one supernet on D_val, on one device."""

import math

import keras
import numpy as np
import tensorflow as tf

from ekg.devices.compute import compiled
from ekg.network import channel_weights
from ekg.process import stopping

# segments that run as one where no inner boundary is needed: fewer calls, more fusion
SEGMENTS_TOGETHER = 5
# Bytes of the present sub-network's activations that are kept for its candidates.
STATE_BUDGET = 2**30


def segment_starts(supernet):
    """Returns the starts of the segments of a supernet's program: the first step, and the first use
    of each group.
    """
    return [0, *sorted({supernet.first_use(group) for group in range(len(supernet.groups))})]


def kept_state_bytes(supernet, num_images):
    """Returns the bytes of the states that an Evaluator keeps of this many images, float32; 0 if
    they exceed its budget.
    """
    shapes = supernet.graph.shapes
    states = _states_before(supernet, segment_starts(supernet))
    size = (
        4 * num_images * sum(math.prod(shapes[tensor][1:]) for state in states for tensor in state)
    )
    return size if size <= STATE_BUDGET else 0


def _states_before(supernet, starts):
    """Returns the numbers of the tensors in the state before each of these ascending steps of the
    program: all inputs before the first one, later what is still read.
    """
    reads = supernet.tensors_read_from_each(starts)
    return [
        tensors if start else list(supernet.graph.inputs) for start, tensors in zip(starts, reads)
    ]


class Evaluator:
    """Evaluates sub-networks of one supernet on D_val. Batch norms use batch statistics throughout.

    The program is cut into segments at the first use of every group's mask. All candidates of a
    search step share the present sub-network up to their own group's first gate, so each segment of
    the present one runs once, and a candidate costs only the segments after its first changed gate.
    The states of the present one between segments are kept when its knowledge is added, if they fit
    a budget; else they are computed again batch by batch. Every segment, and every run of
    SEGMENTS_TOGETHER segments, is traced once per batch shape and serves all candidates and steps.

    Attributes:
        supernet: the Supernet.
        labels: list of the labels of each batch, [batch, ...]; batches have at most two sizes.
    """

    def __init__(self, supernet, batches, teacher, use_xla):
        """
        Args:
            supernet: the Supernet; its weights are read now.
            batches: data.Batches of D_val.
            teacher: "ensemble", "single" or "none".
            use_xla: whether to compile with XLA.
        """
        self._teacher_kind, self._task = teacher, batches.task
        self.start_from(supernet, batches)
        starts = segment_starts(supernet)
        number_of = {start: number for number, start in enumerate(starts)}
        # The first segment that the mask of each group changes
        self._entries = [number_of[supernet.first_use(i)] for i in range(len(supernet.groups))]
        edges = [*starts, len(supernet.program)]
        self._reads = dict(zip(starts, _states_before(supernet, starts)))
        self._segments = [
            self._make_segment(start, stop, use_xla) for start, stop in zip(edges, edges[1:])
        ]
        # Runs of several segments as one, by the number of their first
        self._runs = {
            first: self._make_segment(edges[first], edges[first + SEGMENTS_TOGETHER], use_xla)
            for first in range(0, len(self._segments) - SEGMENTS_TOGETHER + 1, SEGMENTS_TOGETHER)
        }
        self._normalise = compiled(batches.normalise, "normalisation", use_xla)
        self._sums = compiled(self._batch_loss_sums, "sum of the search's losses", use_xla)
        self._products = compiled(self._batch_gate_products, "importance", use_xla)
        self._sensitivities = compiled(
            self._batch_sensitivities, "sensitivity of single images", use_xla
        )
        self._gradients = compiled(
            self._batch_weight_gradients, "gradients of the weights", use_xla
        )

    def start_from(self, supernet, batches):
        """Starts over with the weights of a Supernet of this structure, other batches of these
        examples, and no knowledge.

        Traced and compiled functions stay, for batches of the same sizes.
        """
        self.supernet, self._batches = supernet, batches
        self.labels = [tf.constant(batches.labels(number)) for number in range(len(batches))]
        self._scale = self._task.scale(batches.split.labels)
        self._num_added = 0  # sub-networks in the knowledge
        self._knowledge = []  # the mean logits T of every batch, float32 [batch, ...]
        self._weights = tf.nest.map_structure(tf.identity, supernet.weights())  # on this device
        self._states = (
            None  # (mask, for every batch the state before each segment) of the present sub-network
        )
        self._caches_states = kept_state_bytes(supernet, batches.num_images) > 0

    # ---------------------------------------------------------------- losses of candidates

    def loss_sums(self, present, candidates, share_prefix=True):
        """Returns the sums over D_val of every candidate's loss with the labels, distance to the
        knowledge, and first metric.

        Losses are summed batch by batch; no logits of a candidate are kept. Returns float64 [number
        of candidates, 3].

        Args:
            present: the present Subnetwork.
            candidates: list of (group, Subnetwork), each differing from the present one in that
                group alone; group None means the present sub-network itself.
            share_prefix: False runs every candidate from the input; the sums are the same.
        """
        sums = np.zeros((len(candidates), 3))
        if not candidates:
            return sums
        masks = [self._mask(subnetwork) for _, subnetwork in candidates]
        by_entry = {}  # {first segment that differs: numbers of candidates}
        for i, (group, _) in enumerate(candidates):
            by_entry.setdefault(self._entry(group) if share_prefix else 0, []).append(i)
        for number, (inputs, labels) in enumerate(zip(self._inputs(), self.labels)):
            teacher, totals = self._teacher(number), {}
            for segment, state in enumerate(self._walk(present, number, inputs, max(by_entry))):
                for i in by_entry.get(segment, ()):
                    stopping.check()
                    totals[i] = self._sums(self._run(masks[i], state, segment), labels, teacher)
            sums += np.array([totals[i].numpy() for i in range(len(candidates))])
        return sums

    def logits(self, subnetwork):
        """Returns the logits of a sub-network: one float32 tensor [batch, classes] per batch."""
        mask = self._mask(subnetwork)
        return [self._run(mask, inputs, 0) for inputs in self._inputs()]

    # ---------------------------------------------------------------- knowledge

    def add_knowledge(self, subnetwork):
        """Adds the logits of the next interim sub-network to the knowledge: T ← (T·(i+1) + logits)
        / (i+2).
        """
        n = self._num_added
        is_needed = n == 0 or self._teacher_kind == "ensemble"
        logits = self.cache_states(subnetwork) or (self.logits(subnetwork) if is_needed else None)
        if is_needed:
            self._knowledge = (
                [(mean * n + new) / (n + 1) for mean, new in zip(self._knowledge, logits)]
                if n
                else logits
            )
        self._num_added += 1

    def cache_states(self, subnetwork):
        """Keeps the states of the present sub-network for its candidates, if they fit, and returns
        its logits, else None.
        """
        if not self._caches_states:
            return None
        walks = []
        for number, inputs in enumerate(self._inputs()):
            stopping.check()
            walks.append(list(self._walk(subnetwork, number, inputs, len(self._segments))))
        logits = [self._task.joined(states.pop()) for states in walks]
        self._states = self.supernet.mask(subnetwork), walks
        return logits

    @property
    def knowledge(self):
        """The knowledge T of all images of D_val in its order, float32 [images, classes]; None
        before any is learned.
        """
        return (
            np.concatenate([mean.numpy() for mean in self._knowledge]) if self._knowledge else None
        )

    def restore_knowledge(self, knowledge, num_added):
        """Sets the knowledge of a number of interim sub-networks."""
        self._knowledge = [tf.constant(knowledge[indices]) for indices in self._batches.indices]
        self._num_added = num_added

    # ---------------------------------------------------------------- importance

    def gate_products(self, subnetwork, numbers):
        """Returns {number of a batch: {site: |Σ over batch, height, width of (∂L/∂y)·y|, array
        [channels of the site]}}.

        L = −reward, y is the activation at a gate; ∂L/∂y is 0 where the mask is.

        Args:
            subnetwork: the Subnetwork.
            numbers: ascending numbers of the batches.
        """
        mask, by_number = self._mask(subnetwork), {}
        for number, inputs in zip(numbers, self._inputs(numbers)):
            stopping.check()
            products = self._products(
                self._weights, mask, inputs, self.labels[number], self._teacher(number)
            )
            # Divided only here: the gradients of a mean over many images are too small for float16.
            by_number[number] = {
                site: product.numpy() / self._batches.num_images
                for site, product in products.items()
            }
        return by_number

    def image_sensitivities(self, subnetwork, numbers):
        """Returns {number of a batch: Σ over its images |∂CE/∂m · m|, float64 [number of
        channels]}.

        m is a gate per image that all sites of a channel share; CE is the cross-entropy with the
        labels.
        """
        mask, by_number = self._mask(subnetwork), {}
        for number, inputs in zip(numbers, self._inputs(numbers)):
            stopping.check()
            sums = self._sensitivities(self._weights, mask, inputs, self.labels[number])
            by_number[number] = sums.numpy().astype(np.float64)
        return by_number

    def weight_gradients(self, subnetwork, numbers):
        """Returns {number of a batch: gradient of the sum of its images' losses with the labels,
        float32 [entries]}.

        It is by all weights that belong to channels, concatenated in the order of
        channel_weights.find_places().
        """
        mask, by_number = self._mask(subnetwork), {}
        for number, inputs in zip(numbers, self._inputs(numbers)):
            stopping.check()
            by_number[number] = self._gradients(
                self._weights, mask, inputs, self.labels[number]
            ).numpy()
        return by_number

    def count_traces(self):
        """Returns {part: number of graphs made of it}: one per batch shape during a whole search.

        There are (segments) * (1 + 1/SEGMENTS_TOGETHER) + 3 parts; batches have at most two shapes.
        """
        parts = {f"segment {i}": function for i, (function, _) in enumerate(self._segments)}
        parts |= {f"run of segments {i}": function for i, (function, _) in self._runs.items()}
        parts |= {
            "normalisation": self._normalise,
            "sums": self._sums,
            "importance": self._products,
        }
        return {name: function.count_traces() for name, function in parts.items()}

    # ---------------------------------------------------------------- parts of the supernet

    def _inputs(self, numbers=None):
        """Yields the normalised inputs of the batches, or of those with these numbers: a list of
        one tensor per input, the state before the first segment.
        """
        numbers = range(len(self._batches)) if numbers is None else numbers
        if self._states is not None:
            yield from (self._states[1][number][0] for number in numbers)
        else:
            for images in self._batches.images(numbers):
                yield keras.tree.flatten(self._normalise(images))

    def _mask(self, subnetwork):
        return tf.constant(self.supernet.mask(subnetwork))

    def _teacher(self, number):
        """Returns the logits T of a batch; zeros, which nothing reads, without knowledge."""
        if self._knowledge:
            return self._knowledge[number]
        return tf.zeros((len(self.labels[number]), *self._task.shape(self.supernet.graph)))

    def _entry(self, group):
        """Returns the segment in which a candidate of this group begins to differ."""
        return 0 if group is None else self._entries[group]

    def _make_segment(self, start, stop, use_xla):
        """Returns (function of weights, mask and state that runs a part of the program, the layers
        whose weights it reads).

        A state is the list of tensors that cross a segment boundary.
        """
        supernet = self.supernet
        reads = self._reads[start]
        is_last = stop == len(supernet.program)
        leaves = self._task.tensors(supernet.graph) if is_last else self._reads[stop]
        names = {step.key for step in supernet.program[start:stop] if hasattr(step, "layer")}

        def segment(weights, mask, state):
            tensors = supernet.execute(weights, mask, dict(zip(reads, state)), start, stop)
            return [tensors[tensor] for tensor in leaves]

        return compiled(segment, f"part {start} to {stop} of the supernet", use_xla), sorted(
            names & self._weights.keys()
        )

    def _walk(self, subnetwork, batch, inputs, last):
        """Yields the state before each segment from 0 to `last` of a sub-network on a batch; after
        the last one [logits].
        """
        mask = self.supernet.mask(subnetwork)
        known = self._known_states(mask, batch)[: last + 1] or [inputs]
        yield from known
        mask, state = tf.constant(mask), known[-1]
        for segment in self._segments[len(known) - 1 : last]:
            state = self._run_segment(segment, mask, state)
            yield state

    def _run_segment(self, segment, mask, state):
        """Returns the state after a segment that _make_segment() made, from the state before it."""
        function, names = segment
        return function({name: self._weights[name] for name in names}, mask, state)

    def _known_states(self, mask, batch):
        """Returns the known first states of a mask on a batch: all up to the first changed gate."""
        if self._states is None:
            return []
        kept_mask, walks = self._states
        changed = np.flatnonzero(mask != kept_mask)
        groups = np.unique(np.searchsorted(self.supernet.layout.offsets, changed, side="right") - 1)
        entries = [self._entry(group) for group in groups]
        return walks[batch][: min(entries, default=len(self._segments)) + 1]

    def _run(self, mask, state, first):
        """Returns the logits from the state before segment `first`."""
        while first < len(self._segments):
            is_run = first in self._runs
            state = self._run_segment(
                self._runs[first] if is_run else self._segments[first], mask, state
            )
            first += SEGMENTS_TOGETHER if is_run else 1
        return self._task.joined(state)

    # ---------------------------------------------------------------- pure functions of a batch

    def _forward(self, weights, mask, inputs, **options):
        return self._task.of(self.supernet.forward(weights, mask, inputs, **options))

    def _batch_loss_sums(self, outputs, labels, teacher):
        """Returns sums over a batch: [loss with the labels, distance to the teacher, first metric],
        float64.
        """
        hits = self._task.measure(labels, outputs)[self._task.metrics[0]]
        values = tf.stack(
            [self._task.loss(labels, outputs), self._task.distance(teacher, outputs), hits]
        )
        return tf.reduce_sum(tf.cast(values, tf.float64), axis=1)

    def _batch_gate_products(self, weights, mask, inputs, labels, teacher):
        activations, layout = {}, self.supernet.layout
        with tf.GradientTape() as tape:

            def watch(site, activation):
                tape.watch(activation)
                activations[site] = activation

            outputs = self._forward(weights, mask, inputs, at_gate=watch)
            loss = tf.reduce_sum(self._task.loss(labels, outputs))
            if self._teacher_kind != "none":
                loss += tf.reduce_sum(self._task.distance(teacher, outputs))
            # A factor of all scores, which keeps gradients in the range of half precision.
            loss /= self._scale
        gradients = tape.gradient(loss, activations, unconnected_gradients="zero")
        products = {}
        for site, activation in activations.items():
            others = [axis for axis in range(len(activation.shape)) if axis != layout.axes[site]]
            product = tf.cast(gradients[site], tf.float32) * tf.cast(activation, tf.float32)
            products[site] = tf.abs(tf.reduce_sum(product, others))
        return products

    def _batch_sensitivities(self, weights, mask, inputs, labels):
        batch, layout = tf.shape(inputs[0])[0], self.supernet.layout
        gates = {}
        for site, gate in self.supernet.gates(mask).items():
            rank, axis = len(self.supernet.graph.shapes[site]), layout.axes[site]
            shape = [gate.shape[0] if i == axis else 1 for i in range(rank)]
            gates[site] = tf.tile(tf.reshape(gate, shape), [batch] + [1] * (rank - 1))
        with tf.GradientTape() as tape:
            tape.watch(gates)
            loss = tf.reduce_sum(
                self._task.loss(labels, self._forward(weights, mask, inputs, gates=gates))
            )
        gradients = tape.gradient(loss, gates, unconnected_gradients="zero")
        sums = tf.zeros([layout.num_channels + 1, batch])
        for site, gate in gates.items():
            product = tf.reshape(gradients[site] * gate, [batch, -1])
            sums = tf.tensor_scatter_nd_add(
                sums, layout.index[site][:, None], tf.transpose(product)
            )
        return tf.reduce_sum(tf.abs(sums[:-1]), axis=1)

    def _batch_weight_gradients(self, weights, mask, inputs, labels):
        places = [
            (place.call.key, place.position) for place in channel_weights.find_places(self.supernet)
        ]
        with tf.GradientTape() as tape:
            tape.watch([weights[key][position] for key, position in places])
            loss = tf.reduce_sum(self._task.loss(labels, self._forward(weights, mask, inputs)))
        gradients = tape.gradient(
            loss, [weights[key][position] for key, position in places], unconnected_gradients="zero"
        )
        return tf.concat(
            [tf.reshape(tf.cast(gradient, tf.float32), [-1]) for gradient in gradients], axis=0
        )
