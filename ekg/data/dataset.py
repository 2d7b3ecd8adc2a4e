"""Data sets: labelled images, how they become a network's input, and the batches of training."""

import collections
import dataclasses
import functools
import zlib
from concurrent import futures
from typing import Any

import numpy as np

from ekg.data import augment
from ekg.data.inputs import described, rows_of, shapes_of
from ekg.errors import EkgError
from ekg.tasks.kinds import Classification, Task
from ekg.tasks.labels import check_labels

NUM_VIEWS = 2  # random views per image in fine-tuning


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Labelled images in memory.

    Attributes:
        images: uint8 [number, height, width, channels]; other inputs of a network, or a structure
            of them.
        labels: int32 [number].
    """

    images: Any
    labels: np.ndarray

    def __repr__(self):
        return f"Split({len(self)} images of {described(list(shapes_of(self.images)))})"

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        """Returns the images with these indices, uint8 [len(indices), height, width, channels]."""
        return rows_of(self.images, indices)

    def stream(self, index_batches):
        """Yields the images of each array of indices; a split on disk decodes ahead."""
        for indices in index_batches:
            yield self.read(indices)

    def take(self, indices):
        """Returns the Split of the examples with these indices, in the order of the indices."""
        return Split(rows_of(self.images, indices), self.labels[indices])

    def in_memory(self):
        """Returns this split; a split on disk loads itself if its images fit the memory budget."""
        return self


class LabelledData:
    """Base class of data sets: strata, per-class subsets, and shuffled epochs.

    A subclass has the attributes name, train and test (splits), task and num_views, and the methods
    normalise(images) and fine_tune_view(batch, number).
    """

    name: str
    train: Any  # a Split, or another object with its attributes and methods
    test: Any
    task: Any
    num_views: int
    moves_knowledge = False  # whether a view has to move the memory bank's maps along with pixels
    changes_labels = False  # whether a view changes labels, so that no memory bank fits it

    def fine_tune_labels(self, batch, number):
        """Returns the labels of a fine-tuning view of a batch."""
        return batch["labels"]

    def plain_view(self, batch):
        """Returns the view used when fine-tuning sees one view per image; here the first one."""
        return self.fine_tune_view(batch, 0)

    def fine_tune_views(self, batch, num_views):
        """Returns the list of the views of a batch that one fine-tuning step sees together.

        Args:
            batch: a batch of epoch(), drawn with at least num_views views.
            num_views: 1, or 2 if the data set has random views.
        """
        if num_views == 1:
            return [self.plain_view(batch)]
        return [self.fine_tune_view(batch, number) for number in range(num_views)]

    def batches(self, split, batch_size, order=None):
        """Returns the Batches of a split for this data set's task."""
        return Batches(split, self.normalise, batch_size, order, self.task)

    @functools.cached_property
    def strata(self):
        """The class of each training image, or its stratum where there are no classes, int [n]."""
        return self.task.strata(self.train.labels)

    @functools.cached_property
    def num_strata(self):
        """Number of classes or strata."""
        return int(self.strata.max()) + 1

    @functools.cached_property
    def class_sizes(self):
        """Number of training images of each class or stratum, int [num_strata]."""
        return np.bincount(self.strata, minlength=self.num_strata)

    def largest_class(self):
        """Returns the number of training images of the largest class."""
        return int(self.class_sizes.max())

    def num_of_each_class(self, count):
        """Returns how many images first_of_each_class() and last_of_each_class() return."""
        return int(np.minimum(self.class_sizes, count).sum())

    def first_of_each_class(self, count, seed):
        """Returns D_subset: the first `count` training images of each class, shuffled.

        A class with fewer images contributes all of them.

        Raises:
            EkgError: no class has that many images.
        """
        return self._of_each_class(count, slice(None, count), seed)

    def last_of_each_class(self, count, seed):
        """Returns D_val: the last `count` training images of each class, shuffled.

        See first_of_each_class.
        """
        return self._of_each_class(count, slice(-count, None), seed)

    def _of_each_class(self, count, part, seed):
        if count > self.largest_class():
            raise EkgError(
                f"{count} images of each class are asked for, and the largest class of "
                f"{self.name} has {self.largest_class()}; lower `subset_per_class` or "
                "`val_per_class`."
            )
        chosen = np.concatenate([members[part] for members in members_by_class(self.strata)])
        return self.train.take(np.random.default_rng(seed).permutation(chosen))

    def epoch(
        self,
        batch_size,
        seed,
        epoch,
        num_views=0,
        split=None,
        shard=(0, 1),
        start=0,
        phase="",
        even_pieces=None,
    ):
        """Yields the batches of one shuffled epoch over the training split.

        Order and augmentation depend on (seed, epoch, phase, example index) alone, so an epoch can
        be repeated.

        Args:
            batch_size: size of the global batch.
            seed: random seed of the training.
            epoch: number of the epoch.
            num_views: random views per image; 0 yields the images as they are.
            split: Split to use instead of the training split.
            shard: (number of this process, number of processes): yields the part of every batch
                that belongs to this process.
            start: number of batches to skip at the beginning.
            phase: name of the training phase; phases with the same seed see the images in different
                orders and views.
            even_pieces: see batch_edges.

        Yields:
            A dict per batch. "index": int64 [batch]. "images": uint8 [batch, height, width,
            channels], or [batch, num_views, height, width, channels] if the data set crops while
            decoding; or other inputs, or a structure of them. "labels": int32 [batch]. With views
            also "draws": float32 [batch, num_views, augment.NUM_DRAWS] in [0, 1).
        """
        split = self.train if split is None else split
        key = [seed, epoch]
        if phase:
            key.append(zlib.crc32(phase.encode()))
        order = np.random.default_rng([*key, 0]).permutation(len(split))
        edges = batch_edges(len(split), batch_size, even_pieces)
        batches = [
            np.array_split(order[first:last], shard[1])[shard[0]]
            for first, last in zip(edges[start:], edges[start + 1 :])
        ]
        draws = np.random.default_rng([*key, 1]).random(
            (len(split), num_views, augment.NUM_DRAWS), np.float32
        )
        for index, images in zip(batches, self._stream(split, batches, num_views, key)):
            batch = {"index": index, "images": images, "labels": split.labels[index]}
            yield batch | {"draws": draws[index]} if num_views else batch

    def _stream(self, split, batches, num_views, key):
        """Yields the images of each batch; their views are computed in the training step.

        Args:
            split: Split to read from.
            batches: list of index arrays, one per batch.
            num_views: random views per image; see epoch().
            key: list of numbers that identifies the epoch: seed, epoch, and the phase if it has a
                name.
        """
        return split.stream(batches)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset(LabelledData):
    """An image classification data set: splits, number of classes, normalisation and augmentation.

    Attributes:
        name: name of the data set, as logs and messages use it.
        num_classes: number of classes.
        train: training Split.
        test: test Split, read only by final evaluations.
        mean: mean of each channel, in grey levels [0, 255].
        std: standard deviation of each channel, in grey levels.
        flips: whether a mirrored image keeps its class.
        task: Task that prepared the labels.
    """

    name: str
    num_classes: int
    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: bool = True
    task: Task = Classification()

    def __post_init__(self):
        for part, split in (("training", self.train), ("test", self.test)):
            check_labels(split.labels, self.num_classes, f"{part} labels of {self.name}")

    @property
    def num_views(self):
        """Largest number of random views per image in fine-tuning."""
        return NUM_VIEWS

    @property
    def num_strata(self):
        """Number of classes."""
        return self.num_classes

    @property
    def image_shape(self):
        """(height, width, channels) of an image."""
        return self.train.images.shape[1:]

    def normalise(self, images):
        """Returns uint8 images as float32 tensors with about zero mean and unit variance."""
        return augment.normalise(images, self.mean, self.std)

    def plain_view(self, batch):
        """Returns normalised, randomly flipped and cropped images; see augment.view.

        Baseline training, and fine-tuning with one view per image, use this view.

        Args:
            batch: a batch of epoch(), drawn with at least one view.
        """
        return self._view(batch, 0, use_colour=False)

    def fine_tune_view(self, batch, number):
        """Returns one fine-tuning view of a batch, whose colours are jittered as well."""
        return self._view(batch, number, use_colour=True)

    def _view(self, batch, number, use_colour):
        return augment.view(
            batch["images"], batch["draws"][:, number], self.mean, self.std, use_colour, self.flips
        )


def batch_edges(num_images, batch_size, even_pieces=None):
    """Returns the start of each batch in an epoch's order, followed by the end of the last batch.

    Args:
        num_images: number of images in the epoch.
        batch_size: largest number of images per batch.
        even_pieces: None drops an incomplete last batch. A number cuts the epoch into as few
            batches as possible, of nearly equal sizes that are multiples of this number, so that
            fewer than this number of images are dropped.
    """
    if even_pieces is None:
        return [step * batch_size for step in range(num_images // batch_size + 1)]
    num_pieces = num_images // even_pieces
    num_steps = -(-num_pieces // (batch_size // even_pieces))
    return [num_pieces * step // num_steps * even_pieces for step in range(num_steps + 1)]


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """A split in a fixed order, cut into as few batches of nearly equal size as possible.

    Batch norms may compute statistics per batch, and those of a short last batch would be noisier.
    Batches have at most two sizes, so at most two shapes are compiled.

    Attributes:
        split: Split to read from.
        normalise: function from uint8 images to float32 images, the network's input.
        batch_size: largest number of images per batch.
        order: indices of the images in the order of the batches, int [n]; None keeps the order of
            the split.
        task: Task that prepared the labels.
    """

    split: Any
    normalise: Any
    batch_size: int
    order: np.ndarray | None = dataclasses.field(default=None, repr=False)
    task: Task = Classification()

    @functools.cached_property
    def indices(self):
        """List of index arrays, int64 [batch], one per batch; their sizes differ by at most one."""
        num_images = len(self.split)
        num_batches = -(-num_images // self.batch_size)
        edges = [num_images * i // num_batches for i in range(num_batches + 1)]
        order = np.arange(num_images) if self.order is None else self.order
        return [order[start:stop] for start, stop in zip(edges, edges[1:])]

    @property
    def num_images(self):
        return len(self.split)

    def __len__(self):
        """Number of batches."""
        return len(self.indices)

    def images(self, numbers=None):
        """Yields the uint8 images of every batch, or of the batches with these numbers."""
        numbers = range(len(self)) if numbers is None else numbers
        if not len(numbers):
            return iter(())
        return self.split.stream([self.indices[number] for number in numbers])

    def labels(self, number):
        """Returns the labels of the batch with this number, [batch, ...]."""
        return self.split.labels[self.indices[number]]

    def head(self, count):
        """Returns the Batches of the first `count` images of this order, or of all if fewer."""
        order = np.arange(len(self.split)) if self.order is None else self.order
        return dataclasses.replace(self, split=self.split.take(order[:count]), order=None)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingBatches:
    """The shuffled batches of every epoch of one training phase.

    Attributes:
        data: Dataset.
        batch_size: size of the global batch, over all devices and processes.
        seed: random seed of order and augmentation.
        num_views: random views per image; 0 uses the images as they are.
        split: Split to train on; None uses the data set's training split.
        complete: function from a batch to a dict of further entries, such as rows of a memory bank;
            or None.
        phase: name of the training phase; see Dataset.epoch.
        even_pieces: see batch_edges.
    """

    data: Dataset
    batch_size: int
    seed: int
    num_views: int = 0
    split: Any = None
    complete: Any = None
    phase: str = ""
    even_pieces: int | None = None

    @property
    def num_steps(self):
        """Number of steps per epoch."""
        num_images = len(self.data.train if self.split is None else self.split)
        return len(batch_edges(num_images, self.batch_size, self.even_pieces)) - 1

    def epoch(self, number, shard=(0, 1), start=0):
        """Yields the batches of an epoch, beginning with step `start`; see Dataset.epoch."""
        for batch in self.data.epoch(
            self.batch_size,
            self.seed,
            number,
            self.num_views,
            self.split,
            shard,
            start,
            self.phase,
            self.even_pieces,
        ):
            yield batch if self.complete is None else batch | self.complete(batch)


def class_order(labels):
    """Returns the stable order that sorts class numbers, int64 [n].

    Args:
        labels: class of each example, int [n], not negative.
    """
    if len(labels) and labels.max() < 2**16:
        labels = labels.astype(np.uint16)  # NumPy sorts 16 bits in linear time
    return np.argsort(labels, kind="stable")


def members_by_class(labels):
    """Returns a list with the indices of each class's examples, in rising order.

    Args:
        labels: class of each example, int [n], not negative.
    """
    return np.split(class_order(labels), np.cumsum(np.bincount(labels))[:-1])


def mixed_order(labels):
    """Returns an order of examples, int64 [n], that mixes classes but keeps the order within each.

    The order depends on the class numbers alone. Any stretch of it is a fair sample, even if the
    data is sorted by class, where a batch would otherwise have the statistics of a single class.
    """
    positions = class_order(np.random.default_rng(0).permutation(labels))
    order = np.empty(len(labels), np.int64)
    order[positions] = class_order(labels)
    return order


def prefetched(items, depth=2):
    """Yields the items of an iterable while a thread fetches up to `depth` items ahead."""
    items = iter(items)
    end = object()
    with futures.ThreadPoolExecutor(1) as pool:
        waiting = collections.deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item
