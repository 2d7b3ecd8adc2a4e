"""The one kind of object that every data set is loaded as."""

import dataclasses
import functools

import numpy as np

from dataloader import augment


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Labelled images in memory.

    Attributes:
        images: uint8 [number, height, width, channels].
        labels: int32 [number].
    """
    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        """Returns the images with these indices, uint8 [len(indices), height, width, channels]."""
        return self.images[indices]

    def take(self, indices):
        """Returns the Split of the examples with these indices, in their order."""
        return Split(self.images[indices], self.labels[indices])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: its splits, its classes and how its images become a network's input.

    Attributes:
        name: as in dataloader.DATASETS.
        num_classes: number of classes.
        train: training Split.
        test: test Split, read only by final evaluations.
        mean: of each channel, in grey levels [0, 255].
        std: of each channel, in grey levels.
        flips: whether a mirrored image keeps its class.
    """
    name: str
    num_classes: int
    train: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: bool = True

    @property
    def image_shape(self):
        """(height, width, channels) of an image."""
        return self.train.images.shape[1:]

    def normalise(self, images):
        """Returns uint8 images as float32 tensors of about zero mean and unit variance."""
        return augment.normalise(images, self.mean, self.std)

    def baseline_view(self, images, draws):
        """Returns the training view of a baseline: normalised, flipped and cropped; see augment.view."""
        return self._view(images, draws, use_colour=False)

    def fine_tune_view(self, images, draws):
        """Returns one fine-tuning view: also with changed brightness, contrast and saturation; see augment.view."""
        return self._view(images, draws, use_colour=True)

    @property
    def _view(self):
        return functools.partial(augment.view, mean=self.mean, std=self.std, use_flip=self.flips)

    def first_of_each_class(self, count, seed):
        """Returns the Split of the first `count` training images of each class, shuffled.

        A class of fewer images gives all it has; then they are not apart from last_of_each_class.
        """
        return self._of_each_class(slice(None, count), seed)

    def last_of_each_class(self, count, seed):
        """Returns the Split of the last `count` training images of each class, shuffled."""
        return self._of_each_class(slice(-count, None), seed)

    def _of_each_class(self, part, seed):
        of_class = [np.flatnonzero(self.train.labels == label)[part] for label in range(self.num_classes)]
        return self.train.take(np.random.default_rng(seed).permutation(np.concatenate(of_class)))

    def epoch(self, batch_size, seed, epoch, num_views=1, split=None):
        """Yields the batches of one shuffled epoch over the training split; an incomplete last batch is left out.

        Order and augmentation are keyed by (seed, epoch, example index) alone, so an epoch can be made again.

        Args:
            batch_size: global batch.
            seed: of the training.
            epoch: number of the epoch.
            num_views: random draws a batch holds for each image.
            split: Split to use instead of the training split.

        Yields:
            {"index": int64 [batch], "images": uint8 [batch, height, width, channels], "labels": int32 [batch],
            "draws": float32 [batch, num_views, augment.NUM_DRAWS] in [0, 1)}.
        """
        split = self.train if split is None else split
        order = np.random.default_rng([seed, epoch, 0]).permutation(len(split))
        draws = np.random.default_rng([seed, epoch, 1]).random((len(split), num_views, augment.NUM_DRAWS), np.float32)
        for step in range(len(split) // batch_size):
            index = order[step * batch_size:(step + 1) * batch_size]
            yield {"index": index, "images": split.read(index), "labels": split.labels[index], "draws": draws[index]}
