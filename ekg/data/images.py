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

from ekg.data.headers import is_webp, orientation, problem_of, reason_of, upright
from ekg.data.inputs import IMAGE_RANKS
from ekg.data.sources import Data
from ekg.errors import EkgError, first_line
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
LABELS = "y"  # name of the labels in an .npz file
THREADS = 16


def load(path, image_shape, rescale=None, split="train", name="data_path", inputs=None):
    """Returns (data for ekg.prune, names of the classes or None).

    Args:
        path: folder, .npz file with the arrays x and y, or tfds:NAME.
        image_shape: (height, width, channels) of the network's input, to which images in files are
            resized; of several inputs a list of shapes.
        rescale: (low, high), the values for grey levels 0 and 255; None keeps grey levels.
        split: name of the split of a TFDS data set.
        name: name of the argument, for error messages.
        inputs: names of several inputs, under which an .npz file holds their arrays; None for one.

    Raises:
        EkgError: the path does not hold such data.
    """
    if inputs is not None:
        return _load_inputs(path, inputs, image_shape, rescale, name), None
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
    images, labels = _read_arrays(path, ("x", LABELS), "x, images, and y, labels", name)
    return (_rescaled(images, rescale), labels), None


def _load_inputs(path, inputs, shapes, rescale, name):
    """Returns ({name of an input: its array}, labels) from an .npz file."""
    needed = f"{', '.join(inputs)}, the network's inputs, and {LABELS}, labels"
    if LABELS in inputs:
        raise EkgError(
            f"`{name}` {path}: the network has an input {LABELS!r}, the name of the labels; give "
            "the data to ekg.prune in a program of your own."
        )
    if Path(path).suffix != ".npz":
        raise EkgError(f"`{name}` {path}: is no .npz file; it needs one with the arrays {needed}.")
    *arrays, labels = _read_arrays(Path(path), (*inputs, LABELS), needed, name)
    return {
        key: _rescaled(array, rescale if len(shape) + 1 in IMAGE_RANKS else None)
        for key, array, shape in zip(inputs, arrays, shapes)
    }, labels


def _read_arrays(path, keys, needed, name):
    """Returns a list of the arrays with these names in an .npz file."""
    if not path.is_file():
        raise EkgError(f"`{name}` {path}: there is no plain file of that name.")
    try:
        _check_unpacked(path, name)
        with np.load(path, allow_pickle=False) as arrays:
            if not set(keys) <= set(arrays.files):
                raise EkgError(
                    f"`{name}` {path}: holds {arrays.files}; it needs the arrays {needed}."
                )
            return [arrays[key] for key in keys]
    except EkgError:
        raise
    except Exception as error:  # NumPy and zipfile may raise anything for a damaged file
        raise EkgError(f"`{name}` {path}: cannot be read ({first_line(error)}).") from None


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
    classes = sorted(
        entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    files = []
    labels = []
    unreadable = collections.Counter()
    for label, class_name in enumerate(classes):
        class_files = [file for file in (path / class_name).rglob("*") if not file.is_dir()]
        images = sorted(str(file) for file in class_files if file.suffix.lower() in ENDINGS)
        endings = [file.suffix.lower() for file in class_files]
        unreadable.update(ending for ending in endings if ending in OTHER_ENDINGS)
        if not images:
            raise EkgError(
                f"`{name}` {path / class_name}: holds no images ({', '.join(ENDINGS)}); remove "
                "the folder, or fill it."
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
        raise EkgError(f"{file}: is not decoded: {problem}; make it smaller, or remove it.")
    try:
        with tf.device("CPU"):
            image = _decode(data, channels or 3)
            exif_orientation = orientation(data)
            if exif_orientation != 1:
                image = upright(image.numpy(), exif_orientation)
            return tf.image.resize(image, (height, width)).numpy()
    except tf.errors.OpError as error:
        raise EkgError(
            f"{file}: cannot be read as an image ({reason_of(error)}); put a good copy there, or "
            "remove it."
        ) from None


def _decode(data, channels):
    """Decodes the contents of an image file to uint8 [height, width, channels]."""
    if not is_webp(data):
        return tf.io.decode_image(data, channels=channels, expand_animations=False)
    image = tf.io.decode_webp(data)
    if len(image.shape) == 4:  # an animation, of which the first picture is taken
        image = image[0]
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
            raise EkgError(f"{file}: is no plain file; remove it.")
        if state.st_size > MOST_FILE_BYTES:
            raise EkgError(
                f"{file}: takes {state.st_size:,} bytes, more than {MOST_FILE_BYTES:,}; make it "
                "smaller, or remove it."
            )
        return Path(file).read_bytes()
    except OSError as error:
        raise EkgError(
            f"{file}: cannot be read ({error.strerror}); put a good copy there, or remove it."
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
