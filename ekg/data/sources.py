"""A user's own data, whatever `fit` takes, as examples that are read by their numbers.

The method needs the same example again: its order is shuffled here, and the row of the memory bank
is its number. Arrays are read as they are. What comes in batches (tf.data.Dataset,
keras.utils.PyDataset) is written once to a file without a name in the system's folder for such
files (TMPDIR), which goes with the process, and read a second time to prove that it is the same
each time.
"""

import collections
import dataclasses
import numbers
import shutil
import tempfile
import zlib
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from ekg.data.spool import Spool
from ekg.errors import EkgError
from ekg.process import stopping
from ekg.process.progress import progress_bar

CHECKED_TOGETHER = (
    1024  # examples that are looked at for NaN at a time, so that no copy of all is made
)
COMPARED = 32  # examples in a row that are the first ones again where data begins again
FILLED = 0.9  # of the room for temporary files, beyond which data is taken for endless
PROBES = 4  # examples that are read twice of what is read by a user's function
FORMS = (
    "a pair (images, labels) of arrays, or (images, labels, weights), or images alone, a "
    "tf.data.Dataset or keras.utils.PyDataset of such batches, or an ekg.Data"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Labelled examples that are larger than memory, read by a function of the user's own.

        ekg.Data(labels, lambda indices: np.stack([load(files[i]) for i in indices]))

    Attributes:
        labels: of all examples, array [examples, ...]; of several outputs a list or dict of them;
            None where there are none.
        read: function from numbers of examples, int64 [number], to what the network takes of these,
            array [number, ...]. It must give the same whenever it is asked, also in several threads
            at once.
        count: number of examples, where there are no labels that tell it.
    """

    labels: np.ndarray | list | dict | None
    read: Callable
    count: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Examples as they were found: how they are read, and their labels in the form the user gave
    them.

    Attributes:
        read: function from numbers of examples to an array [number, ...].
        labels: array [examples, ...]; of several outputs a list or dict of them, with None where
            one has none; or None.
        shape: of one example.
        count: number of examples.
        weights: of the examples or of their places, array [examples, ...]; None where there are
            none.
    """

    read: Callable
    labels: np.ndarray | list | dict | None
    shape: tuple[int, ...]
    count: int
    weights: np.ndarray | None = None


def find_examples(source, input_shape, what="data", steps=None):
    """Returns the Examples of whatever `fit` takes.

    Args:
        source: see FORMS.
        input_shape: of one example as the network takes it, with None where any size will do.
        what: the argument's name, for errors.
        steps: batches to take of what comes in batches; None takes all.

    Raises:
        EkgError: it is none of these, has no labels, does not fit the network, or differs from one
            reading to the next.
    """
    comes_in_batches = isinstance(source, (tf.data.Dataset, keras.utils.PyDataset))
    if steps is not None and not comes_in_batches:
        raise EkgError(
            f"`steps_per_epoch` has no effect here: `{what}` does not come in batches; leave it "
            "out."
        )
    if isinstance(source, Data):
        examples = _of_function(source, what)
    elif isinstance(source, tf.data.Dataset):
        batches, may_be_endless = _tensorflow_batches(source, len(input_shape), what, steps)
        examples = _spooled(batches, what, may_be_endless)
    elif isinstance(source, keras.utils.PyDataset):
        numbers = range(_count_batches(source, what, steps))
        examples = _spooled(lambda: (source[number] for number in numbers), what)
    elif isinstance(source, (tuple, list)) and len(source) in (2, 3):
        examples = _of_arrays(*source[:2], what)
        examples = dataclasses.replace(examples, weights=_weights_of(source, examples.count, what))
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
    """Returns examples whose shape is the network's; an axis of one channel that is left out is put
    in.
    """
    shape, read = examples.shape, examples.read
    if len(shape) == len(input_shape) - 1 and input_shape[-1] == 1:
        shape = (*shape, 1)
        examples = dataclasses.replace(
            examples, read=lambda indices: read(indices)[..., None], shape=shape
        )
    if len(shape) != len(input_shape) or any(
        size not in (None, own) for size, own in zip(input_shape, shape)
    ):
        raise EkgError(
            f"`{what}` has examples of shape {shape}, and the network takes {tuple(input_shape)}; "
            "resize them, or build the network for them."
        )
    return examples


def _check_numbers(array, what):
    """Raises EkgError if an array cannot be what a network reads."""
    if array.dtype.kind in "OSU" and array.size and isinstance(array.flat[0], (str, bytes)):
        raise EkgError(
            f"`{what}` holds strings; let the layer that makes numbers of them, such as "
            "TextVectorization, work on the data before, and prune the network behind it."
        )
    if array.dtype.kind not in "biuf":
        raise EkgError(f"`{what}` must hold numbers; received {array.dtype}.")
    for start in range(
        0, len(array) if array.ndim and array.dtype.kind == "f" else 0, CHECKED_TOGETHER
    ):
        part = array[start : start + CHECKED_TOGETHER]
        if not np.isfinite(part).all():
            broken = start + int(
                np.flatnonzero(~np.isfinite(part).reshape(len(part), -1).all(axis=1))[0]
            )
            raise EkgError(
                f"`{what}` holds numbers that are not finite, NaN or infinite; the first in "
                f"example {broken} of {len(array)}. Leave such examples out."
            )


# ---------------------------------------------------------------- arrays and functions


def _single(value):
    """Returns the one entry of a dict of one, as a network of one input takes it by its name."""
    return next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else value


def _as_array(value, what):
    value = _single(value)
    if isinstance(value, dict) or (
        isinstance(value, (list, tuple)) and value and isinstance(value[0], (dict, np.ndarray))
    ):
        raise EkgError(
            f"`{what}` has several inputs or outputs an example; a network of one input is "
            "needed, and the labels of one output."
        )
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise EkgError(
            f"`{what}` cannot be taken as an array ({' '.join(str(error).split())})."
        ) from None


def _labels_of(value, what):
    """Returns labels as an array, or a list or dict of those of several outputs; None for None."""
    if isinstance(value, dict):
        return {name: _labels_of(own, what) for name, own in value.items()}
    are_arrays = isinstance(value, (list, tuple)) and any(
        own is None or len(getattr(own, "shape", ())) for own in value
    )
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
            raise EkgError(
                f"`{what}` has images of shape {images.shape} and labels of shape {own.shape}; "
                "give as many labels as images."
            )


def _of_arrays(images, labels, what):
    images, labels = _as_array(images, what), _labels_of(labels, what)
    _check_counts(images, labels, what)
    _check_numbers(images, what)
    count = len(images) if images.ndim else 0
    return Examples(lambda indices: images[indices], labels, images.shape[1:], count)


def _weights_of(entries, number, what):
    """Returns the weights in (images, labels, weights), array [number, ...], or None without
    any.
    """
    if not isinstance(entries, (tuple, list)) or len(entries) < 3 or entries[2] is None:
        return None
    weights = _as_array(entries[2], f"{what} weights")
    if weights.ndim == 0 or len(weights) != number:
        raise EkgError(
            f"`{what}` has weights of shape {weights.shape} and {number} labels; give as many."
        )
    return weights


def _of_function(data, what):
    labels = _labels_of(data.labels, what)
    counts = {len(own) for own in _arrays_of(labels)} | ({data.count} - {None})
    if len(counts) != 1:
        raise EkgError(
            f"`{what}`: an ekg.Data needs labels of all its examples, or their number as `count`; "
            f"received {sorted(counts) or 'neither'}."
        )
    (count,) = counts
    if not count:
        return Examples(data.read, labels, (), 0)
    probes = np.linspace(0, count - 1, min(PROBES, count)).astype(np.int64)
    first, second = (np.asarray(data.read(probes)) for _ in range(2))
    if first.shape[:1] != probes.shape:
        raise EkgError(
            f"`{what}`: its `read` was asked for {len(probes)} examples and gave an array of "
            f"shape {first.shape}."
        )
    _check_numbers(first, what)
    if first.shape != second.shape or not np.array_equal(first, second):
        raise EkgError(
            f"`{what}`: its `read` gives other numbers for the same examples when it is asked "
            "again; random views belong into `augment`."
        )
    return Examples(data.read, labels, first.shape[1:], count)


# ---------------------------------------------------------------- what comes in batches


def _tensorflow_batches(dataset, rank, what, steps):
    """Returns (function that gives the batches of a tf.data.Dataset from its beginning on, whether
    they may not end).
    """
    size = int(dataset.cardinality())
    if steps is None and size == tf.data.INFINITE_CARDINALITY:
        raise EkgError(f"`{what}` never ends; leave its repeat() out, or {_advice(what)}.")
    _check_steps(steps, size if size >= 0 else None, what)
    spec = dataset.element_spec
    if isinstance(spec, dict):
        raise EkgError(
            f"`{what}` gives dicts of {sorted(spec)}; map them to pairs (images, labels)."
        )
    parts = spec if isinstance(spec, (tuple, list)) and spec else (spec,)
    images, labels = _single(parts[0]), keras.tree.flatten(parts[1:])
    if (
        isinstance(images, tf.TensorSpec)
        and images.shape.rank is not None
        and images.shape.rank <= rank
    ):
        are_single = any(own.shape.rank == 0 for own in labels)
        are_single |= not labels and images.shape.rank > 0 and images.shape[0] is not None
        if images.shape.rank < rank or are_single:
            raise EkgError(f"`{what}` gives single examples; batch them with .batch(32).")
    if steps is not None:
        return dataset.take(steps).as_numpy_iterator, False
    return dataset.as_numpy_iterator, size == tf.data.UNKNOWN_CARDINALITY


def _count_batches(source, what, steps):
    """Returns how many batches to take of a keras.utils.PyDataset."""
    try:
        number = source.num_batches
    except (NotImplementedError, TypeError):  # it has no length, or returns None for it
        number = None
    if steps is None and number is None:
        raise EkgError(f"`{what}` has no length, so it never ends; {_advice(what)}.")
    _check_steps(steps, number, what)
    return number if steps is None else steps


def _advice(what):
    """Returns how to say how much of data that never ends is meant."""
    return (
        "say by `steps_per_epoch` how many batches of it are the data"
        if what == "data"
        else "give so many batches of it"
    )


def _check_steps(steps, number, what):
    """Raises EkgError unless `steps_per_epoch` is None or a number of batches that there are."""
    if steps is None:
        return
    if isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or steps < 1:
        raise EkgError(
            f"`steps_per_epoch` must be a whole number of at least 1; received {steps!r}."
        )
    if number is not None and steps > number:
        raise EkgError(f"`steps_per_epoch` is {steps}, and `{what}` has {number} batches.")


def _pair(batch, what):
    """Returns (images, labels) of a batch; labels are None where there are none."""
    if not isinstance(batch, (tuple, list)):
        batch = (batch,)
    if not batch:
        raise EkgError(f"`{what}` has an empty batch; give images, or (images, labels).")
    images = _as_array(batch[0], what)
    labels = _labels_of(batch[1], what) if len(batch) > 1 else None
    _check_numbers(images, what)
    if images.ndim == 0:
        raise EkgError(f"`{what}` has a batch whose images are a single number.")
    _check_counts(images, labels, what)
    return images, labels


def _spooled(batches, what, may_be_endless=False):
    """Returns the Examples of batches, in a file; reads them twice.

    Args:
        batches: function that gives an iterator over the batches from the first one on.
        what: the argument's name.
        may_be_endless: whether it is not known that they end.
    """
    spool, labels, weights, sums = Spool(what), [], [], []
    watch = _Watch(what) if may_be_endless else None
    with progress_bar(f"read {what}", None, "batch") as progress:
        for batch in batches():
            stopping.check()
            images, own = _pair(batch, what)
            weights.append(_weights_of(batch, len(images), what))
            checksum = _checksum(images, own, weights[-1])
            if not sums:  # at once, as what changes by itself may also never end
                _check_same(checksum, next(iter(batches()), None), what)
            if watch is not None:
                watch.see(images, own)
            spool.append(images)
            labels.append(own)
            sums.append(checksum)
            progress.update(1)
        again = 0
        for batch in batches():
            stopping.check()
            _check_same(sums[again] if again < len(sums) else None, batch, what)
            again += 1
            progress.update(1)
    if again != len(sums):
        raise EkgError(f"`{what}` gave {len(sums)} batches, and {again} when it was read again.")
    spool.finish()
    has_weights = {own is not None for own in weights}
    if len(has_weights) > 1:
        raise EkgError(f"`{what}` has weights in some batches and none in others.")
    weights = np.concatenate(weights) if has_weights == {True} else None
    return Examples(spool.read, _together(labels, what), spool.shape, spool.count, weights)


def _together(labels, what):
    """Returns the labels of all batches, a list of what _labels_of() gives, as those of one."""

    def joined(*parts):
        return None if parts[0] is None else np.concatenate(parts)

    try:
        return keras.tree.map_structure(joined, *labels) if labels else None
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EkgError(f"`{what}` has labels of several forms: {reason}") from None


def _check_same(checksum, batch, what):
    """Raises EkgError unless a batch has the checksum that it had before, None where there was
    none.
    """
    images, labels = (None, None) if batch is None else _pair(batch, what)
    if batch is None or checksum != _checksum(
        images, labels, _weights_of(batch, len(images), what)
    ):
        raise EkgError(
            f"`{what}` gives other examples when it is read again: it shuffles, or changes "
            "images, by itself. Pass it unshuffled, and random views as `augment`: the order is "
            "made here."
        )


class _Watch:
    """Notices that batches of unknown number do not end: they begin again, or fill the folder for
    temporary files.
    """

    def __init__(self, what):
        self._what, self._size, self._count = what, 0, 0
        self._first, self._last = [], collections.deque(maxlen=COMPARED)
        self._room = FILLED * shutil.disk_usage(tempfile.gettempdir()).free

    def see(self, images, labels):
        """Takes the next batch.

        Raises:
            EkgError: it is read for the second time, or there is no room for it.
        """
        advice = f"leave its repeat() out, or {_advice(self._what)}"
        for number, image in enumerate(images):
            self._last.append(_checksum(image, [own[number] for own in _arrays_of(labels)]))
            self._count += 1
            if len(self._first) < COMPARED:
                self._first.append(self._last[-1])
            elif len(set(self._first)) == COMPARED and list(self._last) == self._first:
                raise EkgError(
                    f"`{self._what}` begins again after {self._count - COMPARED} examples and may "
                    f"never end; {advice}."
                )
        self._size += images.nbytes
        if self._size > self._room:
            raise EkgError(
                f"`{self._what}` has not ended after {self._count} examples of {self._size:,} "
                f"bytes, which fill {tempfile.gettempdir()}; if it never ends, {advice}; else "
                "make room, or set TMPDIR."
            )


def _checksum(images, labels, weights=None):
    checksum = 0
    for array in (images, *_arrays_of([labels, weights])):
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return checksum
