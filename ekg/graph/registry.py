"""The records of all known layer kinds: Keras' own, and those that users register."""

from collections.abc import Callable

import keras

from ekg.errors import EkgError
from ekg.graph import (
    attention,
    constants,
    layers,
    operations,
    own_weights,
    records,
    recurrent,
    wrappers,
)
from ekg.graph.records import LayerRecord, weight_names


def default():
    """Returns a new {kind, or the published name of one: LayerRecord, or a function from a layer to
    one} of Keras' own layers and operations.
    """
    return {
        **layers.LAYERS,
        **operations.OPERATIONS,
        **recurrent.RECURRENT,
        **attention.PARTS,
        **own_weights.RECORDS,
        constants.Constant: constants.CONSTANT,
        keras.layers.TimeDistributed: lambda layer: wrappers.over_steps(record_of(layer.layer)),
    }


RECORDS = default()  # register_layer() adds to it


def register_layer(kind: type[keras.Layer], record: LayerRecord | Callable) -> None:
    """Registers the record of a layer class of your own, in place of an earlier one.

    Args:
        kind: the layer class itself; subclasses need records of their own.
        record: LayerRecord, or a function from a layer of that kind to its LayerRecord or None.

    Raises:
        EkgError: kind is no Keras layer class, or record is neither a LayerRecord nor a function.
    """
    if not (isinstance(kind, type) and issubclass(kind, keras.layers.Layer)):
        raise EkgError(f"`kind` must be a subclass of keras.layers.Layer; received {kind!r}.")
    if not (isinstance(record, LayerRecord) or callable(record)):
        raise EkgError(
            "`record` must be an ekg.LayerRecord, or a function from a layer to one; received "
            f"{record!r}."
        )
    RECORDS[kind] = record


def described(layer):
    """Returns the LayerRecord of a layer's kind, whether or not it knows all weights of the layer;
    None if the kind has none.
    """
    record = RECORDS.get(type(layer)) or RECORDS.get(published_name(type(layer)))
    return record(layer) if callable(record) else record


def weights_of(layer):
    """Returns {id of a variable of a layer: its Weight in the record}, as far as it is known."""
    record = described(layer)
    return {} if record is None else records.weights_of(layer, record)


def record_of(layer):
    """Returns the LayerRecord of a layer, or None if its kind has none or the layer has weights
    that it does not know.
    """
    record = described(layer)
    if record is None or record.flops is None and None in weight_names(layer, record):
        return None
    return record


def has_record(layer):
    """Returns whether the kind of a layer is described, if only as one that closes what it
    reads.
    """
    return type(layer) in RECORDS or published_name(type(layer)) in RECORDS


def published_name(kind):
    """Returns the name of a kind: keras.ops.Add for what stands in a graph where keras.ops.add was
    called.
    """
    module = "keras.ops" if kind.__module__.startswith("keras.src.ops.") else kind.__module__
    return f"{module}.{kind.__name__}"


def parts_of(layer, kwargs):
    """Returns the Parts of a layer called with these arguments by name, or None if it has none."""
    record = described(layer)
    return None if record is None or record.parts is None else record.parts(layer, kwargs)


def kernel_of(layer):
    """Returns the variable that mixes channels, of a mixing layer."""
    record = record_of(layer)
    return _variable(layer, record, record.kernel)


def fitted_of(layer):
    """Returns (variable, Weight) of the kernel of a layer, whose entries make its filters."""
    record = record_of(layer)
    name = record.filter_kernel
    return _variable(layer, record, name), record.weights[name]


def _variable(layer, record, name):
    names = weight_names(layer, record)
    return next(variable for variable, own in zip(layer.weights, names) if own == name)


def is_mixing(layer):
    """Returns whether each output channel of the layer depends on all input channels."""
    return states(layer, "mixes")


def within(layer):
    """Returns records.IN or OUT if these channels of a layer have inner ones with a group of their
    own, as heads do; else a false value.
    """
    return states(layer, "within")


def keeps_zeros(layer):
    """Returns whether a gate has the same effect before and after the layer."""
    return states(layer, "keeps_zeros")


def states(layer, name):
    """Returns the entry of this name of a layer's record, False or None where it has no record."""
    record = record_of(layer)
    return False if record is None else getattr(record, name)


def takes_norm(layer):
    """Returns whether a batch norm that follows the layer can be computed by the layer itself: no
    activation of its own stands between, and its kernel is neither adapted nor quantised.
    """
    return (
        states(layer, "fuses_with_norm")
        and getattr(layer, "activation", None) in (None, keras.activations.linear)
        and getattr(layer, "lora_rank", None) is None
        and getattr(layer, "quantization_mode", None) is None
    )
