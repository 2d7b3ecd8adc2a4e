"""What an analysis is about: a network, its data, and the images that its loss is measured on."""

import dataclasses
from pathlib import Path
from typing import Any

from ekg.errors import EkgError
from ekg.searching.settings import SUBSET_PER_CLASS, SearchSettings
from ekg.settings import COUNT, MACHINE, SEARCH, SHARE, Settings, setting

IMAGES = ("val", "subset", "test")


@dataclasses.dataclass(frozen=True)
class ResultSettings(Settings):
    """Where results go, and how they are computed."""

    out: Path | None = setting(
        None, "folder of the results; without it analysis/COMMAND", MACHINE, may_be_none=True
    )
    batch_size: int = setting(256, "images that are run together, at most", SEARCH, range=COUNT)


@dataclasses.dataclass(frozen=True)
class ImageSettings(Settings):
    """What the loss of a stored network is measured on."""

    images: str = setting(
        "val",
        "D_val, the training subset of the search, or the test images",
        SEARCH,
        choices=IMAGES,
    )
    batch_statistics: bool = setting(
        False,
        "batch norms take the statistics of the batch, as in the search; else the moving ones",
        SEARCH,
    )


@dataclasses.dataclass(frozen=True)
class TrainedSettings(Settings):
    """What is pruned, and how far."""

    trained_param: Path = setting(
        None, "parameter file of the trained network", SEARCH, is_required=True
    )
    target_rate: float = setting(0.45, "share of the FLOPs to keep", SEARCH, range=SHARE)


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """The network and the data that an analysis is about.

    Attributes:
        arch: name of the network.
        data: data.Dataset.
        load: function from the path of a parameter file of the network, pruned or not, to the
            keras.Model.
        batch_size: images that are run together, at most; where batch norms take batch statistics,
            these share them.
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
            split = data.last_of_each_class(
                min(SearchSettings().val_per_class, data.largest_class()), 0
            )
        return data.batches(split, self.batch_size)

    def load_all(self, paths):
        """Returns {name: keras.Model} of parameter files, by the names of short_names().

        Raises:
            EkgError: a file is no parameter file of the network, or is given twice.
        """
        return {name: self.load(path) for name, path in zip(short_names(paths), paths)}


def short_names(paths):
    """Returns a name for each file: as many of its path's last parts as tell all of them apart.

    Raises:
        EkgError: a file is given twice.
    """
    places = [path.resolve() for path in paths]
    twice = next((path for i, path in enumerate(paths) if places[i] in places[:i]), None)
    if twice is not None:
        raise EkgError(f"{twice}: is given twice; name each network once.")
    parts = [path.absolute().parts for path in paths]  # a link goes by its own name
    lengths = range(1, max(map(len, parts)) + 1)
    return next(
        names
        for length in lengths
        if len(set(names := ["/".join(place[-length:]) for place in parts])) == len(names)
    )
