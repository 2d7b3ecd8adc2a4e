"""What a data set must be: labelled images, how they become a network's input, and the batches they
are read in.
"""

import collections
import dataclasses
import functools
import zlib
from concurrent import futures
from typing import Any

import numpy as np

from ekg.data import augment
from ekg.errors import EkgError
from ekg.tasks.kinds import Classification, Task
from ekg.tasks.labels import check_labels

NUM_VIEWS = 2  # of each image in fine-tuning


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Labelled images in memory.

    Attributes:
        images: uint8 [number, height, width, channels].
        labels: int32 [number].
    """

    images: np.ndarray
    labels: np.ndarray

    def __repr__(self):
        return f"Split({len(self)} images of {'x'.join(map(str, self.images.shape[1:]))})"

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        """Returns the images with these indices, uint8 [len(indices), height, width, channels]."""
        return self.images[indices]

    def stream(self, index_batches):
        """Yields the images of each array of indices; a split on disk decodes them ahead."""
        for indices in index_batches:
            yield self.read(indices)

    def take(self, indices):
        """Returns the Split of the examples with these indices, in their order."""
        return Split(self.images[indices], self.labels[indices])

    def in_memory(self):
        """Returns this split; a split on disk returns one in memory if its images fit the
        budget.
        """
        return self


class LabelledData:
    """What every data set can do, whatever its examples are and however they become a network's
    input.

    A data set has the attributes name, train and test (splits), task, num_views, and the methods
    normalise(images) and fine_tune_view(batch, number).
    """

    moves_knowledge = False  # whether a view moves what the bank knows of an image as it is
    changes_labels = False  # whether a view changes labels, so that no bank fits it

    def fine_tune_labels(self, batch, number):
        """Returns the labels of a fine-tuning view of a batch."""
        return batch["labels"]

    def plain_view(self, batch):
        """Returns the view of a fine-tuning with one view of each image; here the first of
        several.
        """
        return self.fine_tune_view(batch, 0)

    def fine_tune_views(self, batch, num_views):
        """Returns the list of the views of a batch that fine-tuning sees together.

        Args:
            batch: as epoch() yields, with so many views.
            num_views: 1 or, of a data set with random views, 2.
        """
        if num_views == 1:
            return [self.plain_view(batch)]
        return [self.fine_tune_view(batch, number) for number in range(num_views)]

    def batches(self, split, batch_size, order=None):
        """Returns the Batches of a split for this data set's task."""
        return Batches(split, self.normalise, batch_size, order, self.task)

    @functools.cached_property
    def strata(self):
        """The class of every training image, or the part of the data that it counts to, int
        [number].
        """
        return self.task.strata(self.train.labels)

    @functools.cached_property
    def num_strata(self):
        """Number of classes or parts."""
        return int(self.strata.max()) + 1

    @functools.cached_property
    def class_sizes(self):
        """How many training images each class has, or each part, int [num_strata]."""
        return np.bincount(self.strata, minlength=self.num_strata)

    def largest_class(self):
        """Returns how many training images the largest class has."""
        return int(self.class_sizes.max())

    def num_of_each_class(self, count):
        """Returns how many images first_of_each_class() and last_of_each_class() give."""
        return int(np.minimum(self.class_sizes, count).sum())

    def first_of_each_class(self, count, seed):
        """Returns the split of the first `count` training images of each class, shuffled: D_subset.

        A class with fewer images gives all it has.

        Raises:
            EkgError: no class has so many images.
        """
        return self._of_each_class(count, slice(None, count), seed)

    def last_of_each_class(self, count, seed):
        """Returns the split of the last `count` training images of each class, shuffled: D_val; see
        first_of_each_class.
        """
        return self._of_each_class(count, slice(-count, None), seed)

    def _of_each_class(self, count, part, seed):
        if count > self.largest_class():
            raise EkgError(
                f"{count} images of each class are asked for, and the largest class of "
                f"{self.name} has {self.largest_class()}; lower `subset_per_class` or "
                "`val_per_class`."
            )
        by_class = np.argsort(self.strata, kind="stable")
        chosen = [members[part] for members in np.split(by_class, np.cumsum(self.class_sizes)[:-1])]
        return self.train.take(np.random.default_rng(seed).permutation(np.concatenate(chosen)))

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

        Order and augmentation are keyed by (seed, epoch, phase, example index) alone, so an epoch
        can be made again.

        Args:
            batch_size: global batch.
            seed: of the training.
            epoch: number of the epoch.
            num_views: random views of each image; 0 stands for the images as they are.
            split: split to use instead of the training split.
            shard: (number of a process, number of processes): yields that process's part of every
                batch.
            start: number of batches that are left out at the beginning.
            phase: name of the training: two phases of one seed see the images in other orders and
                views.
            even_pieces: see batch_edges.

        Yields:
            {"index": int64 [batch], "images": uint8 [batch, height, width, channels], or of a data
            set that crops while it decodes [batch, num_views, height, width, channels], "labels":
            int32 [batch]}, and with views also {"draws": float32 [batch, num_views,
            augment.NUM_DRAWS] in [0, 1)}.
        """
        split = self.train if split is None else split
        key = (seed, epoch, *([zlib.crc32(phase.encode())] if phase else []))
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
        """Yields the images of each batch; here the views are made of them in the training step.

        Args:
            split: Split.
            batches: list of the indices of each batch.
            num_views: see epoch().
            key: (seed, epoch) or (seed, epoch, number of the phase), which no other epoch has.
        """
        return split.stream(batches)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset(LabelledData):
    """A data set: its splits, its classes and how its images become a network's input.

    Attributes:
        name: what to call it.
        num_classes: number of classes.
        train: training Split.
        test: test Split, read only by final evaluations.
        mean: of each channel, in grey levels [0, 255].
        std: of each channel, in grey levels.
        flips: whether a mirrored image keeps its class.
        task: Task that the labels are for, in the form that it prepares.
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
        """Random views of each image in fine-tuning, at most."""
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
        """Returns uint8 images as float32 tensors of about zero mean and unit variance."""
        return augment.normalise(images, self.mean, self.std)

    def plain_view(self, batch):
        """Returns the training view of a baseline, and of a fine-tuning with one view.

        It is normalised, flipped and cropped; see augment.view.

        Args:
            batch: as epoch() yields, with one view at least.
        """
        return self._view(batch, 0, use_colour=False)

    def fine_tune_view(self, batch, number):
        """Returns one fine-tuning view of a batch: also with changed brightness, contrast and
        saturation.
        """
        return self._view(batch, number, use_colour=True)

    def _view(self, batch, number, use_colour):
        return augment.view(
            batch["images"], batch["draws"][:, number], self.mean, self.std, use_colour, self.flips
        )


def batch_edges(num_images, batch_size, even_pieces=None):
    """Returns where each batch of an epoch begins in its order, and where the last one ends.

    Args:
        num_images: of the epoch.
        batch_size: images of a batch, at most.
        even_pieces: None leaves out an incomplete last batch. A number cuts the epoch into the
            fewest batches, of even sizes that are multiples of it, so that fewer images than that
            number are left out.
    """
    if even_pieces is None:
        return [step * batch_size for step in range(num_images // batch_size + 1)]
    num_pieces = num_images // even_pieces
    num_steps = -(-num_pieces // (batch_size // even_pieces))
    return [num_pieces * step // num_steps * even_pieces for step in range(num_steps + 1)]


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """Labelled images in a fixed order, cut into the fewest batches of even size, and what makes
    them a network's input.

    Images of a batch may share the statistics of batch norms: a short last batch would have noisier
    ones. Even batches have at most two sizes, so at most two shapes are compiled.

    Attributes:
        split: Split.
        normalise: uint8 images -> float32 images.
        batch_size: images of a batch, at most.
        order: the images in the order of the batches, int array [number]; None stands for their own
            order.
        task: Task that the labels are for.
    """

    split: Any
    normalise: Any
    batch_size: int
    order: np.ndarray | None = dataclasses.field(default=None, repr=False)
    task: Task = Classification()

    @functools.cached_property
    def indices(self):
        """List of the indices of each batch's images, int64 [batch]; sizes differ by at most
        one.
        """
        num_images, num_batches = len(self.split), -(-len(self.split) // self.batch_size)
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
        return (
            self.split.stream([self.indices[number] for number in numbers])
            if len(numbers)
            else iter(())
        )

    def labels(self, number):
        """Returns the labels of the batch with this number, [batch, ...]."""
        return self.split.labels[self.indices[number]]

    def head(self, count):
        """Returns the Batches of the first `count` images in this order, or of all if there are
        fewer.
        """
        order = np.arange(len(self.split)) if self.order is None else self.order
        return dataclasses.replace(self, split=self.split.take(order[:count]), order=None)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingBatches:
    """The shuffled batches of every epoch of a training.

    Attributes:
        data: Dataset.
        batch_size: global batch, over all devices and processes.
        seed: of order and augmentation.
        num_views: random views of each image; 0 stands for the images as they are.
        split: Split to train on; None stands for the data set's training split.
        complete: function from a batch to further entries of it, such as rows of a memory bank, or
            None.
        phase: name of the training; see Dataset.epoch.
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
        """Steps of an epoch."""
        num_images = len(self.data.train if self.split is None else self.split)
        return len(batch_edges(num_images, self.batch_size, self.even_pieces)) - 1

    def epoch(self, number, shard=(0, 1), start=0):
        """Yields the batches of an epoch from step `start` on; see Dataset.epoch."""
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


def mixed_order(labels):
    """Returns an order of examples that mixes the classes and keeps each class's own order, int64
    [number].

    It is keyed by nothing but the class numbers. A stretch of it is a fair sample, whatever order
    the examples come in: statistics of a batch of data sorted by class would be those of one class
    alone.
    """
    order = np.empty(len(labels), np.int64)
    order[np.argsort(np.random.default_rng(0).permutation(labels), kind="stable")] = np.argsort(
        labels, kind="stable"
    )
    return order


def prefetched(items, depth=2):
    """Yields the items of an iterable, which a thread takes from it up to `depth` ahead."""
    items, end = iter(items), object()
    with futures.ThreadPoolExecutor(1) as pool:
        waiting = collections.deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, items, end))
            yield item
