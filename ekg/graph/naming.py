"""Names of weights that do not depend on other models of the process."""

import re

import keras

from ekg.errors import EkgError
from ekg.graph.calls import Graph, looked_into


def named_weights(model):
    """Returns [(layer, name of the weight in the whole model, variable)] of a functional model.

    Names join nested models and layers by "/": "mobilenet/conv1/kernel"; a layer inside a layer
    goes by the attribute that holds it, as in "attention/query_dense/kernel". So they do not depend
    on other models of the process.

    Raises:
        EkgError: two weights have one name.
    """
    found, names = [], set()

    def visit(layer, key):
        own = {
            id(variable)
            for variable in (*layer._trainable_variables, *layer._non_trainable_variables)
        }
        for variable in layer.weights:
            if id(variable) in own and id(variable) not in seen:
                seen.add(id(variable))
                found.append((layer, f"{key}/{_weight_name(layer, variable)}", variable))
        for inner in layer._flatten_layers(include_self=False, recursive=False):
            visit(inner, f"{key}/{_attribute_of(layer, inner) or inner.name}")

    seen = set()
    for key, layer in Graph(model).layers.items():
        if isinstance(layer, keras.layers.Layer) and looked_into(layer) is None:
            visit(layer, key)
    for layer, name, _ in found:
        if name in names:
            raise EkgError(
                f"two weights of `model` {model.name!r} have the name {name!r}; rename layer "
                f"{layer.name!r}."
            )
        names.add(name)
    return found


def _weight_name(layer, variable):
    """Returns a variable's own name, or the attribute that holds it where Keras has numbered it
    itself.
    """
    if not re.fullmatch(r"variable(_\d+)?", variable.name):
        return variable.name
    return _attribute_of(layer, variable) or variable.name


def _attribute_of(layer, held):
    """Returns the name of the attribute by which a layer holds a variable or layer, or None."""
    for name, value in vars(layer).items():
        if name in ("_trainable_variables", "_non_trainable_variables", "_layers"):
            continue
        if value is held:
            return name.lstrip("_")
        if isinstance(value, (list, tuple)) and any(item is held for item in value):
            return f"{name.lstrip('_')}_{[item is held for item in value].index(True)}"
    return None
