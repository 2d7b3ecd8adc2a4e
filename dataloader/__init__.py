"""Data sets by name; each is loaded as one kind of object, dataloader.base.Dataset."""

import utils
from dataloader import cifar, digits

# name -> load(name, data_path)
DATASETS = {"CIFAR10": cifar.load, "CIFAR100": cifar.load, "DIGITS": digits.load}


def load(name, data_path=None):
    """Returns the Dataset of this name.

    Args:
        name: one of DATASETS.
        data_path: where its files lie; None takes the data set's own source (download, or what comes with a package).

    Raises:
        utils.UserError: the name is unknown, or the files are missing or damaged.
    """
    if name not in DATASETS:
        raise utils.UserError(f"--dataset {name}: no such data set; there are {', '.join(DATASETS)}.")
    return DATASETS[name](name, data_path)
