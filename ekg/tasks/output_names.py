"""The outputs of a network by their names."""

import keras

from ekg.errors import EkgError
from ekg.graph.calls import functional


class Names:
    """The outputs of a network by their names, in the order in which Keras flattens them.

    A name is the key of an output where the network returns a dict, else that of the layer that
    makes it, with the number of the output where several have one name.
    """

    def __init__(self, model):
        inside = functional(model)
        paths = [path for path, _ in keras.tree.flatten_with_path(inside._outputs_struct)]
        made_by = list(inside.output_names)
        keys = [
            path[-1] if path and isinstance(path[-1], str) else name
            for path, name in zip(paths, made_by)
        ]
        self.all = [key if keys.count(key) == 1 else f"{key}_{i}" for i, key in enumerate(keys)]
        self._places = {name: i for i, name in enumerate(made_by) if made_by.count(name) == 1}
        self._places |= {i: i for i in range(len(keys))} | {
            name: i for i, name in enumerate(self.all)
        }
        self._model, self._is_dict = model.name, isinstance(inside._outputs_struct, dict)

    def place(self, key, what):
        """Returns the number of the output with a name, or with this number."""
        if not isinstance(key, (str, int)) or isinstance(key, bool) or key not in self._places:
            raise EkgError(
                f"`{what}`: `model` {self._model!r} has no output {key!r}; it has {self.all}."
            )
        return self._places[key]

    def by_place(self, value, what):
        """Returns {number of an output: what a list or dict holds for it}, without what is None."""
        if len(self.all) == len(value) == 1:
            pairs = [(0, entry) for entry in (value.values() if isinstance(value, dict) else value)]
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
        if len({place for place, _ in pairs}) != len(pairs):
            raise EkgError(f"`{what}` names an output twice: {list(value)}.")
        return {place: entry for place, entry in pairs if entry is not None}
