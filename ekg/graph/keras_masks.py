"""Padding masks that Keras passes from layer to layer beside the graph.

Keras attaches a mask to the tensor that a layer writes, and passes it to the next layer that takes
one. In most graphs it is also an argument of that layer's call; where it is not, the graph does not
show what is computed.
"""

import inspect

import keras

from ekg.graph.steps import Ref, fill_in, refs_in

# Types that take the mask of their query from the tensor, even if their call names another.
_READ_FROM_TENSOR = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)


class Masks:
    """The tensors of a graph that carry a padding mask.

    Attributes:
        readers: keys of the layers that read a tensor with a mask.
        hidden: keys of the readers that take a mask which their call does not name.
    """

    def __init__(self):
        self.readers, self.hidden = set(), set()
        self._carriers = set()  # numbers of the tensors with a mask

    def note(self, call, node, symbol_of):
        """Follows the masks through a Call.

        Args:
            call: Call.
            node: its node in Keras' graph.
            symbol_of: function from the number of a tensor to a KerasTensor like it.
        """
        read = [number for number in call.inputs if number in self._carriers]
        marked = [_has_mask(symbol) for symbol in node.outputs]
        # In a nested model Keras has not seen the masks that come from outside.
        if len(read) > sum(map(_has_mask, node.arguments.keras_tensors)):
            marked = [
                own or handed for own, handed in zip(marked, self._handed_on(call, symbol_of))
            ]
        self._carriers.update(number for number, has_mask in zip(call.outputs, marked) if has_mask)
        if read:
            self.readers.add(call.key)
            if self._takes_another(call):
                self.hidden.add(call.key)

    def taken_ones(self, layer, arguments):
        """Returns a call's arguments without a mask that Keras does not take from there.

        A MultiHeadAttention takes the mask of its query from the tensor alone.

        Args:
            layer: layer that is called.
            arguments: {name: argument of the call, with a Ref for every tensor}.
        """
        takes = not isinstance(layer, keras.layers.MultiHeadAttention) or self.is_on(
            refs_in(arguments["query"])
        )
        return {
            name: value
            for name, value in arguments.items()
            if value is not None and (takes or name != "query_mask")
        }

    def is_on(self, numbers):
        """Returns whether one of these tensors carries a mask."""
        return not self._carriers.isdisjoint(numbers)

    def note_same(self, number, source):
        """Marks a tensor as carrying a mask if another one does."""
        if source in self._carriers:
            self._carriers.add(number)

    def _handed_on(self, call, symbol_of):
        """Returns for each output whether the layer attaches a mask to it, given the masks of its
        first argument.
        """
        if not getattr(call.layer, "supports_masking", False):
            return [False] * len(call.outputs)
        first = call.args[0] if call.args else ()
        symbols = {number: symbol_of(number) for number in refs_in(first)}

        def mask_of(leaf):
            carries = isinstance(leaf, Ref) and leaf.number in self._carriers
            return keras.KerasTensor(symbols[leaf.number].shape[:2], "bool") if carries else None

        given = keras.tree.map_structure(mask_of, first)
        try:
            masks = keras.tree.flatten(call.layer.compute_mask(fill_in(first, symbols), given))
        except Exception:  # anything that a user's layer raises: then there may be a mask
            return [True] * len(call.outputs)
        return (
            [mask is not None for mask in masks]
            if len(masks) == len(call.outputs)
            else [any(mask is not None for mask in masks)] * len(call.outputs)
        )

    def _takes_another(self, call):
        """Returns whether Keras passes a layer a mask that its call does not name; see
        keras.Layer.__call__.
        """
        if not isinstance(call.layer, keras.layers.Layer):
            return False
        signature = inspect.signature(call.layer.call)
        given = signature.bind_partial(*call.args, **call.kwargs).arguments
        numbers = {name: refs_in(value) for name, value in given.items()}
        numbers = {name: own for name, own in numbers.items() if own}
        for name, own in numbers.items():
            taken = "mask" if len(numbers) == 1 else f"{name}_mask"
            if self._carriers.isdisjoint(own) or taken not in signature.parameters:
                continue
            if given.get(taken) is None or (
                name == "query" and isinstance(call.layer, _READ_FROM_TENSOR)
            ):
                return True
        return False


def _has_mask(symbol):
    return getattr(symbol, "_keras_mask", None) is not None
