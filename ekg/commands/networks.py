"""Finds the network that a command line names, and the size of its images."""

from pathlib import Path

from ekg.errors import EkgError
from ekg.io import h5_files
from ekg.run import folder as names
from ekg.run.folder import RunFolder


def find_network(path):
    """Returns the pathlib.Path of the .keras or .h5 file of a network.

    Args:
        path: path of such a file, or of the run folder of a finished run.

    Raises:
        EkgError: there is no such file or run, or it is a file of parameters alone.
    """
    path = Path(path)
    if path.is_dir():
        run = RunFolder.open(path)
        for name in (names.TRAINED_KERAS, names.SLIMMED_KERAS):
            if run.has(name):
                return run / name
        raise EkgError(f"`model` {path}: the run left no .keras file; is it finished?")
    if path.is_file() and path.suffix not in (".keras", *h5_files.SUFFIXES):
        raise EkgError(
            f"`model` {path}: is neither a run folder nor a .keras or .h5 file; a parameter file "
            "needs the name of its architecture: test.py and export.py of the repository take it."
        )
    return path


def image_shape(model, image_size):
    """Returns the shape of an image for a network, (height, width, channels).

    Args:
        model: keras.Model.
        image_size: (height, width) where the network leaves them open, or None.

    Raises:
        EkgError: the network has another size.
    """
    shape = tuple(model.inputs[0].shape[1:])
    if image_size is None:
        return shape
    if any(size not in (None, asked) for size, asked in zip(shape[:2], image_size)):
        raise EkgError(
            f"`image_size` {' '.join(map(str, image_size))}: the network takes images of "
            f"{' x '.join(map(str, shape[:2]))}; leave it out."
        )
    return (*image_size, shape[-1])
