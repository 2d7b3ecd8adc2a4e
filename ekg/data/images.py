"""A user's own images: a folder with one subfolder per class, an .npz file, or a TFDS data set."""

import collections
import functools
import logging
import os
import stat
import zipfile
from concurrent import futures
from pathlib import Path

import numpy as np
import tensorflow as tf

from ekg.data.headers import first_picture, is_webp, orientation, problem_of, reason_of, upright
from ekg.data.inputs import IMAGE_RANKS
from ekg.data.sources import Data
from ekg.errors import EkgError, escaped, first_line
from ekg.process.memory import MIB, machine_memory_mib

logger = logging.getLogger(__name__)

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
OTHER_ENDINGS = (  # images that TensorFlow cannot read
    ".avif",
    ".heic",
    ".heif",
    ".jfif",
    ".jp2",
    ".jxl",
    ".tif",
    ".tiff",
)
MOST_FILE_BYTES = 2**28  # size limit for an image file
TFDS = "tfds:"
# Names of arrays in an .npz file: inputs and labels; of several inputs or outputs, with their names
INPUTS, LABELS = "x", "y"
THREADS = 16


def load(path, image_shape, rescale=None, split="train", name="data_path", inputs=None, outputs=()):
    """Returns (data for ekg.prune, names of the classes or None).

    Args:
        path: folder, .npz file with the arrays x and y, or tfds:NAME.
        image_shape: (height, width, channels) of the network's input, to which images in files are
            resized; of several inputs a list of shapes.
        rescale: (low, high), the values for grey levels 0 and 255; None keeps grey levels.
        split: name of the split of a TFDS data set.
        name: name of the argument, for error messages.
        inputs: names of several inputs, under which, or as x_NAME, an .npz file holds their
            arrays; None for one.
        outputs: names of the outputs, under which, as y_NAME, it may hold labels of several.

    Raises:
        EkgError: the path does not hold such data.
    """
    if inputs is not None and Path(path).suffix != ".npz":
        needed = _needed(inputs, outputs)
        raise EkgError(f"`{name}` {path}: is no .npz file; it needs one with the arrays {needed}.")
    if str(path).startswith(TFDS):
        return _load_tfds(str(path)[len(TFDS) :], split, image_shape, rescale), None
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, image_shape, rescale, name)
    if path.suffix != ".npz":
        raise EkgError(
            f"`{name}` {path}: no such folder with one subfolder per class, no .npz file, and not "
            f"{TFDS}NAME."
        )
    arrays, labels = _read_arrays(path, inputs, outputs, name)
    if inputs is None:
        return (_rescaled(arrays[0], rescale), labels), None
    return (
        {
            key: _rescaled(array, rescale if len(shape) + 1 in IMAGE_RANKS else None)
            for key, array, shape in zip(inputs, arrays, image_shape)
        },
        labels,
    ), None


def _read_arrays(path, inputs, outputs, name):
    """Returns (list of the arrays of the inputs, labels) in an .npz file; see load().

    The labels are an array, or {name of an output: array}.
    """
    if not path.is_file():
        raise EkgError(f"`{name}` {path}: there is no plain file of that name.")
    try:
        _check_unpacked(path, name)
        with np.load(path, allow_pickle=False) as arrays:
            try:
                keys = _input_keys(arrays.files, inputs, outputs)
                label_keys = _label_keys(arrays.files, inputs, outputs)
            except LookupError as error:
                raise EkgError(f"`{name}` {path}: holds {arrays.files}; {error.args[0]}.") from None
            labels = (
                arrays[LABELS]
                if label_keys is None
                else {output: arrays[key] for output, key in label_keys.items()}
            )
            return [arrays[key] for key in keys], labels
    except EkgError:
        raise
    except Exception as error:  # NumPy and zipfile may raise anything for a damaged file
        raise EkgError(f"`{name}` {path}: cannot be read ({first_line(error)}).") from None


def _input_keys(files, inputs, outputs):
    """Returns the names of the arrays of the inputs.

    Args:
        files: names of all arrays.
        inputs, outputs: see load().

    Raises:
        LookupError: one is missing; says what is needed.
    """
    keys = [INPUTS]
    if inputs is not None:
        keys = [_input_key(name, inputs, outputs, files) for name in inputs]
    if not set(keys) <= set(files):
        raise LookupError(f"it needs the arrays {_needed(inputs, outputs)}")
    return keys


def _input_key(name, inputs, outputs, files=()):
    """Returns the name of the array of one of several inputs: its own, or that with x_ before it
    where that is there, or where its own is that of labels.
    """
    long_name = f"{INPUTS}_{name}"
    is_there = long_name in files and long_name not in inputs
    is_label = name == LABELS or name in [f"{LABELS}_{output}" for output in outputs]
    return long_name if is_there or is_label else name


def _label_keys(files, inputs, outputs):
    """Returns {name of an output: name of the array of its labels}, or None where LABELS holds
    the labels of the only output with labels.

    Args:
        files: names of all arrays.
        inputs, outputs: see load().

    Raises:
        LookupError: there are none, or they are ambiguous; says what is needed.
    """
    input_keys = _input_keys(files, inputs, outputs)
    others = [key for key in files if key not in input_keys]
    keys = {key.removeprefix(f"{LABELS}_"): key for key in others if key.startswith(f"{LABELS}_")}
    unknown = [key for output, key in keys.items() if output not in outputs]
    if unknown:
        raise LookupError(f"the network has no output for {unknown[0]}, but {', '.join(outputs)}")
    if keys and LABELS in others:
        raise LookupError(f"{LABELS} and {next(iter(keys.values()))} exclude each other")
    if not keys and LABELS not in others:
        raise LookupError(f"it needs the arrays {_needed(inputs, outputs)}")
    return keys or None


def _needed(inputs, outputs):
    """Returns which arrays an .npz file needs, in words."""
    labels = f"{LABELS}, labels"
    if len(outputs) > 1:
        names = ", ".join(f"{LABELS}_{output}" for output in outputs)
        labels += f", or one or more of {names}"
    if inputs is None:
        return f"{INPUTS}, images, and {labels}"
    names = ", ".join(_input_key(name, inputs, outputs) for name in inputs)
    return f"{names}, the network's inputs, and {labels}"


def _check_unpacked(path, name):
    """Raises EkgError if the arrays of an .npz file do not fit this machine's memory."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > machine_memory_mib() * MIB:
        raise EkgError(
            f"`{name}` {path}: its arrays take {size:,} bytes of memory, more than this machine "
            "has; give the images as files."
        )


def _rescaled(images, rescale):
    """Maps grey levels 0 to 255 to the range `rescale`, float32; None returns the images as is."""
    if rescale is None:
        return images
    low, high = rescale
    return np.asarray(images, np.float32) * np.float32((high - low) / 255) + np.float32(low)


# ---------------------------------------------------------------- folders


def _load_folder(path, image_shape, rescale, name):
    if None in image_shape[:2]:
        raise EkgError(
            f"`{name}` {path}: the network leaves the size of its images open; say which with "
            "`image_size`."
        )
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        classes = [entry.name for entry in entries if _is_class(entry)]
        files_of = {class_name: _files_below(path / class_name) for class_name in classes}
    except OSError as error:
        raise EkgError(
            f"`{name}` {error.filename}: cannot be read ({error.strerror}); allow it, or remove it."
        ) from None
    outside = [entry.name for entry in entries if _ending(entry.name) in ENDINGS]
    outside = [file for file in outside if file not in classes]
    if outside:
        logger.warning(
            "`%s` %s: %d of its images are in no folder of a class and left out, as %s.",
            name,
            path,
            len(outside),
            escaped(outside[0]),
        )
    files = []
    labels = []
    unreadable = collections.Counter()
    for label, class_name in enumerate(classes):
        images = sorted(file for file in files_of[class_name] if _ending(file) in ENDINGS)
        endings = map(_ending, files_of[class_name])
        unreadable.update(ending for ending in endings if ending in OTHER_ENDINGS)
        if not images:
            raise EkgError(
                f"`{name}` {path / escaped(class_name)}: holds no images "
                f"({', '.join(ENDINGS)}); remove the folder, or fill it."
            )
        files += images
        labels += [label] * len(images)
    if len(classes) < 2:
        raise EkgError(
            f"`{name}` {path}: holds {len(classes)} subfolders; it needs one for each class, at "
            "least two."
        )
    if unreadable:
        logger.warning(
            "`%s` %s: %d images are left out, as TensorFlow cannot read them (%s); save them as "
            "PNG or JPEG.",
            name,
            path,
            unreadable.total(),
            ", ".join(f"{count} {ending}" for ending, count in sorted(unreadable.items())),
        )
    read = functools.partial(_read_files, files, tuple(image_shape), rescale)
    return Data(np.array(labels, np.int32), read), classes


def _ending(file):
    return os.path.splitext(file)[1].lower()


def _is_class(entry):
    return entry.is_dir() and not entry.name.startswith(".")


def _files_below(folder):
    """Returns the paths of all files in a folder and its subfolders, linked ones included.

    Raises:
        OSError: a folder cannot be read.
    """

    def fail(error):
        raise error

    files = []
    seen = set()
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        state = os.stat(place)
        if (state.st_dev, state.st_ino) in seen:  # a link back, or a second one to a folder
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders.sort()
        files += [os.path.join(place, name) for name in names]
    return files


def _read_files(files, image_shape, rescale, indices):
    """Reads images, resized and rescaled, as float32 [n, height, width, channels]."""
    with futures.ThreadPoolExecutor(min(THREADS, max(len(indices), 1))) as pool:
        images = list(pool.map(lambda index: _read_file(files[index], image_shape), indices))
    return _rescaled(np.stack(images), rescale)


def _read_file(file, image_shape):
    """Reads an image, turned upright and resized, as float32 [height, width, channels]."""
    height, width, channels = image_shape
    data = _read_bytes(file)
    problem = problem_of(data)
    if problem:
        raise EkgError(
            f"{escaped(file)}: is not decoded: {problem}; save it as PNG, smaller if it is too "
            "large, or remove it."
        )
    try:
        with tf.device("CPU"):
            image = _decode(data, channels or 3)
            exif_orientation = orientation(data)
            if exif_orientation != 1:
                image = upright(image.numpy(), exif_orientation)
            return tf.image.resize(image, (height, width)).numpy()
    except tf.errors.OpError as error:
        raise EkgError(
            f"{escaped(file)}: cannot be read as an image ({reason_of(error)}); put a good copy "
            "there, or remove it."
        ) from None


def _decode(data, channels):
    """Decodes the contents of an image file to uint8 [height, width, channels]."""
    if not is_webp(data):
        return tf.io.decode_image(data, channels=channels, expand_animations=False)
    animation = first_picture(data)
    image = tf.io.decode_webp(data) if animation is None else tf.io.decode_webp(animation, 4)
    image = image[0]  # the only picture
    if channels == 4:
        if image.shape[-1] == 4:
            return image
        return tf.pad(image, [[0, 0], [0, 0], [0, 1]], constant_values=255)
    image = image[..., :3]
    return tf.image.rgb_to_grayscale(image) if channels == 1 else image


def _read_bytes(file):
    """Returns the contents of an image file; refuses pipes and devices, which may never end."""
    try:
        state = os.stat(file)
        if not stat.S_ISREG(state.st_mode):
            raise EkgError(f"{escaped(file)}: is no plain file; remove it.")
        if state.st_size > MOST_FILE_BYTES:
            raise EkgError(
                f"{escaped(file)}: takes {state.st_size:,} bytes, more than {MOST_FILE_BYTES:,}; "
                "make it smaller, or remove it."
            )
        return Path(file).read_bytes()
    except OSError as error:
        raise EkgError(
            f"{escaped(file)}: cannot be read ({error.strerror}); put a good copy there, or remove "
            "it."
        ) from None


# ---------------------------------------------------------------- TensorFlow Datasets


def _load_tfds(name, split, image_shape, rescale):
    """Returns a tf.data.Dataset of resized images, in the order of its files."""
    try:
        import tensorflow_datasets
    except ModuleNotFoundError:
        raise EkgError(
            f"{TFDS}{name} needs the package tensorflow_datasets; install it with: pip install "
            "tensorflow-datasets"
        ) from None
    try:
        dataset = tensorflow_datasets.load(
            name, split=split, as_supervised=True, shuffle_files=False
        )
    except Exception as error:  # the package may raise anything
        raise EkgError(f"{TFDS}{name}: cannot be loaded ({first_line(error)}).") from None

    def fit(image, label):
        image = tf.image.resize(image, image_shape[:2])
        low, high = rescale or (0.0, 255.0)
        return image * ((high - low) / 255) + low, label

    return dataset.map(fit).batch(128)
