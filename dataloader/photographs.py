"""Photographs in files, decoded while the network runs: views, splits and the data set.

All contents of a batch are keyed by (seed, epoch, example index), so order and crops are the same
in every run although decoding is parallel.
"""

import dataclasses
import logging
import math
import os

import numpy as np
import tensorflow as tf

from ekg.data import augment
from ekg.data.dataset import Dataset, Split, prefetched
from ekg.data.headers import MOST_PIXELS, MOST_SCALED_PIXELS, declared_size, problem_of, reason_of
from ekg.errors import EkgError

logger = logging.getLogger(__name__)

SIZE = 224  # pixels
SHORTER_SIDE = 256  # pixels of the shorter side in evaluation, before the crop
IMAGE_SHAPE = (SIZE, SIZE, 3)
CROP_SCALE = (0.08, 1.0)  # share of the area
CROP_RATIO = (3 / 4, 4 / 3)  # width / height
CROP_ATTEMPTS = 10
PREFETCH = 2  # batches that are decoded ahead
# A key is two int64 numbers: one combines seed and epoch, the other phase and view.
MAX_EPOCHS = 2**20
MAX_VIEWS = 2**40
MAX_PHASES = 2**20


# ---------------------------------------------------------------- from bytes to pixels


def checked(contents):
    """Returns the contents of an image file after checking the size that its header declares.

    A file of a few kilobytes may declare gigabytes, which a decoder would allocate. A thin image
    would take them once its shorter side is scaled to SHORTER_SIDE. Nothing is decoded here.

    Args:
        contents: contents of the file, scalar string tensor.

    Raises:
        tf.errors.InvalidArgumentError: the image has too many pixels.
    """
    if tf.io.is_jpeg(contents):
        size = tf.cast(tf.image.extract_jpeg_shape(contents)[:2], tf.float64)
    else:
        size = tf.numpy_function(_size_of, [contents], tf.float64)
    # float64, as the product of two large integers would overflow
    height, width = tf.unstack(tf.ensure_shape(size, [2]))
    longer = tf.maximum(height, width)
    shorter = tf.minimum(height, width)
    is_small = height * width <= MOST_PIXELS
    is_small &= longer * SHORTER_SIDE**2 <= MOST_SCALED_PIXELS * shorter
    with tf.control_dependencies([tf.debugging.Assert(is_small, [height, width])]):
        return tf.identity(contents)


def _size_of(contents):
    """Returns the declared (height, width), float64; zeros if unknown, which the decoder judges.

    An image that may not be decoded has infinite sides.
    """
    contents = np.asarray(contents, object).item()  # bytes, or an array of them in eager mode
    if problem_of(contents):
        return np.array((np.inf, np.inf))
    return np.array(declared_size(contents) or (0, 0), np.float64)


def evaluation_view(contents):
    """Returns the centre of an image as uint8 [SIZE, SIZE, 3].

    The shorter side is scaled to SHORTER_SIDE (bicubic, antialiased) before the crop.

    Args:
        contents: contents of a JPEG (also grey-scale and CMYK), PNG, GIF or BMP file, scalar string
            tensor.
    """
    image = tf.io.decode_image(checked(contents), channels=3, expand_animations=False)
    size = tf.shape(image)[:2]
    size = size * SHORTER_SIDE // tf.reduce_min(size)
    image = tf.image.resize(image, size, "bicubic", antialias=True)
    top, left = tf.unstack((size - SIZE) // 2)
    return _to_uint8(image[top : top + SIZE, left : left + SIZE])


def random_view(contents, key):
    """Returns a random resized crop as uint8 [SIZE, SIZE, 3]; only the crop of a JPEG is decoded.

    The crop has 8 to 100 % of the area and an aspect ratio from 3/4 to 4/3. It is drawn by
    TensorFlow's stateless_sample_distorted_bounding_box and resized bilinearly.

    Args:
        contents: contents of an image file; see evaluation_view.
        key: key of the draw, int64 [2].
    """
    contents = checked(contents)
    if tf.io.is_jpeg(contents):
        window = sample_window(tf.image.extract_jpeg_shape(contents), key)
        image = tf.io.decode_and_crop_jpeg(contents, window, channels=3)
    else:
        image = tf.io.decode_image(contents, channels=3, expand_animations=False)
        top, left, height, width = tf.unstack(sample_window(tf.shape(image), key))
        image = image[top : top + height, left : left + width]
    return _to_uint8(tf.image.resize(image, (SIZE, SIZE)))


def view_key(seed, epoch, number, phase=0):
    """Returns the key of a view, int64 [2], which is unique for (seed, epoch, number) in a phase.

    Args:
        seed: random seed of the training.
        epoch: number of the epoch.
        number: number of the view, among the views of all images.
        phase: number that identifies the training phase.
    """
    if epoch >= MAX_EPOCHS:
        raise EkgError(f"`epoch` must be below {MAX_EPOCHS}; received {epoch}.")
    offset = phase % MAX_PHASES * MAX_VIEWS
    epoch_key = tf.constant(seed * MAX_EPOCHS + epoch, tf.int64)
    return tf.stack([epoch_key, tf.cast(number, tf.int64) + offset])


def sample_window(shape, key):
    """Draws a window (top, left, height, width), int32 [4], in an image of this shape."""
    whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        whole,
        key,
        min_object_covered=0.0,
        aspect_ratio_range=CROP_RATIO,
        area_range=CROP_SCALE,
        max_attempts=CROP_ATTEMPTS,
    )
    return tf.concat([begin[:2], size[:2]], 0)


def _to_uint8(image):
    image = tf.ensure_shape(image, IMAGE_SHAPE)
    return tf.cast(tf.clip_by_value(image + 0.5, 0.0, 255.0), tf.uint8)  # a cast rounds down


# ---------------------------------------------------------------- splits and data set


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FileSplit:
    """Labelled images in files.

    Attributes:
        files: paths, bytes [n]; subclasses may use numbers instead.
        labels: class numbers, int32 [n].
        memory_budget: bytes of memory that in_memory() may use.
    """

    files: np.ndarray
    labels: np.ndarray
    memory_budget: int

    def __repr__(self):
        return f"{type(self).__name__}({len(self)} images in files)"

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        """Returns the evaluation views of images, uint8 [len(indices), SIZE, SIZE, 3]."""
        return next(self.stream([indices]))

    def stream(self, batches):
        """Yields the evaluation views of each array of indices in `batches`; see read()."""
        return self._stream(batches, lambda contents, _: evaluation_view(contents))

    def stream_views(self, batches, num_views, key):
        """Yields random views of each array of indices, uint8 [n, num_views, SIZE, SIZE, 3].

        The file of an image is read once for all its views.

        Args:
            batches: list of index arrays.
            num_views: number of views per image.
            key: (seed, epoch) or (seed, epoch, phase).
        """
        seed, epoch, *phase = key

        def views(contents, index):
            keys = [
                view_key(seed, epoch, index * num_views + number, *phase)
                for number in range(num_views)
            ]
            return tf.stack([random_view(contents, view) for view in keys])

        return self._stream(batches, views)

    def take(self, indices):
        """Returns the FileSplit of the examples with these indices, in the order of the indices."""
        return dataclasses.replace(self, files=self.files[indices], labels=self.labels[indices])

    def in_memory(self):
        """Returns a Split of the evaluation views if they fit the budget, else this split."""
        if len(self) * math.prod(IMAGE_SHAPE) > self.memory_budget:
            logger.info(
                "%d images do not fit into %.1f GiB: they are decoded again every time",
                len(self),
                self.memory_budget / 2**30,
            )
            return self
        images = np.empty((len(self), *IMAGE_SHAPE), np.uint8)
        batches = np.array_split(np.arange(len(self)), -(-len(self) // 256))
        for indices, batch in zip(batches, self.stream(batches)):
            images[indices] = batch
        return Split(images, self.labels)

    def find_damaged(self, progress):
        """Returns the sorted indices of the files that cannot be decoded; every file is read once.

        Args:
            progress: progress bar whose update() gets the number of images.
        """
        read = self._make_reader()

        def decode(index):
            contents = checked(read(index))
            image = tf.io.decode_image(contents, channels=3, expand_animations=False)
            return index, tf.size(image)  # without its size the decoding would be optimised away

        is_good = np.zeros(len(self), bool)
        examples = (
            tf.data.Dataset.range(len(self))
            .map(decode, tf.data.AUTOTUNE)
            .ignore_errors()
            .batch(256)
        )
        for indices, _ in examples.as_numpy_iterator():
            is_good[indices] = True
            progress.update(len(indices))
        return np.flatnonzero(~is_good)

    def name(self, index):
        """Returns the name of an image for messages."""
        return os.fsdecode(self.files[index])

    def _make_reader(self):
        """Returns a function, for graphs, from an index to the contents of the image's file."""
        files = tf.constant(self.files)
        return lambda index: tf.io.read_file(tf.gather(files, index))

    def _stream(self, batches, view):
        # In a thread of its own: the caller's may be bound to a device that cannot decode.
        return prefetched(self._decode(list(batches), view), depth=1)

    def _decode(self, batches, view):
        if not batches:
            return
        sizes = [len(indices) for indices in batches]
        contents = self._make_reader()
        examples = tf.data.Dataset.from_tensor_slices(np.concatenate(batches).astype(np.int64))

        def read(index):
            return view(contents(index), index)

        images = examples.map(read, tf.data.AUTOTUNE, deterministic=True).batch(max(sizes))
        if len(set(sizes)) > 1:
            images = images.rebatch(sizes)
        images = images.prefetch(PREFETCH).as_numpy_iterator()
        for indices in batches:
            try:
                yield next(images)
            except tf.errors.OpError as error:
                self._name_damaged(indices)
                raise EkgError(
                    f"{self.name(indices[0])}, or one of the {len(indices) - 1} images read with "
                    f"it, could not be read for a moment ({reason_of(error)}); start the same "
                    "command again to resume."
                ) from None

    def _name_damaged(self, indices):
        """Raises EkgError for the first image that cannot be read."""
        read = self._make_reader()
        for index in indices:
            reason = None
            try:
                contents = read(index)
                reason = problem_of(contents.numpy(), SHORTER_SIDE)
                evaluation_view(contents)
            except tf.errors.OpError as error:
                raise EkgError(
                    f"{self.name(index)}: cannot be read as an image "
                    f"({reason or reason_of(error)}); put a good copy there, or set "
                    "`skip_bad_images` to leave such files out."
                ) from None


class PhotographDataset(Dataset):
    """A data set of FileSplits, whose views are cropped while decoding instead of in the step."""

    image_shape = IMAGE_SHAPE

    def _stream(self, split, batches, num_views, key):
        return split.stream_views(batches, num_views, key) if num_views else split.stream(batches)

    def _view(self, batch, number, use_colour):
        return augment.view(
            batch["images"][:, number],
            batch["draws"][:, number],
            self.mean,
            self.std,
            use_colour,
            self.flips,
            use_crop=False,
        )
