"""Data sets by name; each is loaded as one kind of object, dataloader.base.Dataset."""

import utils
from dataloader import cifar, digits, ilsvrc

# name -> (load(name, data_path, **options), shape of its images)
DATASETS = {"CIFAR10": (cifar.load, cifar.IMAGE_SHAPE), "CIFAR100": (cifar.load, cifar.IMAGE_SHAPE),
            "DIGITS": (digits.load, digits.IMAGE_SHAPE), "ILSVRC2012": (ilsvrc.load, ilsvrc.IMAGE_SHAPE)}


def names_for(image_shape):
    """Returns the names of the data sets whose images have this shape, (height, width, channels)."""
    return [name for name, (_, shape) in DATASETS.items() if shape == tuple(image_shape)]


def load(name, data_path=None, **options):
    """Returns the Dataset of this name.

    Args:
        name: one of DATASETS.
        data_path: where its files lie; None takes the data set's own source (download, or what comes with a package).
        options: further arguments of the data set's own load().

    Raises:
        utils.UserError: the name is unknown, or the files are missing or damaged.
    """
    if name not in DATASETS:
        raise utils.UserError(f"--dataset {name}: no such data set; there are {', '.join(DATASETS)}.")
    return DATASETS[name][0](name, data_path, **options)
