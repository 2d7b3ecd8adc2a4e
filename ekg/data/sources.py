"""Turns any data that `fit` takes into examples that can be read by number.

The method reads the same example many times: the library shuffles the order itself, and the number
of an example is its row in the memory bank. Arrays are read in place. Data that comes in batches
(tf.data.Dataset, keras.utils.PyDataset) is written once to an unnamed temporary file (see TMPDIR),
which vanishes with the process, and is then read a second time to verify that it is repeatable.
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

from ekg.data.inputs import as_text, content_of, is_text, num_bytes
from ekg.data.spool import Spool, TextSpool
from ekg.errors import EkgError
from ekg.process import stopping
from ekg.process.progress import progress_bar

CHECKED_TOGETHER = 1024  # examples per NaN check, which needs temporary memory for them
COMPARED = 32  # data is taken to repeat where this many examples in a row equal the first ones
FILLED = 0.9  # share of the free space for temporary files at which data is taken to be endless
PROBES = 4  # examples that are read twice to test a user's read function
FORMS = (
    "a pair (images, labels) of arrays, or (images, labels, weights), or images alone, a "
    "tf.data.Dataset or keras.utils.PyDataset of such batches, or an ekg.Data"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Labelled examples that do not fit into memory, read by the user's own function.

        ekg.Data(labels, lambda indices: np.stack([load(files[i]) for i in indices]))

    Attributes:
        labels: labels of all examples, array [examples, ...]; a list or dict of such arrays for
            several outputs; None without labels.
        read: function that takes the numbers of examples, int64 [n], and returns the network's
            inputs, array [n, ...], or a dict or tuple of such arrays for several inputs. It must
            always return the same for the same numbers, and may be called by several threads at
            once.
        count: number of examples; needed only without labels.
        weights: weights of the examples or of their places, array [examples, ...], as `fit` takes
            them as sample_weight; a list or dict of such arrays, or of None, by output; None
            without weights.
    """

    labels: np.ndarray | list | dict | None
    read: Callable
    count: int | None = None
    weights: np.ndarray | list | dict | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Examples with a function that reads them, and their labels in the form the user gave them.

    Attributes:
        read: function from the numbers of examples to an array [n, ...], or to the structure of
            such arrays that the network takes.
        labels: array [examples, ...]; for several outputs a list or dict of such arrays, or of
            None for an output without labels; or None.
        shapes: tuple of the shape of each input for one example.
        count: number of examples.
        weights: weights of the examples or of their positions, array [examples, ...]; a list or
            dict of such arrays, or of None, by output; None without weights.
    """

    read: Callable
    labels: np.ndarray | list | dict | None
    shapes: tuple[tuple[int, ...], ...]
    count: int
    weights: np.ndarray | list | dict | None = None


def find_examples(source, inputs, what="data", steps=None):
    """Returns the Examples of any data that `fit` takes.

    Args:
        source: data in one of the FORMS.
        inputs: inputs.Inputs of the network, with None for open sizes.
        what: name of the argument, for error messages.
        steps: number of batches to take from data that comes in batches; None takes all.

    Raises:
        EkgError: the data has another form, does not fit the network, or changes from one reading
            to the next.
    """
    comes_in_batches = isinstance(source, (tf.data.Dataset, keras.utils.PyDataset))
    if steps is not None and not comes_in_batches:
        raise EkgError(
            f"`steps_per_epoch` has no effect here: `{what}` does not come in batches; leave it "
            "out."
        )
    if isinstance(source, Data):
        examples = _of_function(source, inputs, what)
    elif isinstance(source, tf.data.Dataset):
        batches, may_be_endless = _tensorflow_batches(source, inputs, what, steps)
        examples = _spooled(batches, inputs, what, may_be_endless)
    elif isinstance(source, keras.utils.PyDataset):
        batch_numbers = range(_count_batches(source, what, steps))
        examples = _spooled(lambda: (source[number] for number in batch_numbers), inputs, what)
    elif isinstance(source, (tuple, list)) and len(source) in (2, 3):
        examples = _of_arrays(*source[:2], inputs, what)
        weights = _weights_of(source, examples.count, what)
        examples = dataclasses.replace(examples, weights=weights)
    elif isinstance(source, (np.ndarray, tf.Tensor)) or _are_inputs_alone(source, inputs):
        examples = _of_arrays(source, None, inputs, what)
    else:
        raise EkgError(f"`{what}` must be {FORMS}; received {_described(source)}.")
    if not examples.count:
        raise EkgError(f"`{what}` holds no examples.")
    return _fitted(examples, inputs, what)


def _are_inputs_alone(source, inputs):
    """Returns whether a dict holds the several inputs of a network, and not labels as well."""
    return isinstance(source, dict) and inputs.are_several


def _described(source):
    if isinstance(source, (tuple, list)):
        return f"a {type(source).__name__} of {len(source)} entries"
    return f"an object of type {type(source).__name__}"


def _fitted(examples, inputs, what):
    """Returns the Examples in the structure that the network takes, adding missing channel axes."""
    lacking = [
        _lacks_channels(*entry)
        for entry in zip(examples.shapes, inputs.shapes, inputs.subjects(what))
    ]
    read = examples.read

    def fitted(indices):
        arrays = zip(map(np.asarray, read(indices)), lacking)
        return inputs.packed(array[..., None] if lacks else array for array, lacks in arrays)

    shapes = tuple(
        (*shape, 1) if lacks else tuple(shape) for shape, lacks in zip(examples.shapes, lacking)
    )
    return dataclasses.replace(examples, read=fitted, shapes=shapes)


def _lacks_channels(shape, expected, subject):
    """Returns whether examples of an input lack the channel axis of size 1.

    Raises:
        EkgError: they have another shape.
    """
    lacks = len(shape) == len(expected) - 1 and expected[-1] == 1
    sizes = (*shape, 1) if lacks else shape
    if len(sizes) != len(expected) or any(
        own not in (None, size) for own, size in zip(expected, sizes)
    ):
        raise EkgError(
            f"{subject} has examples of shape {sizes}, and the network takes {tuple(expected)}; "
            "resize them, or build the network for them."
        )
    return lacks


def _checked(arrays, inputs, what):
    """Returns a list of one array per input, texts as bytes objects.

    Raises:
        EkgError: an array does not hold what its input reads: finite numbers, or strings.
    """
    checked = []
    for array, dtype, subject in zip(arrays, inputs.dtypes, inputs.subjects(what)):
        if dtype != "string":
            _check_numbers(array, subject)
            checked.append(array)
        elif is_text(array) or not array.size:
            checked.append(as_text(array))
        else:
            raise EkgError(f"{subject} must hold strings; received {array.dtype}.")
    return checked


def _check_numbers(array, subject):
    """Raises EkgError unless an array holds finite numbers, which a network can read."""
    if is_text(array):
        raise EkgError(
            f"{subject} holds strings; let the layer that makes numbers of them, such as "
            "TextVectorization, work on the data first, and prune the network after it."
        )
    if array.dtype.kind not in "biuf":
        raise EkgError(f"{subject} must hold numbers; received {array.dtype}.")
    if array.dtype.kind != "f" or not array.ndim:
        return
    for start in range(0, len(array), CHECKED_TOGETHER):
        part = array[start : start + CHECKED_TOGETHER]
        if part.dtype.itemsize > np.dtype(np.float32).itemsize:
            with np.errstate(over="ignore"):  # networks read float32
                part = part.astype(np.float32)
        is_finite = np.isfinite(part)
        if not is_finite.all():
            is_whole = is_finite.reshape(len(part), -1).all(axis=1)
            broken = start + int(np.flatnonzero(~is_whole)[0])
            raise EkgError(
                f"{subject} holds numbers that are not finite, NaN or infinite; the first in "
                f"example {broken} of {len(array)}. Leave such examples out."
            )


# ---------------------------------------------------------------- arrays and functions


def _single(value):
    """Unpacks a dict of one entry, as networks of one input accept it."""
    return next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else value


def _as_array(value, subject):
    value = _single(value)
    if isinstance(value, dict) or (
        isinstance(value, (list, tuple)) and value and isinstance(value[0], (dict, np.ndarray))
    ):
        raise EkgError(
            f"{subject} has several arrays per example; one array is needed for every input and "
            "for the labels of one output."
        )
    if isinstance(value, tf.SparseTensor):
        value = tf.sparse.to_dense(value)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise EkgError(
            f"{subject} cannot be taken as an array ({' '.join(str(error).split())})."
        ) from None
    if array.dtype == object and not array.ndim:
        raise EkgError(
            f"{subject} is a {type(value).__name__}, which is no array; make a dense array of it."
        )
    return array


def _input_arrays(given, inputs, what):
    """Returns a list of one array per input of what a user gave for all inputs."""
    subjects = inputs.subjects(what)
    values = inputs.listed(given, what)
    arrays = [_as_array(value, subject) for value, subject in zip(values, subjects)]
    first = arrays[0]
    for name, array in zip(inputs.names, arrays):
        if array.shape[:1] != first.shape[:1]:
            raise EkgError(
                f"`{what}`, input {inputs.names[0]!r}, has the shape {first.shape}, and input "
                f"{name!r} {array.shape}; give as many examples in every input."
            )
    return arrays


def _labels_of(value, what, kind="labels"):
    """Returns labels as an array, or as a list or dict of arrays for several outputs, or None.

    Args:
        value: what a user gave.
        what: name of the argument, for error messages.
        kind: what the arrays hold, "labels" or "weights".
    """
    if value is None:
        return None
    if isinstance(value, dict):
        return {name: _labels_of(entry, what, kind) for name, entry in value.items()}
    are_arrays = isinstance(value, (list, tuple)) and any(
        entry is None or len(getattr(entry, "shape", ())) for entry in value
    )
    if are_arrays:
        return [_labels_of(entry, what, kind) for entry in value]
    return _as_array(value, f"{kind} of `{what}`")


def _arrays_of(labels):
    """Returns the list of all arrays in labels."""
    return [array for array in keras.tree.flatten(labels) if array is not None]


def _check_counts(images, labels, what):
    """Raises EkgError unless every output has as many labels as there are images."""
    for array in _arrays_of(labels):
        if images.ndim == 0 or array.ndim == 0 or len(images) != len(array):
            raise EkgError(
                f"`{what}` has images of shape {images.shape} and labels of shape {array.shape}; "
                "give as many labels as images."
            )


def _of_arrays(given, labels, inputs, what):
    arrays = _input_arrays(given, inputs, what)
    labels = _labels_of(labels, what)
    _check_counts(arrays[0], labels, what)
    arrays = _checked(arrays, inputs, what)
    count = len(arrays[0]) if arrays[0].ndim else 0
    return Examples(
        lambda indices: [array[indices] for array in arrays],
        labels,
        tuple(array.shape[1:] for array in arrays),
        count,
    )


def _weights_of(entries, count, what):
    """Returns the weights in (images, labels, weights) in the form of labels, or None."""
    if not isinstance(entries, (tuple, list)) or len(entries) < 3:
        return None
    return _checked_weights(entries[2], count, what)


def _checked_weights(given, count, what):
    """Returns weights, which a user gave, in the form of labels.

    Raises:
        EkgError: an array has another length than `count`.
    """
    weights = _labels_of(given, what, "weights")
    for array in _arrays_of(weights):
        if array.ndim == 0 or len(array) != count:
            raise EkgError(
                f"`{what}` has weights of shape {array.shape} and {count} labels; give one per "
                "label."
            )
    return weights


def _of_function(data, inputs, what):
    labels = _labels_of(data.labels, what)
    counts = {len(array) for array in _arrays_of(labels)} | ({data.count} - {None})
    if len(counts) != 1:
        raise EkgError(
            f"`{what}`: an ekg.Data needs labels of all its examples, or their number as `count`; "
            f"received {sorted(counts) or 'neither'}."
        )
    (count,) = counts

    def read(indices):
        return list(map(_text_as_bytes, inputs.listed(data.read(indices), what)))

    weights = _checked_weights(data.weights, count, what)
    if not count:
        return Examples(read, labels, (), 0)
    probes = np.linspace(0, count - 1, min(PROBES, count)).astype(np.int64)
    first, second = (list(map(np.asarray, read(probes))) for _ in range(2))
    for array in first:
        if array.shape[:1] != probes.shape:
            raise EkgError(
                f"`{what}`: its `read` was asked for {len(probes)} examples and gave an array of "
                f"shape {array.shape}."
            )
    _checked(first, inputs, what)
    if not all(
        a.shape == b.shape and np.array_equal(a, b) for a, b in zip(first, second, strict=True)
    ):
        raise EkgError(
            f"`{what}`: its `read` gives other numbers for the same examples when it is asked "
            "again; random views belong into `augment`."
        )
    return Examples(read, labels, tuple(array.shape[1:] for array in first), count, weights)


def _text_as_bytes(values):
    array = np.asarray(values)
    return as_text(array) if is_text(array) else array


# ---------------------------------------------------------------- what comes in batches


def _tensorflow_batches(dataset, inputs, what, steps):
    """Returns (function, whether the batches may be endless) for a tf.data.Dataset.

    Each call of the function returns an iterator over the batches, from the first one.
    """
    size = int(dataset.cardinality())
    if steps is None and size == tf.data.INFINITE_CARDINALITY:
        raise EkgError(f"`{what}` never ends; leave its repeat() out, or {_advice(what)}.")
    _check_steps(steps, size if size >= 0 else None, what)
    spec = dataset.element_spec
    if isinstance(spec, dict) and not _are_inputs_alone(spec, inputs):
        raise EkgError(
            f"`{what}` gives dicts of {sorted(spec)}; map them to pairs (images, labels)."
        )
    parts = spec if isinstance(spec, (tuple, list)) and spec else (spec,)
    labels = keras.tree.flatten(parts[1:])
    for values, shape in zip(inputs.listed(parts[0], what), inputs.shapes):
        has_rank = isinstance(values, tf.TensorSpec) and values.shape.rank is not None
        if has_rank and values.shape.rank <= len(shape):
            are_single = any(label.shape.rank == 0 for label in labels)
            are_single |= not labels and values.shape.rank > 0 and values.shape[0] is not None
            if values.shape.rank < len(shape) or are_single:
                raise EkgError(f"`{what}` gives single examples; batch them with .batch(32).")
    if steps is not None:
        return dataset.take(steps).as_numpy_iterator, False
    return dataset.as_numpy_iterator, size == tf.data.UNKNOWN_CARDINALITY


def _count_batches(source, what, steps):
    """Returns how many batches to take from a keras.utils.PyDataset."""
    try:
        num_batches = source.num_batches
    except (NotImplementedError, TypeError):  # it has no length, or returns None for it
        num_batches = None
    if steps is None and num_batches is None:
        raise EkgError(f"`{what}` has no length, so it never ends; {_advice(what)}.")
    _check_steps(steps, num_batches, what)
    return num_batches if steps is None else steps


def _advice(what):
    """Returns the advice for data that never ends: how to limit it."""
    if what == "data":
        return "say by `steps_per_epoch` how many batches of it are the data"
    return "limit the number of its batches"


def _check_steps(steps, num_batches, what):
    """Raises EkgError unless `steps_per_epoch` is None or at most the number of batches."""
    if steps is None:
        return
    if isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or steps < 1:
        raise EkgError(
            f"`steps_per_epoch` must be a whole number of at least 1; received {steps!r}."
        )
    if num_batches is not None and steps > num_batches:
        raise EkgError(f"`steps_per_epoch` is {steps}, and `{what}` has {num_batches} batches.")


def _pair(batch, inputs, what):
    """Returns (list of one array per input, labels) of a batch, with None for missing labels."""
    if not isinstance(batch, (tuple, list)):
        batch = (batch,)
    if not 1 <= len(batch) <= 3:
        raise EkgError(
            f"`{what}` has batches of {len(batch)} entries; give images, (images, labels), or "
            "(images, labels, weights)."
        )
    arrays = _input_arrays(batch[0], inputs, what)
    labels = _labels_of(batch[1], what) if len(batch) > 1 else None
    arrays = _checked(arrays, inputs, what)
    if arrays[0].ndim == 0:
        raise EkgError(f"`{what}` has a batch whose images are a single number.")
    _check_counts(arrays[0], labels, what)
    return arrays, labels


def _spooled(batches, inputs, what, may_be_endless=False):
    """Returns the Examples of batches, written to temporary files and read twice to compare.

    Args:
        batches: function whose calls return an iterator over the batches, from the first one.
        inputs: inputs.Inputs of the network.
        what: name of the argument, for error messages.
        may_be_endless: whether the number of batches is unknown.
    """
    spools = [
        (TextSpool if dtype == "string" else Spool)(subject)
        for dtype, subject in zip(inputs.dtypes, inputs.subjects(what))
    ]
    labels, weights, checksums = [], [], []
    watch = _Watch(what) if may_be_endless else None
    with progress_bar(f"read {what}", None, "batch") as progress:
        for batch in batches():
            stopping.check()
            arrays, batch_labels = _pair(batch, inputs, what)
            batch_weights = _weights_of(batch, len(arrays[0]), what)
            checksum = _checksum(arrays, batch_labels, batch_weights)
            if not checksums:  # at once, since data that changes by itself may never end
                _check_same(checksum, next(iter(batches()), None), inputs, what)
            if watch is not None:
                watch.see(arrays, batch_labels)
            for spool, array in zip(spools, arrays):
                spool.append(array)
            labels.append(batch_labels)
            weights.append(batch_weights)
            checksums.append(checksum)
            progress.update(1)

        num_read_again = 0
        for batch in batches():
            stopping.check()
            is_extra = num_read_again >= len(checksums)
            _check_same(None if is_extra else checksums[num_read_again], batch, inputs, what)
            num_read_again += 1
            progress.update(1)
    if num_read_again != len(checksums):
        raise EkgError(
            f"`{what}` gave {len(checksums)} batches, and {num_read_again} when it was read again."
        )
    for spool in spools:
        spool.finish()
    has_weights = {array is not None for array in weights}
    if len(has_weights) > 1:
        raise EkgError(f"`{what}` has weights in some batches and none in others.")
    return Examples(
        lambda indices: [spool.read(indices) for spool in spools],
        _concatenated(labels, what),
        tuple(spool.shape for spool in spools),
        spools[0].count,
        _concatenated(weights, what, "weights"),
    )


def _concatenated(labels, what, kind="labels"):
    """Concatenates labels of all batches, or weights; each as _labels_of() returns it."""

    def joined(*parts):
        return None if parts[0] is None else np.concatenate(parts)

    try:
        return keras.tree.map_structure(joined, *labels) if labels else None
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EkgError(f"`{what}` has {kind} of several forms: {reason}") from None


def _check_same(checksum, batch, inputs, what):
    """Raises EkgError unless a batch has this checksum; None for either means a missing batch."""
    is_same = False
    if batch is not None:
        arrays, labels = _pair(batch, inputs, what)
        weights = _weights_of(batch, len(arrays[0]), what)
        is_same = checksum == _checksum(arrays, labels, weights)
    if not is_same:
        raise EkgError(
            f"`{what}` gives other examples when it is read again: it shuffles, or changes "
            "images, by itself. Pass it unshuffled, and random views as `augment`: the order is "
            "made here."
        )


class _Watch:
    """Detects endless data: it begins again from the start, or fills the temporary folder."""

    def __init__(self, what):
        self._what = what
        self._size = 0  # bytes so far
        self._count = 0  # examples so far
        self._first = []  # checksums of the first COMPARED examples
        self._last = collections.deque(maxlen=COMPARED)
        self._room = FILLED * shutil.disk_usage(tempfile.gettempdir()).free

    def see(self, arrays, labels):
        """Examines the next batch: a list of one array per input, and labels.

        Raises:
            EkgError: the data has begun again, or there is no room for more.
        """
        advice = f"leave its repeat() out, or {_advice(self._what)}"
        for number in range(len(arrays[0])):
            example = [array[number : number + 1] for array in arrays]
            example_labels = [array[number] for array in _arrays_of(labels)]
            self._last.append(_checksum(example, example_labels))
            self._count += 1
            if len(self._first) < COMPARED:
                self._first.append(self._last[-1])
            elif len(set(self._first)) == COMPARED and list(self._last) == self._first:
                raise EkgError(
                    f"`{self._what}` begins again after {self._count - COMPARED} examples and may "
                    f"never end; {advice}."
                )
        self._size += num_bytes(arrays)
        if self._size > self._room:
            raise EkgError(
                f"`{self._what}` has not ended after {self._count} examples of {self._size:,} "
                f"bytes, which fill {tempfile.gettempdir()}; if it never ends, {advice}; else "
                "make room, or set TMPDIR."
            )


def _checksum(arrays, labels, weights=None):
    checksum = 0
    for array in (*arrays, *_arrays_of([labels, weights])):
        checksum = zlib.crc32(content_of(np.asarray(array)), checksum)
    return checksum
