"""The steps of a graph, and the references to tensors among their arguments."""

import dataclasses
import functools
import inspect

import keras

from ekg.graph.records import Parts


@dataclasses.dataclass(frozen=True)
class Ref:
    """A reference to tensor `number` among the arguments of a call."""

    number: int


def refs_in(structure):
    """Returns a list of the numbers of the tensors that a structure refers to, in its order."""
    return [leaf.number for leaf in keras.tree.flatten(structure) if isinstance(leaf, Ref)]


def fill_in(structure, tensors):
    """Returns a structure with every Ref replaced by the tensor of its number."""
    return keras.tree.map_structure(
        lambda leaf: tensors[leaf.number] if isinstance(leaf, Ref) else leaf, structure
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer, or of a function of keras.ops, in the graph.

    Attributes:
        layer: the Keras layer or other operation that is called.
        key: name of the layer in the whole model: "mobilenet/conv1" for layer conv1 of the nested
            model mobilenet.
        args: positional arguments, with a Ref for every tensor.
        kwargs: arguments by name, likewise.
        outputs: numbers of the tensors that it writes.
    """

    layer: keras.Operation
    key: str
    args: tuple
    kwargs: dict
    outputs: tuple[int, ...]

    @functools.cached_property
    def inputs(self):
        """Numbers of the tensors that it reads, in the order of its arguments."""
        return tuple(refs_in((self.args, self.kwargs)))

    @property
    def output(self):
        """Number of the tensor that it writes, the first if there are several."""
        return self.outputs[0]

    def arguments(self, tensors):
        """Returns (args, kwargs) of the call with tensor number t replaced by tensors[t]."""
        return fill_in((self.args, self.kwargs), tensors)


@dataclasses.dataclass(frozen=True, eq=False)
class ModelCall:
    """One call of a nested model.

    Attributes:
        model: the nested keras.Model.
        key: its name in the whole model.
        args: positional arguments, with a Ref for every tensor.
        kwargs: arguments by name.
        entries: numbers of the tensors inside that are its inputs.
        outputs: numbers of the tensors that it returns.
        steps: the Calls and ModelCalls inside, in the order in which they run.
    """

    model: keras.Model
    key: str
    args: tuple
    kwargs: dict
    entries: tuple[int, ...]
    outputs: tuple[int, ...]
    steps: list


@dataclasses.dataclass(frozen=True, eq=False)
class PartsCall:
    """One call of a layer that stands in the graph as its parts.

    Attributes:
        layer: the layer.
        key: its name in the whole model.
        args: positional arguments, with a Ref for every tensor.
        kwargs: arguments by name.
        outputs: numbers of the tensors that it returns.
        parts: records.Parts of the layer.
        steps: the Calls of its parts, in the order in which they run.
    """

    layer: keras.layers.Layer
    key: str
    args: tuple
    kwargs: dict
    outputs: tuple[int, ...]
    parts: Parts
    steps: list


def numbers_by_name(call):
    """Returns {name of an argument: list of the numbers of the tensors in it} of a layer's call."""
    given = inspect.signature(call.layer.call).bind(*call.args, **call.kwargs).arguments
    numbers = {name: refs_in(value) for name, value in given.items()}
    return {name: own for name, own in numbers.items() if own}


class Entry(keras.Operation):
    """What a nested model does to an input: nothing but to give it the number format that it asks
    for.
    """

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def call(self, x):
        floats = [
            keras.backend.is_float_dtype(dtype)
            for dtype in (self.dtype, keras.backend.standardize_dtype(x.dtype))
        ]
        return x if all(floats) else keras.ops.cast(x, self.dtype)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, self.dtype)
