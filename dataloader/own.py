"""A user's own images: a folder with one subfolder a class, an .npz of arrays, or a data set of TensorFlow Datasets."""

import functools
from concurrent import futures
from pathlib import Path

import numpy as np
import tensorflow as tf

from dataloader.headers import problem_of
from ekg.errors import EkgError, first_line
from ekg.sources import Data

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
TFDS = "tfds:"
THREADS = 16


def load(path, image_shape, rescale=None, split="train", name="data_path"):
    """Returns (examples that ekg.prune takes, names of the classes or None).

    Args:
        path: folder, .npz file with the arrays x and y, or tfds:NAME.
        image_shape: (height, width, channels) that the network takes; images in files are resized to it.
        rescale: (low, high) that grey levels of 0 to 255 become; None leaves them as they are.
        split: of a data set of TensorFlow Datasets.
        name: the argument's name, for errors.

    Raises:
        EkgError: nothing of the kind is there.
    """
    if str(path).startswith(TFDS):
        return _load_tfds(str(path)[len(TFDS):], split, image_shape, rescale), None
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, image_shape, rescale, name)
    if path.suffix != ".npz":
        raise EkgError(f"`{name}` {path}: no such folder with one subfolder a class, no .npz file, and not {TFDS}NAME.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = sorted({"x", "y"} - set(arrays.files))
            if missing:
                raise EkgError(f"`{name}` {path}: holds {arrays.files}; it needs the arrays x, images, and y, labels.")
            images, labels = arrays["x"], arrays["y"]
    except EkgError:
        raise
    except Exception as error:  # whatever NumPy and zipfile raise of a damaged file
        raise EkgError(f"`{name}` {path}: cannot be read ({first_line(error)}).") from None
    return (_rescaled(images, rescale), labels), None


def _rescaled(images, rescale):
    """Returns images whose grey levels of 0 to 255 go from low to high, float32; as they are for None."""
    if rescale is None:
        return images
    low, high = rescale
    return np.asarray(images, np.float32) * np.float32((high - low) / 255) + np.float32(low)


# ---------------------------------------------------------------- folders

def _load_folder(path, image_shape, rescale, name):
    if None in image_shape[:2]:
        raise EkgError(f"`{name}` {path}: the network leaves the size of its images open; say which with `image_size`.")
    classes = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files, labels = [], []
    for label, class_name in enumerate(classes):
        found = sorted(str(file) for file in (path / class_name).rglob("*") if file.suffix.lower() in ENDINGS)
        if not found:
            raise EkgError(f"`{name}` {path / class_name}: holds no images ({', '.join(ENDINGS)}); remove the folder, or "
                           "fill it.")
        files += found
        labels += [label] * len(found)
    if len(classes) < 2:
        raise EkgError(f"`{name}` {path}: holds {len(classes)} subfolders; it needs one for each class, at least two.")
    read = functools.partial(_read_files, files, tuple(image_shape), rescale)
    return Data(np.array(labels, np.int32), read), classes


def _read_files(files, image_shape, rescale, indices):
    """Returns images of files, resized and rescaled, float32 [number, height, width, channels]."""
    with futures.ThreadPoolExecutor(min(THREADS, max(len(indices), 1))) as pool:
        images = list(pool.map(lambda index: _read_file(files[index], image_shape), indices))
    return _rescaled(np.stack(images), rescale)


def _read_file(file, image_shape):
    height, width, channels = image_shape
    try:
        with tf.device("CPU"):
            data = tf.io.read_file(file)
            problem = problem_of(data.numpy())
            if problem:
                raise EkgError(f"{file}: is not decoded: {problem}; make it smaller, or remove it.")
            image = tf.io.decode_image(data, channels=channels or 3, expand_animations=False)
            return tf.image.resize(image, (height, width)).numpy()
    except tf.errors.OpError as error:
        raise EkgError(f"{file}: cannot be read as an image ({first_line(error)[:100]}); put a good copy there, or remove "
                       "it.") from None


# ---------------------------------------------------------------- TensorFlow Datasets

def _load_tfds(name, split, image_shape, rescale):
    """Returns a tf.data.Dataset of resized images, in the order of its files."""
    try:
        import tensorflow_datasets
    except ModuleNotFoundError:
        raise EkgError(f"{TFDS}{name} needs the package tensorflow_datasets; install it with: pip install "
                       "tensorflow-datasets") from None
    try:
        dataset = tensorflow_datasets.load(name, split=split, as_supervised=True, shuffle_files=False)
    except Exception as error:  # whatever that package raises
        raise EkgError(f"{TFDS}{name}: cannot be loaded ({first_line(error)}).") from None

    def fit(image, label):
        image = tf.image.resize(image, image_shape[:2])
        low, high = rescale or (0.0, 255.0)
        return image * ((high - low) / 255) + low, label
    return dataset.map(fit).batch(128)
