"""Labels of classes: what they must be."""

import numpy as np

from ekg.errors import EkgError

SUM_TOLERANCE = 1e-3  # of shares of classes


def prepare_classes(labels, rank, num_classes, what):
    """Returns labels of classes in one of two forms: class numbers int32 of this rank, or soft
    labels.

    Soft labels are shares of the classes, float32 of one more axis; one-hot vectors become numbers.

    Args:
        labels: array of this rank, or with a last axis of length 1 or num_classes.
        rank: 1 for one label an example.
        num_classes: number of classes.
        what: what to call them in an error.

    Raises:
        EkgError: they are neither class numbers nor shares of classes.
    """
    labels = np.asarray(labels)
    if labels.ndim == rank + 1 and labels.shape[-1] == num_classes > 1:
        return _of_vectors(labels, what)
    if labels.ndim == rank + 1 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    return class_numbers(labels, rank, num_classes, what)


def prepare_shares(labels, shape, what):
    """Returns labels that hold or not, or soft ones between, float32 [examples, *shape].

    Args:
        labels: array of this shape, also without a last axis of length 1.
        shape: of one example.
        what: what to call them in an error.

    Raises:
        EkgError: they have another shape, or are not from 0 to 1.
    """
    labels = np.asarray(labels)
    labels = labels[..., None] if labels.ndim == len(shape) else labels
    if labels.shape[1:] != tuple(shape):
        raise EkgError(
            f"{what}: the network has {shape[-1]} outputs, so (examples, "
            f"{', '.join(map(str, shape))}) zeros and ones are needed; received shape "
            f"{labels.shape}."
        )
    if labels.dtype.kind not in "biuf" or not ((labels >= 0) & (labels <= 1)).all():
        raise EkgError(f"{what} must be 0 or 1, or shares between; received others.")
    return labels.astype(np.float32)


def class_numbers(labels, rank, num_classes, what):
    """Returns labels as int32 class numbers of this rank, or raises EkgError."""
    is_whole = labels.dtype.kind in "iu" or (
        labels.dtype.kind == "f" and (labels == np.floor(labels)).all()
    )
    if labels.ndim != rank or not is_whole:
        raise EkgError(
            f"{what}: class numbers are needed, integers of {rank} axes, or one-hot vectors of "
            f"{num_classes}; received {labels.dtype} of shape {labels.shape}."
        )
    check_range(labels, num_classes, what)
    return labels.astype(np.int32)


def check_labels(labels, num_classes, what="labels"):
    """Raises EkgError unless labels are class numbers, int [number], from 0 on and below
    num_classes.

    Or soft labels as prepare_classes() gives.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == num_classes and labels.dtype == np.float32:
        _of_vectors(labels, what)
        return
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise EkgError(
            f"{what}: class numbers are needed, integers of shape (examples,); received "
            f"{labels.dtype} of shape {labels.shape}. Of one-hot labels take the argmax; of shape "
            "(examples, 1) take labels[:, 0]."
        )
    check_range(labels, num_classes, what)


def check_range(labels, num_classes, what="labels"):
    """Raises EkgError unless class numbers go from 0 on and stay below num_classes."""
    labels = np.asarray(labels)
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise EkgError(
            f"{what} go from {labels.min():g} to {labels.max():g}; {num_classes} classes have the "
            f"numbers 0 to {num_classes - 1}."
        )


def _of_vectors(labels, what):
    """Returns the class numbers of one-hot vectors, the last axis, or soft labels as float32."""
    is_share = labels.dtype.kind in "biuf" and bool((labels >= 0).all())
    if not is_share or not np.allclose(labels.sum(-1), 1, atol=SUM_TOLERANCE):
        raise EkgError(
            f"{what}: of shape {labels.shape} they must be one-hot vectors, one 1 and zeros, or "
            "shares of the classes that sum to 1; for labels that hold or not each for itself, "
            'give `task`="multi_label".'
        )
    is_one_hot = bool(((labels == 0) | (labels == 1)).all())
    return labels.argmax(-1).astype(np.int32) if is_one_hot else labels.astype(np.float32)
