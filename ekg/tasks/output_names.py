"""Names of the outputs of a network."""

import keras

from ekg.errors import EkgError
from ekg.graph.calls import functional


class Names:
    """The names of a network's outputs, in the order in which Keras flattens the outputs.

    The name is the key if the network returns a dict, and otherwise the name of the layer that
    computes the output. Where several outputs have the same name, their numbers are appended.

    Attributes:
        all: list of the names.
    """

    def __init__(self, model):
        inside = functional(model)
        paths = [path for path, _ in keras.tree.flatten_with_path(inside._outputs_struct)]
        layer_names = list(inside.output_names)
        keys = [
            path[-1] if path and isinstance(path[-1], str) else name
            for path, name in zip(paths, layer_names)
        ]
        self.all = [key if keys.count(key) == 1 else f"{key}_{i}" for i, key in enumerate(keys)]
        # Users may also give the unambiguous name of a layer, or a number.
        self._numbers = {
            name: i for i, name in enumerate(layer_names) if layer_names.count(name) == 1
        }
        self._numbers |= {i: i for i in range(len(keys))}
        self._numbers |= {name: i for i, name in enumerate(self.all)}
        self._model = model.name
        self._is_dict = isinstance(inside._outputs_struct, dict)

    def place(self, key, what):
        """Returns the number of the output with this name or number.

        Args:
            key: name or number of an output.
            what: name of the argument, for error messages.
        """
        if not isinstance(key, (str, int)) or isinstance(key, bool) or key not in self._numbers:
            raise EkgError(
                f"`{what}`: `model` {self._model!r} has no output {key!r}; it has {self.all}."
            )
        return self._numbers[key]

    def by_place(self, value, what):
        """Returns {number of an output: its entry in a list or dict}, without None entries.

        Args:
            value: list with one entry per output, or dict by name or number.
            what: name of the argument, for error messages.
        """
        if len(self.all) == len(value) == 1:
            entries = value.values() if isinstance(value, dict) else value
            pairs = [(0, entry) for entry in entries]
        elif isinstance(value, dict):
            pairs = [(self.place(key, what), entry) for key, entry in value.items()]
        elif self._is_dict:
            raise EkgError(
                f"`{what}` is a list, and `model` {self._model!r} returns a dict of {self.all}; "
                "give a dict by name."
            )
        elif len(value) == len(self.all):
            pairs = list(enumerate(value))
        else:
            raise EkgError(
                f"`{what}` has {len(value)} entries, and `model` {self._model!r} has "
                f"{len(self.all)} outputs, {self.all}; give one for each, None where there is "
                "none, or a dict by name."
            )
        if len({number for number, _ in pairs}) != len(pairs):
            raise EkgError(f"`{what}` names an output twice: {list(value)}.")
        return {number: entry for number, entry in pairs if entry is not None}
