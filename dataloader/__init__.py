"""Data sets by name; each is loaded as one kind of object, ekg.data.Dataset."""

from dataloader import cifar, digits, ilsvrc
from ekg.errors import EkgError

# name -> (load(name, data_path, **options), shape of its images)
DATASETS = {
    "CIFAR10": (cifar.load, cifar.IMAGE_SHAPE),
    "CIFAR100": (cifar.load, cifar.IMAGE_SHAPE),
    "DIGITS": (digits.load, digits.IMAGE_SHAPE),
    "ILSVRC2012": (ilsvrc.load, ilsvrc.IMAGE_SHAPE),
}


def names_for(image_shape):
    """Returns the names of the data sets whose images have this shape, (height, width,
    channels).
    """
    return [name for name, (_, shape) in DATASETS.items() if shape == tuple(image_shape)]


def load(dataset, data_path=None, **options):
    """Returns the Dataset of this name.

    Args:
        dataset: its name, one of DATASETS.
        data_path: where its files lie; None takes the data set's own source (download, or what
            comes with a package).
        options: further arguments of the data set's own load().

    Raises:
        EkgError: the name is unknown, or the files are missing or damaged.
    """
    if dataset not in DATASETS:
        raise EkgError(f"`dataset` {dataset}: no such data set; there are {', '.join(DATASETS)}.")
    return DATASETS[dataset][0](dataset, data_path, **options)
