"""What the result of every run depends on besides its settings, as it stands in arguments.json."""

import hashlib
import platform

import keras
import numpy as np
import tensorflow as tf

from ekg.distil import bank_files
from ekg.graph.naming import named_weights

RESULTS_VERSION = 2  # raised where the same arguments lead to other numbers than before
VERSIONS = {"python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__,
            "numpy": np.__version__}


def describe(data, is_compiled):
    """Returns {name: value} of data, machine code and versions.

    Args:
        data: data set.
        is_compiled: whether steps are compiled with XLA.
    """
    return {"results_version": RESULTS_VERSION, "data": bank_files.fingerprint(data.train), "use_xla": is_compiled,
            "versions": VERSIONS}


def model_fingerprint(model):
    """Returns a hash of a network: the names, shapes and numbers of its weights."""
    digest = hashlib.sha256()
    for layer, name, variable in named_weights(model):
        digest.update(f"{type(layer).__name__} {name} {tuple(variable.shape)}".encode())
        digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return digest.hexdigest()
