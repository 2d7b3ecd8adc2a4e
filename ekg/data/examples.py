"""Examples drawn from a data set: for exports, dry runs and checks of a network."""

import numpy as np


def draw_labelled(data, number, seed=0, split=None):
    """Returns (images as the network takes them, their labels), drawn from a split of a data set.

    If the data set has fewer images, some are repeated.

    Args:
        data: data.LabelledData.
        number: number of images.
        seed: seed of the draw.
        split: data.Split; None takes the training images.
    """
    split = data.train if split is None else split
    places = np.sort(np.random.default_rng(seed).permutation(len(split))[:number])
    images = np.asarray(data.batches(split, 1).normalise(split.read(places)))
    order = np.random.default_rng(seed + 1).permutation(len(images))
    labels = np.asarray(split.labels)[places][order]
    return tuple(
        np.resize(values, (number, *values.shape[1:])) for values in (images[order], labels)
    )


def draw_examples(data, number, seed=0):
    """Returns the images of draw_labelled() alone."""
    return draw_labelled(data, number, seed)[0]
