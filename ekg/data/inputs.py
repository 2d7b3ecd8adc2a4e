"""What a network takes for an example: one array, or a structure of arrays.

Splits, batches and compiled steps hand inputs on in the structure that the network takes; of a
network of one input that is the array itself. Whoever computes with them maps over the arrays. This
file alone takes inputs apart, as users may give them in several ways, and puts them together.
"""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ekg.errors import EkgError

IMAGE_RANKS = (4, 5)  # ranks of a batch of images and of a batch of volumes


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of a network.

    Attributes:
        shapes: tuple of the shape of each input for one example, with None for open sizes.
        names: tuple of their names.
        dtypes: tuple of their number formats; "string" for text.
        structure: structure that the network takes, whose leaves are not read.
    """

    shapes: tuple
    names: tuple = ("images",)
    dtypes: tuple = ("float32",)
    structure: Any = 0

    @classmethod
    def of(cls, graph):
        """Returns the Inputs of a graph.calls.Graph, with the sizes that it knows."""
        numbers = graph.inputs
        return cls(
            tuple(graph.input_shapes),
            tuple(graph.input_names),
            tuple(str(graph.dtype(number)) for number in numbers),
            graph.structured_inputs(list(numbers)) if len(numbers) > 1 else 0,
        )

    @property
    def are_several(self):
        return len(self.names) > 1

    @property
    def shape(self):
        """Shape of one example as calls.Graph takes it: of several inputs a list of shapes."""
        return one_or_list(self.shapes)

    def subjects(self, what):
        """Returns a list of what messages call each input, given the argument that holds them."""
        if not self.are_several:
            return [f"`{what}`"]
        return [f"`{what}`, input {name!r}," for name in self.names]

    def packed(self, values):
        """Returns a list of one value per input in the structure that the network takes."""
        return keras.tree.pack_sequence_as(self.structure, list(values))

    def listed(self, given, what):
        """Returns a list of one value per input of inputs that a user gave.

        They are a dict by name, or in the structure that the network takes, or a tuple or list in
        the order of the names; the value itself for one input.

        Raises:
            EkgError: inputs are missing, have other names, or are too many.
        """
        if not self.are_several:
            return [self._single(given, what)]
        laid_out = _laid_out(given, self.structure)
        if laid_out is not None:
            return laid_out
        asked = f"the network takes the inputs {list(self.names)}"
        if isinstance(given, dict):
            missing = [name for name in self.names if name not in given]
            unknown = [name for name in given if name not in self.names]
            if missing or unknown:
                raise EkgError(
                    f"`{what}` has the inputs {sorted(given, key=str)}, and {asked}; give a dict "
                    "of exactly these."
                )
            return [given[name] for name in self.names]
        if not isinstance(given, (tuple, list)):
            raise EkgError(
                f"`{what}` has one array of inputs, and {asked}; give a dict of these, or a tuple "
                "in their order."
            )
        if len(given) != len(self.names):
            raise EkgError(
                f"`{what}` has {len(given)} inputs, and {asked}; give a dict of these, or a tuple "
                "in their order."
            )
        return list(given)

    def _single(self, given, what):
        """Returns the value of the only input, which may stand alone in a dict, tuple or list."""
        entries = [given]
        if isinstance(given, dict):
            entries = list(given.values())
        elif isinstance(given, (tuple, list)) and given and self._is_batch(given[0]):
            entries = given
        if len(entries) != 1:
            names = f" {sorted(given, key=str)}" if isinstance(given, dict) else ""
            raise EkgError(
                f"`{what}` has {len(entries)} inputs{names} per example, and the network takes "
                "one; give one array."
            )
        return entries[0]

    def _is_batch(self, value):
        return len(getattr(value, "shape", None) or ()) == len(self.shapes[0]) + 1

    def cast(self, values):
        """Returns inputs as tensors in the number formats of the network."""
        return keras.tree.map_structure(tf.cast, values, self.packed(self.dtypes))


def _laid_out(given, structure):
    """Returns a list of what a user gave for the leaves of a structure, or None where it does not
    have this structure; tuples and lists count as the same.
    """
    if isinstance(structure, dict):
        keys = sorted(structure)
        if not isinstance(given, dict) or sorted(given, key=str) != keys:
            return None
        pairs = [(given[key], structure[key]) for key in keys]
    elif isinstance(structure, (tuple, list)):
        if not isinstance(given, (tuple, list)) or len(given) != len(structure):
            return None
        pairs = list(zip(given, structure))
    else:
        return [given]
    parts = [_laid_out(*pair) for pair in pairs]
    return (
        None if any(part is None for part in parts) else [leaf for part in parts for leaf in part]
    )


# ---------------------------------------------------------------- arrays of inputs


def count_of(inputs):
    """Returns the number of examples in a batch of inputs."""
    return len(keras.tree.flatten(inputs)[0])


def rows_of(inputs, indices):
    """Returns the examples with these indices."""
    return keras.tree.map_structure(lambda array: array[indices], inputs)


def shapes_of(inputs):
    """Returns a tuple of the shape of each input for one example."""
    return tuple(tuple(array.shape[1:]) for array in keras.tree.flatten(inputs))


def one_or_list(shapes):
    """Returns the shape of the only input, or a list of the shapes of several."""
    return list(shapes) if len(shapes) > 1 else shapes[0]


def num_bytes(inputs):
    """Returns the bytes that inputs take in memory."""
    return sum(array.nbytes + _text_bytes(array) for array in keras.tree.flatten(inputs))


def content_of(array):
    """Returns all numbers or texts of an array as bytes, to be hashed."""
    if array.dtype.kind == "O":
        return b"".join(b"%d:%s" % (len(text), text) for text in array.flat)
    return np.ascontiguousarray(array).tobytes()


def _text_bytes(array):
    return sum(map(len, array.flat)) if array.dtype.kind == "O" else 0


def is_text(array):
    """Returns whether an array holds texts."""
    if array.dtype.kind in "SU":
        return True
    return array.dtype.kind == "O" and array.size and isinstance(array.flat[0], (str, bytes))


def as_text(array):
    """Returns an array of texts as an array of bytes objects, as TensorFlow reads them."""
    return np.asarray(tf.constant(array, tf.string).numpy(), object)


def as_dtype(array, dtype):
    """Returns an array in the number format of an input, which may be text."""
    return as_text(array) if dtype == "string" else array.astype(dtype)


def described(shape):
    """Returns the shape of an example, or a list of one per input, as text: 32x32x3, or 32x32x3 and
    5.
    """
    shapes = shape if isinstance(shape, list) else [shape]
    return " and ".join("x".join(map(str, sizes)) or "1" for sizes in shapes)
