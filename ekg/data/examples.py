"""Examples drawn from a data set: for exports, dry runs and checks of a network."""

import numpy as np


def draw_labelled(data, number, seed=0):
    """Returns (training images as the network takes them, their labels), drawn from the data set.

    If the data set has fewer images, some are repeated.

    Args:
        data: data.LabelledData.
        number: number of images.
        seed: seed of the draw.
    """
    places = np.sort(np.random.default_rng(seed).permutation(len(data.train))[:number])
    images = np.asarray(data.batches(data.train, 1).normalise(data.train.read(places)))
    order = np.random.default_rng(seed + 1).permutation(len(images))
    labels = np.asarray(data.train.labels)[places][order]
    return tuple(
        np.resize(values, (number, *values.shape[1:])) for values in (images[order], labels)
    )


def draw_examples(data, number, seed=0):
    """Returns the images of draw_labelled() alone."""
    return draw_labelled(data, number, seed)[0]
