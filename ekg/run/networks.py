"""The networks of a run: the unpruned one tells their structure, or a sub-network of it does; their weights are in files."""

import functools

from ekg import parameters
from ekg.graph import cutting
from ekg.network.supernet import Supernet


class Networks:
    """Reads and writes the networks of a run as parameter files.

    Attributes:
        model: the unpruned keras.Model; it stays as it is.
        choices: arguments of Supernet.
    """

    def __init__(self, model, choices=None):
        self.model, self.choices = model, choices or {}

    @functools.cached_property
    def supernet(self):
        """The Supernet of the unpruned network."""
        return self.make_supernet(self.model)

    def make_supernet(self, model):
        """Returns the Supernet of a network that differs from the unpruned one in its weights alone."""
        return Supernet(model, **self.choices)

    def load(self, path, subnetwork=None):
        """Returns the keras.Model in a file.

        Args:
            path: the parameter file.
            subnetwork: the Subnetwork that it holds; None stands for the unpruned network.

        Raises:
            EkgError: the file cannot be read, or holds another network.
        """
        params = parameters.load_params(path)
        model = cutting.copy(self.model) if subnetwork is None else self.supernet.cut(subnetwork)
        parameters.assign_params_(model, params, path)
        return model

    def save(self, model, path):
        """Writes the weights of a network."""
        parameters.save_params(model, path)
