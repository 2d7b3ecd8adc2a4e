"""References to the tensors of a graph among the arguments of its calls."""

import dataclasses

import keras


@dataclasses.dataclass(frozen=True)
class Ref:
    """Stands for tensor `number` among the arguments of a call."""

    number: int


def refs_in(structure):
    """Returns a list of the numbers of the tensors that a structure refers to, in its order."""
    return [leaf.number for leaf in keras.tree.flatten(structure) if isinstance(leaf, Ref)]


def fill_in(structure, tensors):
    """Returns a structure with every Ref replaced by the tensor of its number."""
    return keras.tree.map_structure(
        lambda leaf: tensors[leaf.number] if isinstance(leaf, Ref) else leaf, structure
    )
