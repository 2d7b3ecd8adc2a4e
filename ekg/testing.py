"""`check_prunable`: verifies that your own network or layer is pruned exactly."""

import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ekg.devices.compute import full_float32
from ekg.errors import EkgError, first_line
from ekg.graph import execute, norms
from ekg.graph.calls import Graph, layer_variables
from ekg.graph.complexity import model_complexity
from ekg.graph.flow import describe
from ekg.graph.neighbours import matching_calls
from ekg.graph.registry import states
from ekg.network.masked_check import computes_in_half
from ekg.network.subnetwork import Subnetwork
from ekg.network.supernet import Supernet

EXAMPLES = 12  # in a batch: batch norms need several
# Norms of one channel, or of a few positions, enlarge rounding errors: what differs by more than
# this is wrong, not rounded.
SMALLEST_TOLERANCE = 1e-2
NORM_ROUNDINGS = (
    256  # units in the last place of a batch norm's input that its mean may be wrong by
)
VANISHING = 0.3  # share of the groups that may vanish, and do so in a random sub-network
# Sums in the same order at any width: the comparison shows what a cut changes, not how a norm of
# another width rounds.
PLAIN = execute.ExecutionOptions(norms_alone=True, tile_norms=False)
HALF_TOLERANCE = 5e-2  # of networks that compute in float16 or bfloat16


def check_prunable(
    model: keras.Model,
    *,
    subnetworks: int = 2,
    seed: int = 0,
    inputs: Any = None,
    reload: bool = True,
    tolerance: float = 1e-5,
    batch_tolerance: float = 1e-4,
    **choices: Any,
) -> Supernet:
    """Checks that masked, cut, reloaded and counted networks agree; returns the Supernet.

    The smallest sub-network and some random ones are masked and cut out; the last is also saved and
    read again. Every layer of the cut network must compute what the masked one computes, with
    moving statistics and with statistics of the batch, and so must the whole cut network and the
    reloaded one; parameters and FLOPs must be as counted. The smallest sub-network is compared to
    SMALLEST_TOLERANCE, networks of half precision to HALF_TOLERANCE.

    Args:
        model: keras.Model.
        subnetworks: number of random sub-networks besides the smallest.
        seed: seed of the sub-networks and of random inputs.
        inputs: inputs of the model, a batch of a few examples; None makes random ones.
        reload: whether the last cut network is saved and read again, which needs serialisable
            layers.
        tolerance: greatest difference with moving statistics, as a share of the tensor's greatest
            value.
        batch_tolerance: the same with statistics of the batch.
        choices: arguments of Supernet.

    Raises:
        EkgError: the network cannot be pruned, a layer differs (the first one is named), or a count
            is wrong.
    """
    supernet = Supernet(model, **choices)
    if computes_in_half(supernet.graph):
        tolerance = max(tolerance, HALF_TOLERANCE)
        batch_tolerance = max(batch_tolerance, HALF_TOLERANCE)
    rng = np.random.default_rng(seed)
    inputs = random_inputs(supernet.graph, rng) if inputs is None else inputs
    tried = [
        (supernet.smallest(), (SMALLEST_TOLERANCE, SMALLEST_TOLERANCE)),
        *(
            (random_subnetwork(supernet, rng), (tolerance, batch_tolerance))
            for _ in range(subnetworks)
        ),
    ]
    whole = supernet.execute(
        supernet.weights(),
        tf.constant(supernet.mask(supernet.whole())),
        supernet.graph.tensors_of(inputs),
        training=False,
    )
    _compare(
        model(inputs, training=False),
        supernet.graph.structured(whole),
        tolerance,
        "the output of the whole network",
    )
    for subnetwork, tolerances in tried:
        cut = supernet.cut(subnetwork)
        _check_count(supernet, subnetwork, cut, choices.get("input_shape"))
        try:
            _check_cut(
                supernet, subnetwork, cut, inputs, tolerances, reload and subnetwork is tried[-1][0]
            )
        except EkgError:
            raise
        except Exception as error:  # anything that a layer raises whose weights do not fit together
            raise EkgError(
                f"the network cut to {subnetwork} does not run: {first_line(error)}"
            ) from error
    return supernet


def _check_cut(supernet, subnetwork, cut, inputs, tolerances, reload):
    """Compares a cut network with the masked one; see check_prunable()."""
    forward = execute.pure_forward(cut, PLAIN)
    for training, most in ((True, tolerances[1]), (False, tolerances[0])):
        masked = _check_layers(
            supernet.with_options(PLAIN), subnetwork, cut, inputs, training, most
        )
        with full_float32():
            value = forward(*execute.read_variables(cut), inputs, training)[0]
        _compare(masked, value, most, f"the output of the cut network with {_mode(training)}")
    _compare(
        masked,
        cut(inputs, training=False),
        tolerances[0],
        "the output of the cut network, called as it is,",
    )
    if reload:
        _compare(
            masked,
            _reloaded(cut)(inputs, training=False),
            tolerances[0],
            "the output of the network read again",
        )


def _mode(training):
    return "statistics of the batch" if training else "moving statistics"


def random_subnetwork(supernet: Supernet, rng: np.random.Generator) -> Subnetwork:
    """Returns a Subnetwork of random order and random widths; some groups vanish that may.

    Args:
        supernet: Supernet.
        rng: numpy.random.Generator.
    """
    order = supernet.whole().ranked([rng.normal(size=group.size) for group in supernet.groups])
    widths = {group.name: rng.uniform() for group in supernet.groups}
    vanishing = [group.name for group in supernet.groups if group.least == 0]
    widths |= {name: 0.0 for name in vanishing if rng.uniform() < VANISHING}
    return order.with_widths(widths)


def random_inputs(graph: Graph, rng: np.random.Generator) -> Any:
    """Returns a batch of random inputs in the structure that a model takes: normal numbers, or 0
    and 1 for integers.

    Args:
        graph: calls.Graph.
        rng: numpy.random.Generator.
    """
    values = []
    for number in graph.inputs:
        shape = (graph.shapes[number][0] or EXAMPLES, *graph.shapes[number][1:])
        dtype = graph.dtype(number)
        if dtype == "string":
            values.append(tf.constant(rng.choice(["one", "two", "one two"], shape)))
        elif keras.backend.is_float_dtype(dtype):
            values.append(rng.normal(size=shape).astype("float32"))
        else:
            values.append(rng.integers(0, 2, shape).astype(dtype))
    return graph.structured_inputs(values)


def _check_count(supernet, subnetwork, cut, input_shape):
    counted, recounted = supernet.complexity(subnetwork), model_complexity(cut, input_shape)
    if recounted != counted or cut.count_params() != counted.params:
        raise EkgError(
            f"sub-network {subnetwork} counts {counted}, and the cut network has {recounted} and "
            f"{cut.count_params()} parameters."
        )


def _check_layers(supernet, subnetwork, cut, inputs, training, tolerance):
    """Compares every layer of the cut network, on inputs of the masked one; returns the masked
    network's output.
    """
    mask, layout, graph = supernet.mask(subnetwork), supernet.layout, Graph(cut)
    with full_float32():
        masked = supernet.execute(
            supernet.weights(),
            tf.constant(mask),
            supernet.graph.tensors_of(inputs),
            training=training,
        )
        tensors = {}  # tensors of the cut network
        removed = supernet.removed(mask)
        gone = frozenset() if removed is None else removed.gone
        pairs = [
            (original, call)
            for original, call in matching_calls(supernet.graph, graph, removed)
            if call is not None
        ]
        numbers = [
            *zip(supernet.graph.inputs, graph.inputs),
            *(
                pair
                for original, call in pairs
                if original not in gone
                for pair in zip(original.outputs, call.outputs)
            ),
        ]
        for own, number in numbers:
            tensors[number] = masked[own]
            for axis, index in layout.dims(own):
                kept = np.flatnonzero(mask[index])
                tensors[number] = tf.gather(tensors[number], kept, axis=axis)
        for original, call in pairs:
            is_training = training and norms.uses_batch_statistics(call.layer)
            variables = [
                tf.convert_to_tensor(variable.value) for variable in layer_variables(call.layer)
            ]
            outputs, _ = execute.run_call(call, variables, tensors, is_training)
            if original in gone:  # what a nested model takes where it needs nothing but a batch
                tensors.update(zip(call.outputs, outputs))
                continue
            rounding = (
                _rounding_of(call.layer, tensors[call.inputs[0]], is_training)
                if call.inputs
                else 0.0
            )
            for number, value in zip(call.outputs, outputs):
                _compare(
                    tensors[number],
                    value,
                    tolerance,
                    f"layer {describe(original)} with {_mode(training)}",
                    rounding,
                )
    return supernet.graph.structured(masked)


def _rounding_of(layer, value, training):
    """Returns the rounding error of a norm that takes a mean away: NORM_ROUNDINGS ulp of its input.

    A constant input has no variance but epsilon, so the rounding error of its mean is enlarged.
    """
    centred = states(layer, "centred")
    found = centred and centred(layer, np.asarray(tf.cast(value, tf.float32)), training)
    if not found:
        return 0.0
    array, axes = found
    largest = np.abs(array).max(axes, initial=0)
    errors = np.finfo(np.float32).eps * largest / np.sqrt(array.var(axes) + layer.epsilon)
    gamma = 1 if layer.gamma is None else float(np.abs(layer.gamma.numpy()).max(initial=0))
    return NORM_ROUNDINGS * float(errors.max(initial=0)) * gamma


def _compare(masked, value, tolerance, what, rounding=0.0):
    for first, second in zip(keras.tree.flatten(masked), keras.tree.flatten(value)):
        first, second = (np.asarray(tf.cast(tensor, tf.float32)) for tensor in (first, second))
        if first.shape != second.shape:
            raise EkgError(
                f"{what} has shape {second.shape} where the masked one has {first.shape}."
            )
        # A padding may be infinite, and its difference from itself is no number.
        first, second = (
            np.where(np.isinf(first) & (first == second), 0, x) for x in (first, second)
        )
        largest = np.abs(first).max(initial=np.finfo(np.float32).tiny)
        difference = max(np.abs(first - second).max(initial=0) - rounding, 0.0) / largest
        if not difference <= tolerance:
            raise EkgError(
                f"{what} differs from the masked one by {difference:.2g} of the largest value."
            )


def _reloaded(model):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        try:
            model.save(path)
            return keras.models.load_model(path, compile=False)
        except Exception as error:  # anything that Keras, or a user's layer, raises
            raise EkgError(
                f"the cut network cannot be saved and read again: {first_line(error)} Register "
                "what it needs with keras.saving, or leave this out by `reload`=False."
            ) from error
