"""Masks, as those of padded tokens, that Keras hands from layer to layer beside the graph.

Keras hangs a mask on the tensor that a layer writes, and hands it to the next layer that takes one. In most graphs it is an
argument of that layer's call, too; where it is not, the graph does not show what is computed.
"""

import inspect

import keras


class Masks:
    """Where masks are in a graph.

    Attributes:
        tensors: numbers of the tensors that carry one.
        readers: keys of the layers that read such a tensor.
        hidden: keys of those among them that take a mask which their call does not name.
    """

    def __init__(self):
        self.tensors, self.readers, self.hidden = set(), set(), set()

    def note(self, call, symbols):
        """Follows the masks through a Call whose outputs these KerasTensors stand for."""
        reads = any(number in self.tensors for number in call.inputs)
        hands_on = reads and getattr(call.layer, "supports_masking", False)
        self.tensors.update(number for number, symbol in zip(call.outputs, symbols)
                            if hands_on or getattr(symbol, "_keras_mask", None) is not None)
        if reads:
            self.readers.add(call.key)
            if _takes_another(call):
                self.hidden.add(call.key)

    def note_same(self, number, source):
        """Says that a tensor carries a mask if another one does."""
        if source in self.tensors:
            self.tensors.add(number)


def _takes_another(call):
    """Returns whether a layer takes a mask that its call does not name."""
    if not isinstance(call.layer, keras.layers.Layer):
        return False
    names = inspect.signature(call.layer.call).parameters
    taken = [name for name in names if name == "mask" or (name.endswith("_mask") and name.removesuffix("_mask") in names)]
    return any(call.kwargs.get(name) is None for name in taken)
