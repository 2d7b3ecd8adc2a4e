"""ImageNet (ILSVRC2012) from its folders of photographs, which are decoded while the network runs.

    train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, or a flat val/ with the files of the development kit beside it.

Classes are the sorted wnids. Whatever a batch holds is keyed by (seed, epoch, example index): decoding is parallel, and
its order and its crops are the same in every run.
"""

import dataclasses
import logging
import math
import os
import re
from pathlib import Path

import numpy as np
import tensorflow as tf
from scipy import io as scipy_io

import utils
from dataloader import augment
from dataloader.base import Dataset, Split

logger = logging.getLogger(__name__)

SIZE, SHORTER_SIDE = 224, 256
IMAGE_SHAPE = (SIZE, SIZE, 3)
MEAN = (123.675, 116.28, 103.53)  # of the training images, grey levels, RGB
STD = (58.395, 57.12, 57.375)
CROP_SCALE, CROP_RATIO, CROP_ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10
SUFFIXES = (".jpeg", ".jpg", ".png")
DEVKIT = Path("ILSVRC2012_devkit_t12") / "data"
GROUND_TRUTH, SYNSETS = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
PREFETCH = 2  # batches that are decoded ahead
MEMORY_GIB = 8.0  # images of a split that is read again and again are kept decoded if they take no more
MAX_NAMED = 5  # files named in one message
MAX_EPOCHS = 2**20  # so that a seed and an epoch make one key


# ---------------------------------------------------------------- from bytes to pixels

def evaluation_view(contents):
    """Returns the middle of an image as uint8 [SIZE, SIZE, 3]: shorter side to 256 (bicubic, antialiased), centre 224.

    Args:
        contents: scalar string tensor, the bytes of a JPEG (grey-scale and CMYK too), PNG, GIF or BMP file.
    """
    image = tf.io.decode_image(contents, channels=3, expand_animations=False)
    size = tf.shape(image)[:2]
    size = size * SHORTER_SIDE // tf.reduce_min(size)
    image = tf.image.resize(image, size, "bicubic", antialias=True)
    top, left = tf.unstack((size - SIZE) // 2)
    return _to_uint8(image[top:top + SIZE, left:left + SIZE])


def random_view(contents, key):
    """Returns a random resized crop as uint8 [SIZE, SIZE, 3]; of a JPEG only the crop is decoded.

    The crop has 8 to 100 % of the area and sides of a ratio from 3/4 to 4/3, as TensorFlow's
    stateless_sample_distorted_bounding_box draws them; it is resized bilinearly.

    Args:
        contents: see evaluation_view.
        key: int64 [2], of the draw.
    """
    if tf.io.is_jpeg(contents):
        window = sample_window(tf.image.extract_jpeg_shape(contents), key)
        image = tf.io.decode_and_crop_jpeg(contents, window, channels=3)
    else:
        image = tf.io.decode_image(contents, channels=3, expand_animations=False)
        top, left, height, width = tf.unstack(sample_window(tf.shape(image), key))
        image = image[top:top + height, left:left + width]
    return _to_uint8(tf.image.resize(image, (SIZE, SIZE)))


def view_key(seed, epoch, number):
    """Returns the key of a view, int64 [2]; no two (seed, epoch, number of the view) share one."""
    if epoch >= MAX_EPOCHS:
        raise ValueError(f"epoch must be below {MAX_EPOCHS}; received {epoch}.")
    return tf.stack([tf.constant(seed * MAX_EPOCHS + epoch, tf.int64), tf.cast(number, tf.int64)])


def sample_window(shape, key):
    """Returns a window (top, left, height, width), int32 [4], in an image of this shape."""
    whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape, whole, key, min_object_covered=0.0, aspect_ratio_range=CROP_RATIO, area_range=CROP_SCALE,
        max_attempts=CROP_ATTEMPTS)
    return tf.concat([begin[:2], size[:2]], 0)


def _to_uint8(image):
    image = tf.ensure_shape(image, IMAGE_SHAPE)
    return tf.cast(tf.clip_by_value(image + 0.5, 0.0, 255.0), tf.uint8)  # a cast cuts off what is behind the point


# ---------------------------------------------------------------- splits and data set

@dataclasses.dataclass(frozen=True, eq=False)
class FileSplit:
    """Labelled images in files.

    Attributes:
        files: paths, bytes [number].
        labels: int32 [number].
        memory_budget: bytes that in_memory() may take.
    """
    files: np.ndarray
    labels: np.ndarray
    memory_budget: int

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        """Returns the evaluation views of the images with these indices, uint8 [len(indices), SIZE, SIZE, 3]."""
        return next(self.stream([indices]))

    def stream(self, batches):
        """Yields the evaluation views of each array of indices in `batches`, uint8 [len(indices), SIZE, SIZE, 3]."""
        return self._stream(batches, lambda contents, _: evaluation_view(contents))

    def stream_views(self, batches, num_views, seed, epoch):
        """Yields random views of each array of indices, uint8 [len(indices), num_views, SIZE, SIZE, 3].

        All views of an image are made from one read of its file.
        """
        def views(contents, index):
            return tf.stack([random_view(contents, view_key(seed, epoch, index * num_views + number))
                             for number in range(num_views)])
        return self._stream(batches, views)

    def take(self, indices):
        """Returns the FileSplit of the examples with these indices, in their order."""
        return dataclasses.replace(self, files=self.files[indices], labels=self.labels[indices])

    def in_memory(self):
        """Returns a Split of the evaluation views if they fit the budget, else this split."""
        if len(self) * math.prod(IMAGE_SHAPE) > self.memory_budget:
            logger.info("%d images do not fit %.1f GiB: they are decoded again every time", len(self),
                        self.memory_budget / 2**30)
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
        def decode(index):
            contents = tf.io.read_file(tf.gather(self._names(), index))
            # The size is asked for so that the decoding is not optimised away.
            return index, tf.size(tf.io.decode_image(contents, channels=3, expand_animations=False))

        is_good = np.zeros(len(self), bool)
        examples = tf.data.Dataset.range(len(self)).map(decode, tf.data.AUTOTUNE).ignore_errors().batch(256)
        for indices, _ in examples.as_numpy_iterator():
            is_good[indices] = True
            progress.update(len(indices))
        return np.flatnonzero(~is_good)

    def _names(self):
        return tf.constant(self.files)

    def _stream(self, batches, view):
        batches = list(batches)
        sizes, names = [len(indices) for indices in batches], self._names()
        examples = tf.data.Dataset.from_tensor_slices(np.concatenate(batches).astype(np.int64))

        def read(index):
            return view(tf.io.read_file(tf.gather(names, index)), index)

        images = examples.map(read, tf.data.AUTOTUNE, deterministic=True).batch(max(sizes))
        if len(set(sizes)) > 1:
            images = images.rebatch(sizes)
        images = images.prefetch(PREFETCH).as_numpy_iterator()
        for indices in batches:
            try:
                yield next(images)
            except tf.errors.OpError as error:
                self._name_damaged(indices)
                raise utils.UserError(f"{os.fsdecode(self.files[indices[0]])} or one of the {len(indices) - 1} images read "
                                      f"with it could not be read for a moment ({_reason(error)}); the same command goes "
                                      "on.") from None

    def _name_damaged(self, indices):
        """Raises utils.UserError for the first image that cannot be read."""
        for file in self.files[indices]:
            try:
                evaluation_view(tf.io.read_file(file))
            except tf.errors.OpError as error:
                raise utils.UserError(f"{os.fsdecode(file)}: cannot be read as an image ({_reason(error)}); put a good "
                                      "copy there, or give --skip_bad_images to go on without such files.") from None


def _reason(error):
    """Returns TensorFlow's reason without its function names."""
    if isinstance(error, tf.errors.NotFoundError):
        return "no such file"
    if "Input is empty" in error.message:
        return "it is empty"
    return re.sub(r"^\{\{.*?\}\} |jpeg::Uncompress failed. | \[Op:.*", "", error.message.splitlines()[0])[:100]


class FolderDataset(Dataset):
    """A data set whose splits are FileSplits: views are cropped while they are decoded, the rest is done in the step."""

    image_shape = IMAGE_SHAPE

    def _stream(self, split, batches, num_views, seed, epoch):
        return split.stream_views(batches, num_views, seed, epoch) if num_views else split.stream(batches)

    def _view(self, batch, number, use_colour):
        return augment.view(batch["images"][:, number], batch["draws"][:, number], self.mean, self.std, use_colour,
                            self.flips, use_crop=False)


# ---------------------------------------------------------------- folders

def load(name="ILSVRC2012", data_path=None, *, skip_bad_images=False, memory_gib=MEMORY_GIB):
    """Returns ImageNet as a FolderDataset; no image is decoded yet.

    Args:
        name: what to call the data set.
        data_path: folder with train/ and val/. Where val/ has no folders by class, data_path, or
            ILSVRC2012_devkit_t12/data in it, holds the development kit's ground truth and meta.mat.
        skip_bad_images: read every file once and leave out those that cannot be decoded.
        memory_gib: decoded images of a split that may be kept in memory.

    Raises:
        utils.UserError: data_path, a folder, a class's images or the ground truth is missing or does not fit.
    """
    if data_path is None:
        raise utils.UserError(f"--dataset {name}: cannot be downloaded; name the folder that holds train/ and val/ with "
                              "--data_path.")
    folder = Path(data_path)
    for split in ("train", "val"):
        if not (folder / split).is_dir():
            raise utils.UserError(f"--data_path {folder}: holds no folder {split}/; it must hold train/<wnid>/ and val/.")
    try:
        classes = sorted(entry.name for entry in os.scandir(folder / "train") if entry.is_dir())
        if not classes:
            raise utils.UserError(f"{folder / 'train'}: holds no folders; each class needs one, named by its wnid.")
        train = _list_classes(folder / "train", classes)
        has_folders = any(entry.is_dir() for entry in os.scandir(folder / "val"))
        val = _list_classes(folder / "val", classes) if has_folders else _list_flat(folder, classes)
    except OSError as error:
        raise utils.UserError(f"{error.filename}: cannot be read ({error.strerror}).") from None
    budget = int(memory_gib * 2**30)
    splits = [FileSplit(np.array([os.fsencode(path) for path in paths]), np.array(labels, np.int32), budget)
              for paths, labels in (train, val)]
    if skip_bad_images:
        splits = [_without_damaged(split, folder / part) for split, part in zip(splits, ("train", "val"))]
        for label in np.flatnonzero(np.bincount(splits[0].labels, minlength=len(classes)) == 0):
            raise utils.UserError(f"{folder / 'train' / classes[label]}: no image of this class can be decoded.")
    train = splits[0].take(_mixed(splits[0].labels))
    return FolderDataset(name, len(classes), train, splits[1], MEAN, STD)


def _list_classes(folder, classes):
    """Returns (paths, labels) of a folder with one folder for each class."""
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    for kind, names in (("no folder", set(classes) - set(found)),
                        ("a folder that train/ lacks,", set(found) - set(classes))):
        if names:
            named = ", ".join(sorted(names)[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
            raise utils.UserError(f"{folder}: holds {kind} {named}; train/ and val/ need the same {len(classes)} classes.")
    paths, labels = [], []
    for label, name in enumerate(classes):
        own = _list_images(folder / name)
        if not own:
            raise utils.UserError(f"{folder / name}: holds no image; every class needs one at least.")
        paths += own
        labels += [label] * len(own)
    return paths, labels


def _list_images(folder):
    return sorted(entry.path for entry in os.scandir(folder)
                  if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."))


def _list_flat(folder, classes):
    """Returns (paths, labels) of a val/ without folders, by the files of the development kit.

    The ground truth numbers the classes in the kit's own order, which is not that of the wnids: meta.mat tells it.
    """
    places = [place for place in (folder, folder / DEVKIT) if (place / GROUND_TRUTH).is_file()]
    if not places:
        raise utils.UserError(f"{folder / 'val'}: holds no folders by class, and {GROUND_TRUTH} is neither in {folder} "
                              f"nor in {folder / DEVKIT}; put the development kit there.")
    truth = places[0] / GROUND_TRUTH
    numbers, paths = truth.read_text(errors="replace").split(), _list_images(folder / "val")
    if len(numbers) != len(paths):
        raise utils.UserError(f"{truth}: has {len(numbers):,} lines, and {folder / 'val'} holds {len(paths):,} images; they "
                              "must be as many.")
    wnids = _read_synsets(places[0] / SYNSETS)
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    for line, number in enumerate(numbers, 1):
        if wnids.get(number) not in label_of:
            raise utils.UserError(f"{truth}: line {line} is {number[:20]!r}, which {SYNSETS} and the folders of train/ do "
                                  "not know as a class.")
    return paths, [label_of[wnids[number]] for number in numbers]


def _read_synsets(path):
    """Returns {class number as text: wnid} of the development kit's meta.mat."""
    if not path.is_file():
        raise utils.UserError(f"{path}: missing; the development kit's ground truth cannot be understood without it.")
    try:
        synsets = scipy_io.loadmat(path, squeeze_me=True)["synsets"]
        return {str(int(number)): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"])}
    except Exception as error:  # SciPy raises many kinds for a damaged file
        reason = " ".join(str(error).split())[:160]
        raise utils.UserError(f"{path}: cannot be read as the development kit's class list ({reason}).") from None


def _without_damaged(split, folder):
    with utils.progress_bar(f"check {folder.name}", len(split), "image") as progress:
        damaged = split.find_damaged(progress)
    for file in split.files[damaged]:
        logger.warning("left out: %s", os.fsdecode(file))
    logger.info("%s: %d of %d images left out, as they cannot be decoded", folder, len(damaged), len(split))
    return split.take(np.setdiff1d(np.arange(len(split)), damaged))


def _mixed(labels):
    """Returns an order of examples, given class by class, that mixes the classes and keeps each class's own order.

    A stretch of the result is a fair sample, and batch statistics of it are not those of a few classes alone.
    """
    order = np.empty(len(labels), np.int64)
    order[np.argsort(np.random.default_rng(0).permutation(labels), kind="stable")] = np.arange(len(labels))
    return order
