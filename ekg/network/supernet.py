"""The supernet: a trained network with gates, as a pure function of weights and masks.

One function serves every sub-network: the masks are its arguments, so nothing is compiled again
from ekg.graph.calls import Call
from ekg.graph.groups import ChannelGroup
from ekg.graph.complexity import Complexity
from one sub-network to the next and nothing needs restoring after a trial.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ekg.devices.compute import full_float32, in_graph
from ekg.graph import (
    checks,
    complexity,
    cutting,
    execute,
    groups,
    neighbours,
    norms,
    records,
    registry,
    removal,
)
from ekg.graph.calls import Call, Graph, layer_variables
from ekg.graph.complexity import Complexity
from ekg.graph.groups import ChannelGroup
from ekg.graph.limits import PruningLimits
from ekg.network.subnetwork import Subnetwork

# {layer key: tensors of the layer, trainable before non-trainable}
Weights = dict[str, list[tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class Gate:
    """A point of the program after which the mask of a tensor's channels counts; it can multiply
    them here.
    """

    tensor: int


class Supernet:
    """A Keras model whose channels can be masked and cut.

    The model is read, never changed: its weights are looked up at every call.

    Attributes:
        model: the keras.Model; of a subclassed one the functional model of the same layers.
        groups: tuple of ChannelGroup in network order.
        layout: groups.Layout, the channel numbers of every tensor.
        program: list of graph calls and gates in the order in which they run.
        options: execute.ExecutionOptions that the masked network computes with.
        classifier: the call that writes class logits, or None; see neighbours.classifier_of.
        table: complexity.ComplexityTable, which counts parameters and FLOPs.
        choices: {name: value} of the arguments besides the model.

    Raises:
        EkgError: the model is not functional, the size of its inputs is not known, a layer of it
            cannot be cut or copied, or nothing in it can be pruned.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        exclude: Any = (),
        min_channels: int | dict[str, int] = 1,
        multiple_of: int | dict[str, int] = 1,
        prune_frozen: bool = False,
        input_shape: Any = None,
        class_logits: bool = True,
        open_layers: bool | str | Sequence[str] = True,
    ) -> None:
        """
        Args:
            model: keras.Model.
            exclude: layers that keep all their output channels: a layer, a type, a regular
                expression for names, a function from a layer to a bool, or a list of these. The
                name of a nested model means all its layers.
            min_channels: smallest number of channels that stay in every group; or {pattern of the
                group's name: number}. With 0 a group may lose all its channels, and the branch of
                a block with them, where the network can do without it.
            multiple_of: the number of channels that stay is a multiple of it, unless all stay; or a
                dict likewise.
            prune_frozen: whether layers that are not trainable may lose channels of their own.
            input_shape: shape of one input without the batch, or a list of them, that FLOPs are
                counted for; needed where the model itself leaves it open.
            open_layers: which composite layers are taken apart, so that channels inside can be
                pruned: True for all, False for none, or regular expressions for their names. They
                become nested models of the cut network, and a subclassed model becomes a functional
                one.
            class_logits: whether a vector that the network returns holds class logits, whose kernel
                is rescaled to its norm; see neighbours.classifier_of.
        """
        self.choices = {
            "exclude": exclude,
            "min_channels": min_channels,
            "multiple_of": multiple_of,
            "prune_frozen": prune_frozen,
            "input_shape": input_shape,
            "class_logits": class_logits,
            "open_layers": open_layers,
        }
        self.graph = Graph(model, input_shape, open_layers)
        self.model, self.options = self.graph.model, execute.ExecutionOptions()
        checks.check_layers(self.graph)
        self.layout = groups.find(
            self.graph, PruningLimits(exclude, min_channels, multiple_of, prune_frozen)
        )
        if all(len(group.counts) == 1 for group in self.layout.groups):
            raise checks.NothingToPrune(
                f"nothing in `model` {model.name!r} can be pruned: "
                f"{checks.describe_closed(self.layout)}"
            )
        self.program = []
        for call in self.graph.calls:
            self.program.append(call)
            self.program.extend(
                Gate(number) for number in call.outputs if number in self.layout.sites
            )
        self.classifier = neighbours.classifier_of(self.graph) if class_logits else None
        self._asking = {call for call in self.graph.calls if self._asks_mask(call)}
        self._recurring = {call for call in self.graph.calls if self._is_recurring(call)}
        self.table = complexity.ComplexityTable(self.graph, self.layout)
        self._forward = in_graph(self.forward)
        self._sizes = [group.size for group in self.layout.groups]
        self._ranked = None, None
        checks.try_cut(self)

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        return self.layout.groups

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return self.graph.num_outputs

    def remade(self, model: keras.Model) -> "Supernet":
        """Returns the Supernet, with the same choices, of a model that differs in its weights
        alone.
        """
        return Supernet(model, **self.choices)

    def with_options(self, options: execute.ExecutionOptions) -> "Supernet":
        """Returns a Supernet of the same model that computes with other
        execute.ExecutionOptions.
        """
        other = copy.copy(self)
        other.options, other._forward = options, in_graph(other.forward)
        return other

    # ---------------------------------------------------------------- sub-networks and their cost

    def whole(self) -> Subnetwork:
        """Returns the Subnetwork that keeps everything."""
        return Subnetwork.whole(self.groups)

    def smallest(self) -> Subnetwork:
        """Returns the Subnetwork that keeps the fewest channels of every group: one, unless limits
        ask for more.
        """
        return self.whole().with_widths({group.name: 0.0 for group in self.groups})

    def mask(self, subnetwork: Subnetwork) -> np.ndarray:
        """Returns the mask over all channels: float32 [num_channels + 1]; the last one, for fixed
        channels, is 1.
        """
        mask = np.ones(self.layout.num_channels + 1, np.float32)
        mask[:-1] = self._ranks(subnetwork.order) < np.repeat(subnetwork.kept_counts, self._sizes)
        return mask

    def _ranks(self, order):
        """Returns the rank of every channel within its group, int [num_channels].

        Those of the last order are kept: candidates of one search step share it.
        """
        known, ranks = self._ranked
        if known is not order:
            ranks = np.empty(self.layout.num_channels, np.int64)
            for channels, offset in zip(order, self.layout.offsets):
                ranks[offset + np.array(channels, np.int64)] = np.arange(len(channels))
            self._ranked = order, ranks
        return ranks

    def removed(self, mask: np.ndarray) -> removal.Removal | None:
        """Returns what a cut removes besides channels where a mask leaves groups without any, or
        None where each has some.
        """
        return self.table.removed(mask)

    def idle_groups(self, subnetwork: Subnetwork) -> frozenset[int]:
        """Returns the positions of the groups that no longer matter in a sub-network, as other
        groups of their branches have vanished.
        """
        removed = self.removed(self.mask(subnetwork))
        if removed is None:
            return frozenset()
        left = [
            self.layout.index[number]
            for call in self.graph.calls
            if call not in removed.gone
            for number in call.outputs
        ]
        is_left = np.zeros(self.layout.num_channels + 1, bool)
        is_left[np.concatenate(left)] = True
        return frozenset(
            group
            for group in range(len(self.groups))
            if not is_left[self.layout.channels(group)].any()
        )

    def complexity(self, subnetwork: Subnetwork) -> Complexity:
        """Returns the Complexity(params, flops) of the cut sub-network."""
        return self.table.count(self.mask(subnetwork))

    @functools.cached_property
    def whole_complexity(self) -> Complexity:
        """Complexity(params, flops) of the unpruned network."""
        return self.complexity(self.whole())

    def rate(self, subnetwork: Subnetwork) -> float:
        """Returns FLOPs of the sub-network divided by FLOPs of the whole, in (0, 1]."""
        return self.complexity(subnetwork).flops / self.whole_complexity.flops

    def cut(self, subnetwork: Subnetwork) -> keras.Model:
        """Returns the sub-network as a smaller keras.Model with its weights; this model stays
        unchanged.
        """
        return cutting.cut(
            self.graph,
            self.layout,
            self.mask(subnetwork) > 0,
            keeps_norm=self.classifier is not None,
        )

    # ---------------------------------------------------------------- the masked network

    def weights(self) -> Weights:
        """Returns {layer key: list of tensors, trainable before non-trainable} of the present
        model.
        """
        called = {call.key: call.layer for call in self.graph.calls}
        return {
            key: [tf.convert_to_tensor(variable.value) for variable in layer_variables(layer)]
            for key, layer in called.items()
            if layer_variables(layer)
        }

    def gates(self, mask: tf.Tensor) -> dict[int, tf.Tensor]:
        """Returns {site: mask of its channels, float32 [channels]} for a mask tensor over all
        channels.
        """
        return {site: tf.gather(mask, self.layout.index[site]) for site in self.layout.sites}

    def execute(
        self,
        weights: Weights,
        mask: tf.Tensor,
        tensors: Mapping[int, tf.Tensor],
        start: int = 0,
        stop: int | None = None,
        training: bool = True,
        gates: Mapping[int, tf.Tensor] | None = None,
        at_gate: Callable[[int, tf.Tensor], None] | None = None,
    ) -> dict[int, tf.Tensor]:
        """Runs a part of the program and returns {tensor number: value}. No variable is read or
        updated.

        Args:
            weights: {layer key: list of tensors} as weights() gives.
            mask: float32 [num_channels + 1].
            tensors: {tensor number: value} of all tensors that the part reads from before it.
            start: first position of the program.
            stop: position after the last one; None runs to the end.
            training: whether batch norms use the statistics of the batch.
            gates: {site: mask} by which activations are multiplied, to differentiate by them. None
                masks the rows of the kernels after the gates instead: the same numbers at a lower
                cost, with arbitrary values in the channels that are not kept.
            at_gate: function that gets (site, its activation) wherever the mask of a tensor begins
                to count, or None.
        """
        tensors = dict(tensors)
        for step in self.program[start:stop]:
            if not isinstance(step, Gate):
                tensors.update(
                    zip(
                        step.outputs,
                        self._call(step, weights, mask, tensors, training, gates is None),
                    )
                )
                continue
            if gates is not None:
                tensors[step.tensor] = self._gated(
                    tensors[step.tensor], gates[step.tensor], step.tensor
                )
            if at_gate is not None:
                at_gate(step.tensor, tensors[step.tensor])
        return tensors

    def forward(
        self,
        weights: Weights,
        mask: tf.Tensor,
        images: Any,
        training: bool = True,
        gates: Mapping[int, tf.Tensor] | None = None,
        at_gate: Callable[[int, tf.Tensor], None] | None = None,
    ) -> Any:
        """Returns the masked network's output, logits [batch, classes], for images [batch, height,
        width, channels].

        For a network of several inputs and outputs, both have the structure that the model gives
        them.
        """
        tensors = self.execute(
            weights,
            mask,
            self.graph.tensors_of(images),
            training=training,
            gates=gates,
            at_gate=at_gate,
        )
        return self.graph.structured(tensors)

    def logits(self, images: Any, subnetwork: Subnetwork, training: bool = True) -> Any:
        """Returns the masked outputs, logits [batch, classes], of a sub-network; nothing is
        updated.

        Args:
            images: normalised images [batch, height, width, channels], float32, or other inputs
                that the model takes.
            subnetwork: the Subnetwork.
            training: True uses batch statistics in batch norms, False the moving ones.
        """
        with full_float32():
            return self._forward(
                self.weights(), tf.constant(self.mask(subnetwork)), images, training
            )

    def _gated(self, value, gate, tensor):
        """Returns a tensor times its gate, along the axis of its channels; a gate may differ from
        image to image.
        """
        axis, rank = self.layout.axes[tensor], len(value.shape)
        if axis != rank - 1 and len(gate.shape) == 1:
            gate = tf.reshape(gate, [-1 if i == axis else 1 for i in range(rank)])
        return value * tf.cast(gate, value.dtype)

    def _call(self, call, weights, mask, tensors, training, masks_rows):
        values = weights.get(call.key, [])
        if call is self.classifier:
            values = self.with_restored_norm(call, values, mask)
        if masks_rows and registry.is_mixing(call.layer) and self.layout.is_open(call.inputs[0]):
            values, tensors = self._without_rows(call, values, mask, tensors)
        if masks_rows and registry.within(call.layer):
            number = call.inputs[1]
            gate = tf.gather(mask, self.layout.index[number])
            tensors = {**tensors, number: self._gated(tensors[number], gate, number)}
        values = self._without_masked_states(call, values, mask)
        # Dropout and its like stay off: in the search only the batch norms work as in training.
        is_training = training and norms.uses_batch_statistics(call.layer)
        options = self.options.of(self.graph.is_last(call))
        kept = tf.gather(mask, self.layout.index[call.inputs[0]]) if call in self._asking else None
        return execute.run_call(call, values, tensors, is_training, options, kept)[0]

    def _without_rows(self, call, values, mask, tensors):
        """Returns (weights, tensors) with which a mixing call computes as if masked channels of
        what it reads were zero.

        It masks the rows of its kernel, or its input where that is smaller.
        """
        number = call.inputs[0]
        record = registry.record_of(call.layer)
        kernel = registry.kernel_of(call.layer)
        gate = tf.gather(mask, self.layout.index[number])
        if math.prod(kernel.shape) > math.prod(size or 1 for size in tensors[number].shape):
            return values, {**tensors, number: self._gated(tensors[number], gate, number)}
        axis = record.weights[record.kernel].axes.index(records.IN)
        size, rank = kernel.shape[axis], len(kernel.shape)
        # A layer that works in groups has the rows of each group; else a channel may have several
        # rows; see Weight.
        if size != gate.shape[0]:
            gate = gate[:size] if size < gate.shape[0] else tf.repeat(gate, size // gate.shape[0])
        rows = tf.reshape(gate, [-1 if i == axis else 1 for i in range(rank)])
        return [
            value * tf.cast(rows, value.dtype) if variable is kernel else value
            for variable, value in zip(layer_variables(call.layer), values)
        ], tensors

    def _without_masked_states(self, call, values, mask):
        """Returns weights with which a recurrent call does not read the masked channels again."""
        if call not in self._recurring:
            return values
        record = registry.record_of(call.layer)
        names = dict(zip(map(id, call.layer.weights), records.weight_names(call.layer, record)))
        rows = tf.gather(mask, self.layout.index[call.output])[:, None]
        return [
            value * tf.cast(rows, value.dtype)
            if names.get(id(variable)) == record.recurrent
            else value
            for variable, value in zip(layer_variables(call.layer), values)
        ]

    def _is_recurring(self, call):
        """Returns whether a call reads again channels that it writes and that may be pruned."""
        record = registry.record_of(call.layer)
        is_recurrent = record is not None and record.recurrent is not None
        return is_recurrent and self.layout.is_open(call.output)

    def _asks_mask(self, call):
        """Returns whether the effect of a call on a channel depends on which others are kept."""
        record = registry.record_of(call.layer)
        return record is not None and record.asks_mask and self.layout.is_open(call.inputs[0])

    def with_restored_norm(
        self, call: Call, values: Sequence[tf.Tensor], mask: tf.Tensor
    ) -> list[tf.Tensor]:
        """Returns the classifier's weights with its kernel rescaled to ‖W‖·W/‖W⊙m‖, the norm of all
        rows.

        Args:
            call: the call that writes the logits, of a mixing layer.
            values: list of its weights, as weights() gives.
            mask: float32 [num_channels + 1]; m is the mask of the kernel's rows.
        """
        kernel, record = registry.kernel_of(call.layer), registry.record_of(call.layer)
        axis = record.weights[record.kernel].axes.index(records.IN)
        rows = tf.gather(mask, self.layout.index[call.inputs[0]])
        return [
            value * cutting.norm_factor(value, rows, axis) if variable is kernel else value
            for variable, value in zip(layer_variables(call.layer), values)
        ]

    # ---------------------------------------------------------------- parts of the program

    def tensors_read_from(self, position: int) -> list[int]:
        """Returns the sorted numbers of the tensors that the program from this position on needs.

        They are the tensors written before it that it reads, and the network's outputs among them.
        """
        return self.tensors_read_from_each([position])[0]

    def tensors_read_from_each(self, positions: Sequence[int]) -> list[list[int]]:
        """Returns a list with tensors_read_from() of each of some ascending positions."""
        needed: set[int] = set(self.graph.outputs)
        found = []
        last = len(self.program)
        for position in reversed(positions):
            for step in reversed(self.program[position:last]):
                if isinstance(step, Gate):
                    needed.add(step.tensor)
                else:
                    needed.difference_update(step.outputs)
                    needed.update(step.inputs)
            last = position
            found.append(sorted(needed))
        return found[::-1]

    def first_use(self, group: int) -> int:
        """Returns the first position of the program at which the mask of this group matters.

        That is its first gate, or an earlier norm over its channels, or a recurrent layer whose
        units they are.
        """
        return self._first_uses[group]

    @functools.cached_property
    def _first_uses(self) -> list[int]:
        """First position of the program at which the mask of each group matters."""
        first: dict[int, int] = {}
        ends = np.array([*self.layout.offsets[1:], self.layout.num_channels])
        for position, step in enumerate(self.program):
            if isinstance(step, Gate):
                number = step.tensor
            elif step in self._asking:
                number = step.inputs[0]
            elif step in self._recurring:
                number = step.output
            else:
                continue
            channels = np.unique(self.layout.index[number])
            pruned = channels[channels < self.layout.num_channels]
            for group in np.unique(np.searchsorted(ends, pruned, side="right")).tolist():
                first.setdefault(group, position)
        without = [self.groups[i].name for i in range(len(self.groups)) if i not in first]
        if without:
            raise LookupError(f"channel group {without[0]!r} has no gate.")
        return [first[group] for group in range(len(self.groups))]
