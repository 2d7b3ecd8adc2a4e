"""A user's own data, whatever `fit` takes, as examples that are read by their numbers.

The method needs the same example again: its order is shuffled here, and the row of the memory bank is its number. Arrays
are read as they are. What comes in batches (tf.data.Dataset, keras.utils.PyDataset) is written once to a file without a
name in the system's folder for such files (TMPDIR), which goes with the process, and read a second time to prove that it is
the same each time.
"""

import dataclasses
import os
import tempfile
import zlib
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from ekg import stopping
from ekg.errors import EkgError
from ekg.progress import progress_bar

CHECKED_TOGETHER = 1024  # examples that are looked at for NaN at a time, so that no copy of all is made
PROBES = 4  # examples that are read twice of what is read by a user's function
FORMS = ("a pair (images, labels) of arrays, or images alone, a tf.data.Dataset or "
         "keras.utils.PyDataset of such batches, or an ekg.Data")


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Labelled examples that are larger than memory, read by a function of the user's own.

        ekg.Data(labels, lambda indices: np.stack([load(files[i]) for i in indices]))

    Attributes:
        labels: of all examples, array [examples, ...]; of several outputs a list or dict of them; None
            where there are none.
        read: function from numbers of examples, int64 [number], to what the network takes of these, array [number, ...]. It
            must give the same whenever it is asked, also in several threads at once.
        count: number of examples, where there are no labels that tell it.
    """
    labels: np.ndarray | list | dict | None
    read: Callable
    count: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Examples as they were found: how they are read, and their labels in the form the user gave them.

    Attributes:
        read: function from numbers of examples to an array [number, ...].
        labels: array [examples, ...]; of several outputs a list or dict of them, with None where one
            has none; or None.
        shape: of one example.
        count: number of examples.
    """
    read: Callable
    labels: np.ndarray | list | dict | None
    shape: tuple[int, ...]
    count: int


def find_examples(source, input_shape, what="data"):
    """Returns the Examples of whatever `fit` takes.

    Args:
        source: see FORMS.
        input_shape: of one example as the network takes it, with None where any size will do.
        what: the argument's name, for errors.

    Raises:
        EkgError: it is none of these, has no labels, does not fit the network, or differs from one reading to the next.
    """
    if isinstance(source, Data):
        examples = _of_function(source, what)
    elif isinstance(source, tf.data.Dataset):
        examples = _spooled(_tensorflow_batches(source, len(input_shape), what), what)
    elif isinstance(source, keras.utils.PyDataset):
        examples = _spooled(lambda: (source[number] for number in range(len(source))), what)
    elif isinstance(source, (tuple, list)) and len(source) == 2:
        examples = _of_arrays(*source, what)
    elif isinstance(source, (np.ndarray, tf.Tensor)):
        examples = _of_arrays(source, None, what)
    else:
        raise EkgError(f"`{what}` must be {FORMS}; received {_described(source)}.")
    if not examples.count:
        raise EkgError(f"`{what}` holds no examples.")
    return _fitted(examples, input_shape, what)


def _described(source):
    if isinstance(source, (tuple, list)):
        return f"a {type(source).__name__} of {len(source)} entries"
    return f"an object of type {type(source).__name__}"


def _fitted(examples, input_shape, what):
    """Returns examples whose shape is the network's; an axis of one channel that is left out is put in."""
    shape, read = examples.shape, examples.read
    if len(shape) == len(input_shape) - 1 and input_shape[-1] == 1:
        shape = (*shape, 1)
        examples = dataclasses.replace(
            examples, read=lambda indices: read(indices)[..., None], shape=shape)
    if len(shape) != len(input_shape) or any(size not in (None, own) for size, own in zip(input_shape, shape)):
        raise EkgError(f"`{what}` has examples of shape {shape}, and the network takes {tuple(input_shape)}; resize them, "
                       "or build the network for them.")
    return examples


def _check_numbers(array, what):
    """Raises EkgError if an array cannot be what a network reads."""
    if array.dtype.kind not in "biuf":
        raise EkgError(f"`{what}` must hold numbers; received {array.dtype}.")
    for start in range(0, len(array) if array.ndim and array.dtype.kind == "f" else 0, CHECKED_TOGETHER):
        part = array[start:start + CHECKED_TOGETHER]
        if not np.isfinite(part).all():
            broken = start + int(np.flatnonzero(~np.isfinite(part).reshape(len(part), -1).all(axis=1))[0])
            raise EkgError(f"`{what}` holds numbers that are not finite, NaN or infinite; the first in example {broken} of "
                           f"{len(array)}. Leave such examples out.")


# ---------------------------------------------------------------- arrays and functions

def _as_array(value, what):
    if isinstance(value, dict) or (isinstance(value, (list, tuple)) and value and isinstance(value[0], (dict, np.ndarray))):
        raise EkgError(f"`{what}` has several inputs or outputs an example; a network of one input is needed, and the "
                       "labels of one output.")
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise EkgError(f"`{what}` cannot be taken as an array ({' '.join(str(error).split())}).") from None


def _labels_of(value, what):
    """Returns labels as an array, or a list or dict of those of several outputs; None for None."""
    if isinstance(value, dict):
        return {name: _labels_of(own, what) for name, own in value.items()}
    are_arrays = isinstance(value, (list, tuple)) and any(
        own is None or len(getattr(own, "shape", ())) for own in value)
    if are_arrays:
        return [_labels_of(own, what) for own in value]
    return None if value is None else _as_array(value, f"{what} labels")


def _arrays_of(labels):
    """Returns the list of the arrays of labels."""
    return [own for own in keras.tree.flatten(labels) if own is not None]


def _check_counts(images, labels, what):
    """Raises EkgError unless there are as many labels of every output as images."""
    for own in _arrays_of(labels):
        if images.ndim == 0 or own.ndim == 0 or len(images) != len(own):
            raise EkgError(f"`{what}` has images of shape {images.shape} and labels of shape "
                           f"{own.shape}; give as many labels as images.")


def _of_arrays(images, labels, what):
    images, labels = _as_array(images, what), _labels_of(labels, what)
    _check_counts(images, labels, what)
    _check_numbers(images, what)
    count = len(images) if images.ndim else 0
    return Examples(lambda indices: images[indices], labels, images.shape[1:], count)


def _of_function(data, what):
    labels = _labels_of(data.labels, what)
    counts = {len(own) for own in _arrays_of(labels)} | ({data.count} - {None})
    if len(counts) != 1:
        raise EkgError(f"`{what}`: an ekg.Data needs labels of all its examples, or their number as "
                       f"`count`; received {sorted(counts) or 'neither'}.")
    count, = counts
    if not count:
        return Examples(data.read, labels, (), 0)
    probes = np.linspace(0, count - 1, min(PROBES, count)).astype(np.int64)
    first, second = (np.asarray(data.read(probes)) for _ in range(2))
    if first.shape[:1] != probes.shape:
        raise EkgError(f"`{what}`: its `read` was asked for {len(probes)} examples and gave an array of shape "
                       f"{first.shape}.")
    _check_numbers(first, what)
    if first.shape != second.shape or not np.array_equal(first, second):
        raise EkgError(f"`{what}`: its `read` gives other numbers for the same examples when it is asked again; random "
                       "views belong into `augment`.")
    return Examples(data.read, labels, first.shape[1:], count)


# ---------------------------------------------------------------- what comes in batches

def _tensorflow_batches(dataset, rank, what):
    """Returns a function that gives the batches of a tf.data.Dataset from its beginning on."""
    if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise EkgError(f"`{what}` never ends; leave its repeat() out.")
    spec = dataset.element_spec
    parts = spec if isinstance(spec, (tuple, list)) and spec else (spec,)
    images, labels = parts[0], parts[1:2]
    if isinstance(images, tf.TensorSpec) and images.shape.rank is not None and images.shape.rank <= rank:
        are_single = any(own.shape.rank == 0 for own in keras.tree.flatten(labels))
        are_single |= not labels and images.shape.rank > 0 and images.shape[0] is not None
        if images.shape.rank < rank or are_single:
            raise EkgError(f"`{what}` gives single examples; batch them with .batch(32).")
    return dataset.as_numpy_iterator


def _pair(batch, what):
    """Returns (images, labels) of a batch; labels are None where there are none."""
    if not isinstance(batch, (tuple, list)):
        batch = (batch,)
    if not batch:
        raise EkgError(f"`{what}` has an empty batch; give images, or (images, labels).")
    if len(batch) > 2 and batch[2] is not None:
        raise EkgError(f"`{what}` has weights of its examples, which the method has no place for; leave them out.")
    images = _as_array(batch[0], what)
    labels = _labels_of(batch[1], what) if len(batch) > 1 else None
    _check_numbers(images, what)
    if images.ndim == 0:
        raise EkgError(f"`{what}` has a batch whose images are a single number.")
    _check_counts(images, labels, what)
    return images, labels


def _spooled(batches, what):
    """Returns the Examples of batches, in a file; reads them twice.

    Args:
        batches: function that gives an iterator over the batches from the first one on.
        what: the argument's name.
    """
    spool, labels, sums = _Spool(what), [], []
    with progress_bar(f"read {what}", None, "batch") as progress:
        for batch in batches():
            stopping.check()
            images, own = _pair(batch, what)
            spool.append(images)
            labels.append(own)
            sums.append(_checksum(images, own))
            progress.update(1)
        again = 0
        for batch in batches():
            stopping.check()
            if again == len(sums) or _checksum(*_pair(batch, what)) != sums[again]:
                raise EkgError(f"`{what}` gives other examples when it is read again: it shuffles, or changes images, by "
                               "itself. Pass it unshuffled, and random views as `augment`: the order is made here.")
            again += 1
            progress.update(1)
    if again != len(sums):
        raise EkgError(f"`{what}` gave {len(sums)} batches, and {again} when it was read again.")
    spool.finish()
    return Examples(spool.read, _together(labels, what), spool.shape, spool.count)


def _together(labels, what):
    """Returns the labels of all batches, a list of what _labels_of() gives, as those of one."""
    def joined(*parts):
        return None if parts[0] is None else np.concatenate(parts)
    try:
        return keras.tree.map_structure(joined, *labels) if labels else None
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EkgError(f"`{what}` has labels of several forms: {reason}") from None


def _checksum(images, labels):
    checksum = zlib.crc32(np.ascontiguousarray(images).tobytes())
    for own in _arrays_of(labels):
        checksum = zlib.crc32(np.ascontiguousarray(own).tobytes(), checksum)
    return checksum


class _Spool:
    """Rows in a file without a name, read by their numbers, and never in memory together."""

    def __init__(self, what):
        self._what, self._row, self._dtype = what, None, None
        self.shape, self.count = (), 0
        self._file = tempfile.TemporaryFile()

    def append(self, rows):
        """Writes the next rows, array [number, ...]; all must have one shape and one type."""
        if self._row is None:
            self.shape, self._dtype = rows.shape[1:], rows.dtype
            self._row = int(np.prod(self.shape)) * rows.dtype.itemsize
        if rows.shape[1:] != self.shape or rows.dtype != self._dtype:
            raise EkgError(f"`{self._what}` has examples of several shapes or types: {self.shape} of {self._dtype}, and "
                           f"{rows.shape[1:]} of {rows.dtype}; resize them to one.")
        try:
            self._file.write(np.ascontiguousarray(rows).data)
            self.count += len(rows)
        except OSError as error:
            raise EkgError(f"`{self._what}` is written to a file to be read in any order, and that failed "
                           f"({error.strerror}); make room, or set TMPDIR, or give an ekg.Data.") from None

    def finish(self):
        self._file.flush()

    def read(self, indices):
        """Returns the rows with these numbers; several threads may ask at once."""
        rows = np.empty((len(indices), *self.shape), self._dtype)
        views = rows.reshape(len(indices), -1).view(np.uint8) if self._row else rows
        for view, index in zip(views, np.asarray(indices).tolist()):
            if os.preadv(self._file.fileno(), [view], index * self._row) != self._row:
                raise EkgError(f"`{self._what}`: the file of its examples cannot be read any more; start again.")
        return rows
