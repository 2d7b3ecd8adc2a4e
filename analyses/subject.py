"""The subject of an analysis: a network, its data, and the images on which losses are measured."""

import dataclasses
from pathlib import Path
from typing import Any

from ekg.errors import EkgError
from ekg.searching.settings import SUBSET_PER_CLASS, SearchSettings
from ekg.settings import COUNT, MACHINE, SEARCH, SHARE, Settings, setting

IMAGES = ("val", "subset", "test")


@dataclasses.dataclass(frozen=True)
class ResultSettings(Settings):
    """Folder and batch size of the results."""

    out: Path | None = setting(
        None, "folder for the results; analysis/COMMAND by default", MACHINE, may_be_none=True
    )
    batch_size: int = setting(256, "largest number of images per batch", SEARCH, range=COUNT)


@dataclasses.dataclass(frozen=True)
class ImageSettings(Settings):
    """Images and statistics with which the loss of a stored network is measured."""

    images: str = setting(
        "val",
        "images to measure on: D_val, the training subset of the search, or the test images",
        SEARCH,
        choices=IMAGES,
    )
    batch_statistics: bool = setting(
        False,
        "use batch statistics in batch norms, as in the search, instead of moving statistics",
        SEARCH,
    )


@dataclasses.dataclass(frozen=True)
class TrainedSettings(Settings):
    """The network that is pruned, and its target."""

    trained_param: Path = setting(
        None, "parameter file of the trained network", SEARCH, is_required=True
    )
    target_rate: float = setting(0.45, "share of the FLOPs to keep", SEARCH, range=SHARE)


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """The network and the data of an analysis.

    Attributes:
        arch: name of the network.
        data: data.Dataset.
        load: function from the path of a parameter file, of the network pruned or not, to the
            keras.Model.
        batch_size: largest number of images per batch, which share their statistics if batch norms
            use batch statistics.
    """

    arch: str
    data: Any
    load: Any
    batch_size: int

    def __str__(self):
        return f"{self.arch} on {self.data.name}"

    def batches(self, images="val"):
        """Returns the data.Batches of some images.

        Args:
            images: "val" for D_val, "subset" for the training subset of the search, "test" for the
                test images.
        """
        data = self.data
        if images == "test":
            split = data.test
        elif images == "subset":
            split = data.first_of_each_class(min(SUBSET_PER_CLASS, data.largest_class()), 0)
        else:
            count = min(SearchSettings().val_per_class, data.largest_class())
            split = data.last_of_each_class(count, 0)
        return data.batches(split, self.batch_size)

    def load_all(self, paths):
        """Returns {name: keras.Model} for parameter files, with names from short_names().

        Raises:
            EkgError: a file is no parameter file of the network, or is listed twice.
        """
        return {name: self.load(path) for name, path in zip(short_names(paths), paths)}


def short_names(paths):
    """Returns a name for each file: the shortest ends of the paths that are all different.

    Raises:
        EkgError: a file is listed twice.
    """
    seen = set()
    for path in paths:
        if path.resolve() in seen:
            raise EkgError(f"{path}: is given twice; name each network once.")
        seen.add(path.resolve())
    parts = [path.absolute().parts for path in paths]  # a link keeps its own name
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path_parts[-length:]) for path_parts in parts]
        if len(set(names)) == len(names):
            break
    return names
