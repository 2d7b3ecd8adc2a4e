"""Checks class labels and brings them into the form that the losses take."""

import numpy as np

from ekg.errors import EkgError

SUM_TOLERANCE = 1e-3  # largest deviation of a sum of class probabilities from 1


def prepare_classes(labels, rank, num_classes, what):
    """Returns class numbers, int32 of this rank, or soft labels, float32 with one more axis.

    Soft labels are class probabilities. One-hot vectors become class numbers.

    Args:
        labels: array of this rank, or with a further last axis of length 1 or num_classes.
        rank: number of axes of class numbers: 1 for one label per example.
        num_classes: number of classes.
        what: name of the labels in error messages.

    Raises:
        EkgError: the labels are neither class numbers nor class probabilities.
    """
    labels = np.asarray(labels)
    check_finite(labels, what)
    if labels.ndim == rank + 1 and labels.shape[-1] == num_classes > 1:
        return _of_vectors(labels, what)
    if labels.ndim == rank + 1 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    return class_numbers(labels, rank, num_classes, what)


def check_finite(labels, what):
    """Raises EkgError if labels are floating point numbers that are NaN or infinite."""
    if labels.dtype.kind != "f" or not labels.ndim:
        return
    is_finite = np.isfinite(labels).reshape(len(labels), -1).all(axis=1)
    if not is_finite.all():
        raise EkgError(
            f"{what} are not finite, NaN or infinite, the first in example "
            f"{int(np.flatnonzero(~is_finite)[0])} of {len(labels)}; leave such examples out."
        )


def prepare_shares(labels, shape, what):
    """Returns labels in [0, 1], float32 [examples, *shape].

    Args:
        labels: array [examples, *shape]; a last axis of length 1 may be missing.
        shape: shape of the label of one example.
        what: name of the labels in error messages.

    Raises:
        EkgError: the labels have another shape, or values outside [0, 1].
    """
    labels = np.asarray(labels)
    check_finite(labels, what)
    labels = labels[..., None] if labels.ndim == len(shape) else labels
    if labels.shape[1:] != tuple(shape):
        raise EkgError(
            f"{what}: the network has {shape[-1]} outputs, so (examples, "
            f"{', '.join(map(str, shape))}) zeros and ones are needed; received shape "
            f"{labels.shape}."
        )
    if labels.dtype.kind not in "biuf" or not ((labels >= 0) & (labels <= 1)).all():
        raise EkgError(f"{what} must be 0 or 1, or probabilities in between; received others.")
    return labels.astype(np.float32)


def class_numbers(labels, rank, num_classes, what):
    """Returns labels as int32 class numbers of this rank, or raises EkgError."""
    is_whole = labels.dtype.kind in "biu" or (
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
    """Raises EkgError unless labels are class numbers, int [n], or soft labels, float32.

    Class numbers must be in [0, num_classes); soft labels are those of prepare_classes().
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == num_classes and labels.dtype == np.float32:
        _of_vectors(labels, what)
        return
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise EkgError(
            f"{what}: class numbers are needed, integers of shape (examples,); received "
            f"{labels.dtype} of shape {labels.shape}. Take the argmax of one-hot labels, and "
            "labels[:, 0] of labels of shape (examples, 1)."
        )
    check_range(labels, num_classes, what)


def check_range(labels, num_classes, what="labels"):
    """Raises EkgError unless all class numbers are in [0, num_classes)."""
    labels = np.asarray(labels)
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise EkgError(
            f"{what} must be in [0, {num_classes - 1}], as there are {num_classes} classes; "
            f"received {labels.min():g} to {labels.max():g}."
        )


def _of_vectors(labels, what):
    """Returns one-hot vectors (along the last axis) as class numbers, soft labels as float32."""
    is_share = labels.dtype.kind in "biuf" and bool((labels >= 0).all())
    if not is_share or not np.allclose(labels.sum(-1), 1, atol=SUM_TOLERANCE):
        raise EkgError(
            f"{what}: of shape {labels.shape} they must be one-hot vectors, one 1 and zeros, or "
            "class probabilities that sum to 1; for independent yes-or-no labels, give "
            '`task`="multi_label".'
        )
    is_one_hot = bool(((labels == 0) | (labels == 1)).all())
    return labels.argmax(-1).astype(np.int32) if is_one_hot else labels.astype(np.float32)
