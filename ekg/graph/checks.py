"""What cannot be pruned rightly is refused before any work begins."""

import keras

from ekg.errors import EkgError
from ekg.graph import norms


class NothingToPrune(EkgError):
    """No channel of a network can go."""


_FLOATS = ("float32", "mixed_float16", "mixed_bfloat16")
_MOST_REASONS = 8  # that a message lists


def check_layers(graph):
    """Raises EkgError for a layer whose weights are not plain float32 ones.

    Args:
        graph: calls.Graph.
    """
    for key, layer in graph.layers.items():
        if not isinstance(layer, keras.layers.Layer) or isinstance(layer, keras.Model):
            continue
        if getattr(layer, "lora_enabled", False):
            raise EkgError(f"layer {key!r} has LoRA weights; merge them into its kernel before the network is pruned.")
        if getattr(layer, "quantization_mode", None) is not None:
            raise EkgError(f"layer {key!r} is quantised ({layer.quantization_mode}); prune the network before that.")
        if layer.dtype_policy.name not in _FLOATS and any(
                keras.backend.is_float_dtype(variable.dtype) for variable in layer.variables):
            raise EkgError(f"layer {key!r} has the dtype policy {layer.dtype_policy.name!r}; networks of the policies "
                           f"{', '.join(_FLOATS)} can be pruned.")
    _check_norms(graph)


def _check_norms(graph):
    """Raises EkgError for a batch norm whose moving statistics cannot be estimated for a pruned network."""
    for key, layer in graph.layers.items():
        if not norms.uses_batch_statistics(layer) or norms.supports(layer) or not layer.trainable:
            continue
        calls = sum(call.layer is layer for call in graph.calls)
        if layer.momentum == 1 or calls > 1:
            why = "never move" if layer.momentum == 1 else "belong to several calls"
            raise EkgError(f"the moving statistics of layer {key!r} ({type(layer).__name__}) {why}, so they cannot be "
                           "estimated for a pruned network; freeze it.")


def describe_closed(layout):
    """Returns in one line why no channel can go, layer by layer."""
    if not layout.closed:
        return "it has no convolution or dense layer whose outputs another one reads."
    reasons = [f"{key}: {reason}" for key, reason in layout.closed.items()]
    more = len(reasons) - _MOST_REASONS
    return "; ".join(reasons[:_MOST_REASONS]) + (f"; and {more} more." if more > 0 else ".")


def try_cut(supernet):
    """Cuts the smallest sub-network once, so that what cannot be cut is known before the work begins.

    Raises:
        EkgError: a layer cannot be copied, or does not take what it is given in the cut network.
    """
    try:
        cut = supernet.cut(supernet.smallest())
    except EkgError:
        raise
    except Exception as error:  # whatever a layer of the user's own raises
        raise EkgError(f"`model` {supernet.model.name!r} cannot be cut: {_first_line(error)}") from error
    params = supernet.complexity(supernet.smallest()).params
    if cut.count_params() != params:
        raise EkgError(f"`model` {supernet.model.name!r}: its smallest sub-network has {cut.count_params()} parameters, and "
                       f"{params} were counted; a layer's record does not fit it.")


def _first_line(error):
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
