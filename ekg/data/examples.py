"""Examples drawn from a data set: for exports, dry runs and checks of a network."""

import keras
import numpy as np

from ekg.data.inputs import count_of, rows_of
from ekg.tasks.kinds import TASKS


def draw_labelled(data, number, seed=0, split=None):
    """Returns (inputs as the network takes them, their labels), drawn from a split of a data set.

    If the data set has fewer images, some are repeated.

    Args:
        data: data.LabelledData.
        number: number of images.
        seed: seed of the draw.
        split: data.Split; None takes the training images.
    """
    split = data.train if split is None else split
    places = np.sort(np.random.default_rng(seed).permutation(len(split))[:number])
    images = data.batches(split, 1).normalise(split.read(places))
    images = keras.tree.map_structure(np.asarray, images)
    order = np.random.default_rng(seed + 1).permutation(count_of(images))
    labels = np.asarray(split.labels)[places][order]

    def repeated(values):
        return np.resize(values, (number, *values.shape[1:]))

    return keras.tree.map_structure(repeated, rows_of(images, order)), repeated(labels)


def draw_for_export(data, number, seed=0, split=None):
    """Returns (inputs, labels, task) as ekg.export takes them; labels are None where a task of its
    own prepared them: of several outputs, with weights, or made by the unpruned network.

    Args: see draw_labelled.
    """
    inputs, labels = draw_labelled(data, number, seed, split)
    if type(data.task) in TASKS.values():
        return inputs, labels, data.task
    return inputs, None, "auto"


def draw_examples(data, number, seed=0):
    """Returns the inputs of draw_labelled() alone."""
    return draw_labelled(data, number, seed)[0]
