"""The supernet: a trained network with a gate on every channel group, as a pure function of weights and masks.

One function serves every sub-network: the masks are its arguments, so nothing is compiled again from one sub-network to
the next and nothing needs restoring after a trial.
"""

import copy
import dataclasses

import keras
import numpy as np
import tensorflow as tf

from ekg import complexity, cutting, groups
from ekg import graph as graphs
from ekg.subnetwork import Subnetwork


@dataclasses.dataclass(frozen=True)
class Gate:
    """A place in the program where a tensor's channels are multiplied by the mask."""
    tensor: int


class Supernet:
    """A functional Keras model whose channels can be masked and cut.

    The model is read, never changed: its weights are looked up at every call.

    Attributes:
        model: the keras.Model.
        groups: tuple of ChannelGroup in network order.
        layout: groups.Layout, where every channel of every tensor belongs.
        program: list of graph calls and gates in the order in which they run.
        numerics: graph.Numerics that the masked network computes with.

    Raises:
        ValueError: the model is not functional, has several inputs or outputs, or nothing in it can be pruned.
    """

    def __init__(self, model, numerics=None):
        self.model, self.numerics = model, numerics or graphs.Numerics()
        self.graph = graphs.Graph(model)
        self.layout = groups.find(self.graph)
        if not self.layout.groups:
            raise ValueError(f"nothing in model {model.name!r} can be pruned: no channel group was found.")
        self.program = []
        for call in self.graph.calls:
            self.program.append(call)
            if call.output in self.layout.sites:
                self.program.append(Gate(call.output))
        self._table = complexity.ComplexityTable(self.graph, self.layout)
        self._forward = tf.function(self.forward)

    @property
    def groups(self):
        return self.layout.groups

    def whole(self):
        """Returns the Subnetwork that keeps everything."""
        return Subnetwork.whole(self.groups)

    def smallest(self):
        """Returns the Subnetwork that keeps one channel of every group."""
        return self.whole().with_widths({group.name: 0.0 for group in self.groups})

    def with_numerics(self, numerics):
        """Returns a Supernet of the same model that computes with other graph.Numerics."""
        other = copy.copy(self)
        other.numerics, other._forward = numerics, tf.function(other.forward)
        return other

    def mask(self, subnetwork):
        """Returns the mask over all channels: float32 [num_channels + 1]; the last one, for fixed channels, is 1."""
        mask = np.zeros(self.layout.num_channels + 1, np.float32)
        mask[-1] = 1
        for group, offset in enumerate(self.layout.offsets):
            mask[offset + subnetwork.kept(group)] = 1
        return mask

    def complexity(self, subnetwork):
        """Returns Complexity(params, flops) of the sub-network cut out."""
        return self._table.count(self.mask(subnetwork))

    def rate(self, subnetwork):
        """Returns FLOPs of the sub-network divided by FLOPs of the whole, in (0, 1]."""
        return self.complexity(subnetwork).flops / self.complexity(self.whole()).flops

    def weights(self):
        """Returns {layer name: list of tensors, trainable before non-trainable} of the model as it is now."""
        return {layer.name: [tf.convert_to_tensor(variable.value) for variable in graphs.layer_variables(layer)]
                for layer in self.model.layers if layer.variables}

    def gates(self, mask):
        """Returns {site: mask of its channels, float32 [channels]} for a mask tensor over all channels."""
        return {site: tf.gather(mask, self.layout.index[site]) for site in self.layout.sites}

    def run(self, weights, mask, live, start=0, stop=None, training=True, gates=None):
        """Runs a stretch of the program and returns the tensors it leaves. Pure: no variable is read or updated.

        Args:
            weights: {layer name: list of tensors} as weights() gives.
            mask: float32 [num_channels + 1].
            live: {tensor number: value} of all tensors that the stretch reads from before it.
            start: first position of the program.
            stop: position behind the last one; None runs to the end.
            training: whether batch norms use the statistics of the batch.
            gates: {site: mask}; None takes them from `mask`. Given apart where they are differentiated.
        """
        live = dict(live)
        gates = self.gates(mask) if gates is None else gates
        for item in self.program[start:stop]:
            if isinstance(item, Gate):
                live[item.tensor] = live[item.tensor] * tf.cast(gates[item.tensor], live[item.tensor].dtype)
            else:
                live[item.output] = self._call(item, weights, mask, live, training)
        return live

    def forward(self, weights, mask, images, training=True, gates=None):
        """Returns the masked network's logits [batch, classes] for normalised images [batch, height, width, channels]."""
        return self.run(weights, mask, {0: images}, training=training, gates=gates)[self.graph.output]

    def logits(self, images, subnetwork, training=True):
        """Returns the masked logits [batch, classes] of a sub-network; nothing is updated.

        Args:
            images: normalised images [batch, height, width, channels], float32.
            subnetwork: the Subnetwork.
            training: True uses batch statistics in batch norms, False the moving ones.
        """
        return self._forward(self.weights(), tf.constant(self.mask(subnetwork)), images, training)

    def cut(self, subnetwork):
        """Returns the sub-network as a smaller keras.Model with its weights; this model is left as it is."""
        return cutting.cut(self.graph, self.layout, self.mask(subnetwork) > 0)

    def live_at(self, position):
        """Returns the sorted numbers of the tensors that the program from this position on reads from before it."""
        made, needed = set(), set()
        for item in self.program[position:]:
            reads = {item.tensor} if isinstance(item, Gate) else set(item.inputs)
            needed |= reads - made
            made |= reads if isinstance(item, Gate) else {item.output}
        return sorted(needed)

    def first_gate(self, group):
        """Returns the position of the first gate in the program that carries channels of the group at this position."""
        channels = self.layout.channels(group)
        for position, item in enumerate(self.program):
            if isinstance(item, Gate):
                index = self.layout.index[item.tensor]
                if ((index >= channels.start) & (index < channels.stop)).any():
                    return position
        raise LookupError(f"channel group {self.groups[group].name!r} has no gate.")

    def _call(self, call, weights, mask, live, training):
        values = weights.get(call.layer.name, [])
        if call.output == self.graph.output and groups.is_mixing(call.layer):
            values = [self._restore_norm(values[0], mask, self.layout.index[call.inputs[0]]), *values[1:]]
        # Dropout and its like stay off: in the search it is the batch norms alone that work as in training.
        is_norm = isinstance(call.layer, keras.layers.BatchNormalization)
        numerics = self.numerics if call.output != self.graph.output else None  # logits are float32
        return graphs.run_call(call, values, live, training and is_norm, numerics)[0]

    def _restore_norm(self, kernel, mask, index):
        """Scales the classifier's kernel so that the rows that stay have the Frobenius norm of all rows."""
        return kernel * cutting.norm_factor(kernel, tf.gather(mask, index))

