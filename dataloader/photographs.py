"""Photographs in files, which are decoded while the network runs: evaluation views, random views,
splits, data set.

Whatever a batch holds is keyed by (seed, epoch, example index): decoding is parallel, and its order
and its crops are the same in every run.
"""

import dataclasses
import logging
import math
import os

import numpy as np
import tensorflow as tf

from dataloader.headers import MOST_PIXELS, MOST_SCALED_PIXELS, declared_size, problem_of, reason_of
from ekg.data import augment
from ekg.data.dataset import Dataset, Split, prefetched
from ekg.errors import EkgError

logger = logging.getLogger(__name__)

SIZE, SHORTER_SIDE = 224, 256
IMAGE_SHAPE = (SIZE, SIZE, 3)
CROP_SCALE, CROP_RATIO, CROP_ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10
PREFETCH = 2  # batches that are decoded ahead
MAX_EPOCHS = 2**20  # so that a seed and an epoch make one key
MAX_VIEWS, MAX_PHASES = 2**40, 2**20  # so that a view and a phase do


# ---------------------------------------------------------------- from bytes to pixels


def checked(contents):
    """Returns the bytes of an image file, a scalar string tensor, if their header declares no more
    than MOST_PIXELS.

    An image of a few kilobytes may declare gigabytes, which a decoder would fill; a thin one would
    take them once its shorter side is scaled to SHORTER_SIDE. Nothing is decoded here.

    Raises:
        tf.errors.InvalidArgumentError: it declares more.
    """
    if tf.io.is_jpeg(contents):
        size = tf.cast(tf.image.extract_jpeg_shape(contents)[:2], tf.float64)
    else:
        size = tf.numpy_function(_size_of, [contents], tf.float64)
    height, width = tf.unstack(
        tf.ensure_shape(size, [2])
    )  # float64: the product of two large integers would overflow
    longer, shorter = tf.maximum(height, width), tf.minimum(height, width)
    is_small = (height * width <= MOST_PIXELS) & (
        longer * SHORTER_SIDE**2 <= MOST_SCALED_PIXELS * shorter
    )
    with tf.control_dependencies([tf.debugging.Assert(is_small, [height, width])]):
        return tf.identity(contents)


def _size_of(contents):
    contents = np.asarray(
        contents, object
    ).item()  # of bytes, or of an array of them where there is no graph
    return np.array(
        declared_size(contents) or (0, 0), np.float64
    )  # what tells no size is the decoder's to refuse


def evaluation_view(contents):
    """Returns the middle of an image as uint8 [SIZE, SIZE, 3]: shorter side to 256 (bicubic,
    antialiased), centre 224.

    Args:
        contents: scalar string tensor, the bytes of a JPEG (grey-scale and CMYK too), PNG, GIF or
            BMP file.
    """
    image = tf.io.decode_image(checked(contents), channels=3, expand_animations=False)
    size = tf.shape(image)[:2]
    size = size * SHORTER_SIDE // tf.reduce_min(size)
    image = tf.image.resize(image, size, "bicubic", antialias=True)
    top, left = tf.unstack((size - SIZE) // 2)
    return _to_uint8(image[top : top + SIZE, left : left + SIZE])


def random_view(contents, key):
    """Returns a random resized crop as uint8 [SIZE, SIZE, 3]; of a JPEG only the crop is decoded.

    The crop has 8 to 100 % of the area and sides of a ratio from 3/4 to 4/3, as TensorFlow's
    stateless_sample_distorted_bounding_box draws them; it is resized bilinearly.

    Args:
        contents: see evaluation_view.
        key: int64 [2], of the draw.
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
    """Returns the key of a view, int64 [2]; no two (seed, epoch, number of the view) of a phase
    share one.

    Args:
        seed: of the training.
        epoch: its epoch.
        number: of the view, among those of all images.
        phase: a number that is the training's own.
    """
    if epoch >= MAX_EPOCHS:
        raise EkgError(f"`epoch` must be below {MAX_EPOCHS}; received {epoch}.")
    offset = phase % MAX_PHASES * MAX_VIEWS
    return tf.stack(
        [tf.constant(seed * MAX_EPOCHS + epoch, tf.int64), tf.cast(number, tf.int64) + offset]
    )


def sample_window(shape, key):
    """Returns a window (top, left, height, width), int32 [4], in an image of this shape."""
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
    return tf.cast(
        tf.clip_by_value(image + 0.5, 0.0, 255.0), tf.uint8
    )  # a cast cuts off what is behind the point


# ---------------------------------------------------------------- splits and data set


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FileSplit:
    """Labelled images in files.

    Attributes:
        files: paths, bytes [number]; a subclass may number them.
        labels: int32 [number].
        memory_budget: bytes that in_memory() may take.
    """

    files: np.ndarray
    labels: np.ndarray
    memory_budget: int

    def __repr__(self):
        return f"{type(self).__name__}({len(self)} images in files)"

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        """Returns the evaluation views of the images with these indices, uint8 [len(indices), SIZE,
        SIZE, 3].
        """
        return next(self.stream([indices]))

    def stream(self, batches):
        """Yields the evaluation views of each array of indices in `batches`, uint8 [len(indices),
        SIZE, SIZE, 3].
        """
        return self._stream(batches, lambda contents, _: evaluation_view(contents))

    def stream_views(self, batches, num_views, key):
        """Yields random views of each array of indices, uint8 [len(indices), num_views, SIZE, SIZE,
        3].

        All views of an image are made from one read of its file.
        """

        def views(contents, index):
            return tf.stack(
                [
                    random_view(contents, view_key(*key[:2], index * num_views + number, *key[2:]))
                    for number in range(num_views)
                ]
            )

        return self._stream(batches, views)

    def take(self, indices):
        """Returns the FileSplit of the examples with these indices, in their order."""
        return dataclasses.replace(self, files=self.files[indices], labels=self.labels[indices])

    def in_memory(self):
        """Returns a Split of the evaluation views if they fit the budget, else this split."""
        if len(self) * math.prod(IMAGE_SHAPE) > self.memory_budget:
            logger.info(
                "%d images do not fit %.1f GiB: they are decoded again every time",
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
            progress: progress bar that gets update(number of images).
        """
        read = self._make_reader()

        def decode(index):
            # The size is asked for so that the decoding is not optimised away.
            return index, tf.size(
                tf.io.decode_image(checked(read(index)), channels=3, expand_animations=False)
            )

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
        """Returns what to call an image in a message."""
        return os.fsdecode(self.files[index])

    def _make_reader(self):
        """Returns a function of a graph from an index to the bytes of the image."""
        files = tf.constant(self.files)
        return lambda index: tf.io.read_file(tf.gather(files, index))

    def _stream(self, batches, view):
        # A thread of its own reads: the caller's may be bound to a device that cannot decode.
        return prefetched(self._decode(list(batches), view), depth=1)

    def _decode(self, batches, view):
        if not batches:
            return
        sizes, contents = [len(indices) for indices in batches], self._make_reader()
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
                    f"it, could not be read for a moment ({reason_of(error)}); the same command "
                    "goes on."
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
                    f"({reason or reason_of(error)}); put a good copy there, or give "
                    "`skip_bad_images` to go on without such files."
                ) from None


class PhotographDataset(Dataset):
    """A data set whose splits are FileSplits: views are cropped while they are decoded, the rest is
    done in the step.
    """

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
