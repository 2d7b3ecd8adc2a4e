"""Labels of classes: what they must be."""

import numpy as np

from ekg.errors import EkgError


def class_numbers(labels, rank, num_classes, what):
    """Returns labels as int32 class numbers of this rank, or raises EkgError."""
    is_whole = labels.dtype.kind in "iu" or (labels.dtype.kind == "f" and (labels == np.floor(labels)).all())
    if labels.ndim != rank or not is_whole:
        raise EkgError(f"{what}: class numbers are needed, integers of {rank} axes, or one-hot vectors of {num_classes}; "
                       f"received {labels.dtype} of shape {labels.shape}.")
    check_range(labels, num_classes, what)
    return labels.astype(np.int32)


def check_labels(labels, num_classes, what="labels"):
    """Raises EkgError unless labels are class numbers, int [number], from 0 on and below num_classes."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise EkgError(f"{what}: class numbers are needed, integers of shape (examples,); received {labels.dtype} of shape "
                       f"{labels.shape}. Of one-hot labels take the argmax; of shape (examples, 1) take labels[:, 0].")
    check_range(labels, num_classes, what)


def check_range(labels, num_classes, what="labels"):
    """Raises EkgError unless class numbers go from 0 on and stay below num_classes."""
    labels = np.asarray(labels)
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise EkgError(f"{what} go from {labels.min():g} to {labels.max():g}; {num_classes} classes have the numbers 0 to "
                       f"{num_classes - 1}.")


def from_one_hot(labels, what):
    """Returns the class numbers of one-hot vectors, the last axis."""
    if labels.dtype.kind not in "biuf" or not ((labels == 0) | (labels == 1)).all() or not (labels.sum(-1) == 1).all():
        raise EkgError(f"{what}: of shape {labels.shape} they must be one-hot vectors, one 1 and zeros; for labels that "
                       "hold or not each for itself, give `task`=\"multi_label\".")
    return labels.argmax(-1)
