"""The networks of a run: the unpruned one tells their structure, or a sub-network of it does; their
weights are in files.
"""

import functools

from ekg.graph import cutting
from ekg.io import parameters
from ekg.network.supernet import Supernet


class Networks:
    """Reads and writes the networks of a run as parameter files.

    Attributes:
        model: the unpruned keras.Model; it stays as it is.
        choices: arguments of Supernet.
    """

    def __init__(self, model, choices=None, head=None):
        """
        Args:
            model: the unpruned keras.Model; it stays as it is.
            choices: arguments of Supernet, or None.
            head: heads.Head that was taken off the network, or None.
        """
        self.model, self.choices, self._head = model, choices or {}, head

    def with_choices(self, choices):
        """Returns the same with other arguments of Supernet."""
        return Networks(self.model, self.choices | choices, self._head)

    @functools.cached_property
    def supernet(self):
        """The Supernet of the unpruned network."""
        return self.make_supernet(self.model)

    def make_supernet(self, model):
        """Returns the Supernet of a network that differs from the unpruned one in its weights
        alone.
        """
        return Supernet(model, **self.choices)

    def copy(self, model):
        """Returns a copy of a network of the unpruned one's structure."""
        return cutting.copy(model, self.choices.get("input_shape"))

    def load(self, path, subnetwork=None):
        """Returns the keras.Model in a file.

        Args:
            path: the parameter file.
            subnetwork: the Subnetwork that it holds; None stands for the unpruned network.

        Raises:
            EkgError: the file cannot be read, or holds another network.
        """
        model = self.copy(self.model) if subnetwork is None else self.supernet.cut(subnetwork)
        self.load_(model, path)
        return model

    def load_(self, model, path):
        """Gives a network of the same structure the weights in a file; raises what load() does."""
        parameters.assign_params_(model, parameters.load_params(path), path)

    def save(self, model, path):
        """Writes the weights of a network."""
        parameters.save_params(model, path)

    def finished(self, path, subnetwork=None):
        """Returns the keras.Model in a file as it is handed out, its head put back."""
        return self.with_head(self.load(path, subnetwork))

    def with_head(self, model):
        """Returns a network with its head put back; it may be changed."""
        return model if self._head is None else self._head.put_back(model)
