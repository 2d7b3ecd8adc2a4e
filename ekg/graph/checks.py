"""Refuses, before any work begins, networks that cannot be pruned correctly."""

import keras

from ekg.errors import EkgError, first_line
from ekg.graph import cutting, norms
from ekg.graph.calls import layer_variables
from ekg.graph.limits import FROZEN


class NothingToPrune(EkgError):
    """No channel of a network can be pruned."""


_FLOATS = ("float32", "mixed_float16", "mixed_bfloat16")
_MOST_REASONS = 8  # listed in a message


def check_layers(graph):
    """Raises EkgError for a layer whose weights are not plain float32 ones.

    Args:
        graph: calls.Graph.
    """
    _check_sharing(graph)
    for key, layer in graph.layers.items():
        if not isinstance(layer, keras.layers.Layer) or key in graph.looked_into:
            continue
        if isinstance(layer, keras.Model):
            reason = graph.unopened.get(key, "`open_layers` leaves it closed")
            raise EkgError(
                f"model {key!r} ({type(layer).__name__}) has a call() of its own, and it cannot "
                f"be taken apart into its layers: {reason}; make a functional model of them."
            )
        if getattr(layer, "stateful", False) is True:
            raise EkgError(
                f"layer {key!r} is stateful, so an output depends on the previous batch; make it "
                "with stateful=False."
            )
        if getattr(layer, "lora_enabled", False):
            raise EkgError(
                f"layer {key!r} has LoRA weights; merge them into its kernel before the network "
                "is pruned."
            )
        if getattr(layer, "quantization_mode", None) is not None:
            raise EkgError(
                f"layer {key!r} is quantised ({layer.quantization_mode}); prune the network "
                "before that."
            )
        if layer.dtype_policy.name not in _FLOATS and any(
            keras.backend.is_float_dtype(variable.dtype) for variable in layer.variables
        ):
            raise EkgError(
                f"layer {key!r} has the dtype policy {layer.dtype_policy.name!r}; only "
                f"{', '.join(_FLOATS)} can be pruned."
            )
    _check_norms(graph)
    for key in sorted(graph.masks.hidden):
        if not norms.uses_batch_statistics(graph.layers[key]):  # a frozen norm needs no mask
            raise EkgError(
                f"layer {key!r} ({type(graph.layers[key]).__name__}) receives an implicit Keras "
                "mask, which is not part of the graph; pass mask=... explicitly, if the layer "
                "reads only one tensor, or disable masking (mask_zero=False)."
            )


def _check_sharing(graph):
    """Raises EkgError for weights that a cut would untie: shared by two layers, or held by a model
    itself.
    """
    owners = {}
    for key, layer in graph.layers.items():
        for variable in layer_variables(layer) if key not in graph.looked_into else ():
            owner = owners.setdefault(id(variable), key)
            if owner != key:
                raise EkgError(
                    f"layers {owner!r} and {key!r} share the weight {variable.name!r}, which a "
                    "cut would untie; call one layer twice, or give each weights of its own."
                )
    for model in graph.models:
        own = [*model._trainable_variables, *model._non_trainable_variables]
        if own:
            raise EkgError(
                f"`model` {model.name!r} ({type(model).__name__}) has a weight of its own, "
                f"{own[0].name!r}, besides its layers' weights; hold it in a layer of the graph."
            )


def _check_norms(graph):
    """Raises EkgError for a batch norm that cannot use the statistics of a batch, or whose
    statistics cannot be estimated for a pruned network.
    """
    for key, layer in graph.layers.items():
        if isinstance(layer, keras.layers.Layer) and key not in graph.looked_into:
            inside = [
                inner
                for inner in layer._flatten_layers(include_self=False)
                if norms.uses_batch_statistics(inner) and inner.trainable
            ]
            if inside:
                raise EkgError(
                    f"layer {key!r} ({type(layer).__name__}) holds batch norm {inside[0].name!r}, "
                    f"whose statistics are out of reach{graph.why_closed(key)}; freeze it, or "
                    "make a functional model of the layer."
                )
        if norms.uses_batch_statistics(layer) and layer.trainable and key in graph.masks.readers:
            raise EkgError(
                f"batch norm {key!r} reads a tensor with a mask, which its statistics would have "
                "to leave out; freeze it."
            )
        if not norms.uses_batch_statistics(layer) or norms.supports(layer) or not layer.trainable:
            continue
        calls = sum(call.layer is layer for call in graph.calls)
        if layer.momentum == 1 or calls > 1:
            why = "never move" if layer.momentum == 1 else "belong to several calls"
            raise EkgError(
                f"the moving statistics of layer {key!r} ({type(layer).__name__}) {why}, so they "
                "cannot be estimated for a pruned network; freeze it."
            )


def describe_closed(layout):
    """Returns in one line, layer by layer, why no channel can be pruned."""
    if layout.groups and any(group.size > 1 for group in layout.groups):
        return "`min_channels` and `multiple_of` keep all channels of every group."
    if layout.groups:
        return "every channel group has one channel left."
    if not layout.closed:
        return "it has no convolution or dense layer whose outputs another one reads."
    reasons = [f"{key}: {reason}" for key, reason in layout.closed.items()]
    more = len(reasons) - _MOST_REASONS
    advice = (
        " `prune_frozen`=True lets frozen layers lose channels."
        if any(reason.endswith(FROZEN) for reason in layout.closed.values())
        else ""
    )
    return (
        "; ".join(reasons[:_MOST_REASONS]) + (f"; and {more} more." if more > 0 else ".") + advice
    )


def middling(supernet):
    """Returns a Subnetwork of middling, unequal widths."""
    tried = supernet.whole()
    for i, group in enumerate(supernet.groups):
        tried = tried.with_kept(i, group.counts[max(len(group.counts) // 2 - 1 - i % 3, 0)])
    return tried


def try_cut(supernet):
    """Cuts one sub-network of middling, unequal widths, so that a failure to cut shows before the
    work begins.

    Raises:
        EkgError: a layer cannot be copied, or does not accept its inputs in the cut network.
    """
    _try(supernet, middling(supernet))
    if any(group.least == 0 for group in supernet.groups):
        _try(supernet, supernet.smallest())


def _try(supernet, tried):
    """Cuts a Subnetwork; see try_cut()."""
    try:
        cut = cutting.cut(supernet.graph, supernet.layout, supernet.mask(tried) > 0, is_trial=True)
    except EkgError:
        raise
    except Exception as error:  # anything that a user's layer raises
        raise EkgError(
            f"`model` {supernet.model.name!r} cannot be cut: {first_line(error)}"
        ) from error
    params = supernet.complexity(tried).params
    if cut.count_params() != params:
        raise EkgError(
            f"`model` {supernet.model.name!r}: a sub-network of it has {cut.count_params()} "
            f"parameters, and {params} were counted; the record of a layer is wrong."
        )
