"""Finds the network that a command line names, and the size of its images."""

import dataclasses
from pathlib import Path

from ekg.data import images
from ekg.data.inputs import IMAGE_RANKS, Inputs, described
from ekg.errors import EkgError
from ekg.graph.calls import Graph, looked_into
from ekg.io import h5_files
from ekg.run import folder as names
from ekg.run.folder import RunFolder
from ekg.tasks.output_names import Names


def find_network(path):
    """Returns the pathlib.Path of the .keras or .h5 file of a network.

    Args:
        path: path of such a file, or of the run folder of a finished run, whose network is the one
            that the run hands out.

    Raises:
        EkgError: there is no such file or run, or it is a file of parameters alone.
    """
    path = Path(path)
    if path.is_dir():
        run = RunFolder.open(path)
        ends = (names.TRAINED_KERAS, names.SLIMMED_KERAS)
        for name in ends[1:] if run.hands_out_cut() else ends:
            if run.has(name):
                return run / name
        raise EkgError(f"`model` {path}: the run left no .keras file; is it finished?")
    if path.is_file() and path.suffix not in (".keras", *h5_files.SUFFIXES):
        raise EkgError(
            f"`model` {path}: is neither a run folder nor a .keras or .h5 file; a parameter file "
            "needs the name of its architecture: test.py and export.py of the repository take it."
        )
    return path


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a network asks of data in files.

    Attributes:
        shape: shape of an example as calls.Graph takes it: of several inputs a list of shapes.
        names: names of several inputs; None for one.
        outputs: names of the outputs.
        is_open: whether the network itself leaves a size open.
    """

    shape: tuple | list
    names: tuple | None
    outputs: tuple
    is_open: bool

    @property
    def open_shape(self):
        """The shape where the network leaves a size open, else None."""
        return self.shape if self.is_open else None

    def load(self, path, rescale, split="train", name="data_path"):
        """See data.images.load()."""
        return images.load(path, self.shape, rescale, split, name, self.names, self.outputs)


def asked_by(model, image_size=None):
    """Returns what a network asks of data.

    Args:
        model: keras.Model.
        image_size: (height, width) of its images where the network leaves them open, or None.

    Raises:
        EkgError: the network has another size, or takes no images.
    """
    graph = Graph(model, open_layers=looked_into(model) is None)
    inputs = Inputs.of(graph)
    is_open = any(None in shape for shape in inputs.shapes)
    shapes = inputs.shapes
    if image_size is not None:
        places = range(1)
        if inputs.are_several:
            places = [i for i, shape in enumerate(shapes) if len(shape) + 1 in IMAGE_RANKS]
        shapes = tuple(
            _sized(shape, image_size) if place in places else shape
            for place, shape in enumerate(shapes)
        )
    inputs = dataclasses.replace(inputs, shapes=shapes)
    input_names = inputs.names if inputs.are_several else None
    return Asked(inputs.shape, input_names, tuple(Names(graph.model).all), is_open)


def _sized(shape, image_size):
    if any(size not in (None, asked) for size, asked in zip(shape[:2], image_size)):
        raise EkgError(
            f"`image_size` {' '.join(map(str, image_size))}: the network takes images of "
            f"{' x '.join(map(str, shape[:2]))}; leave it out."
        )
    return (*image_size, shape[-1])


def size_note(model, shape):
    """Returns a line with the size that FLOPs are counted for, or an empty text where the network
    itself has it.

    Args:
        model: keras.Model.
        shape: shape of an example, or a list of one per input.
    """
    if not any(None in symbol.shape[1:] for symbol in model.inputs):
        return ""
    return f"\nFLOPs and latencies are of {described(shape)}, the size of the data"
