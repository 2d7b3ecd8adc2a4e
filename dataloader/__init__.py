"""Data sets by name; all are loaded as ekg.data.Dataset."""

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
    """Returns the names of the data sets with images of this shape, (height, width, channels)."""
    return [name for name, (_, shape) in DATASETS.items() if shape == tuple(image_shape)]


def load(dataset, data_path=None, **options):
    """Returns the Dataset with this name.

    Args:
        dataset: one of DATASETS.
        data_path: path of its files; None uses the default source, a download or a package.
        options: further arguments of the data set's load().

    Raises:
        EkgError: the name is unknown, or the files are missing or damaged.
    """
    if dataset not in DATASETS:
        raise EkgError(f"`dataset` {dataset}: no such data set; there are {', '.join(DATASETS)}.")
    return DATASETS[dataset][0](dataset, data_path, **options)
