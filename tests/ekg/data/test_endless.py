"""Data that does not end, or comes as dicts, is taken by so many batches or refused in one line."""

import collections
import itertools
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import ekg
from ekg.data.inputs import Inputs
from ekg.data.sources import find_examples
from ekg.errors import EkgError

IMAGES = np.random.default_rng(0).random((40, 4, 4, 1)).astype(np.float32)
LABELS = np.arange(40) % 4
SHAPE = (4, 4, 1)
INPUTS = Inputs((SHAPE,))
SPEC = (tf.TensorSpec((None, 4, 4, 1)), tf.TensorSpec((None,), tf.int64))


def dataset(size=8):
    return tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(size)


def generated(make):
    return tf.data.Dataset.from_generator(make, output_signature=SPEC)


def again_and_again():
    """Begins again in the middle of a batch."""
    for number in itertools.count():
        rows = np.arange(7 * number, 7 * number + 7) % 40
        yield IMAGES[rows], LABELS[rows]


def always_other():
    rng = np.random.default_rng()
    while True:
        yield rng.random((7, 4, 4, 1)), LABELS[:7]


def counting():
    """Never ends and never begins again, the same each time."""
    for number in itertools.count():
        yield np.full((7, 4, 4, 1), number, np.float32), LABELS[:7]


class Endless(keras.utils.PyDataset):
    """A PyDataset that says that it is infinite."""

    num_batches = None

    def __getitem__(self, number):
        rows = np.arange(8 * number, 8 * number + 8) % 40
        return IMAGES[rows], LABELS[rows]


class Unsaid(keras.utils.PyDataset):
    """A PyDataset without a length."""

    def __getitem__(self, number):
        return Endless.__getitem__(self, number)


@pytest.mark.parametrize(
    "make",
    [
        lambda: dataset().repeat(),
        lambda: Endless(),
        lambda: Unsaid(),
        lambda: dataset(),
        lambda: dataset().map(lambda x, y: ({"image": x}, {"class": y})).repeat(),
        lambda: generated(again_and_again).rebatch(8),
    ],
)
def test_the_given_number_of_batches_is_read(make):
    examples = find_examples(make(), INPUTS, steps=3)
    np.testing.assert_array_equal(*keras.tree.flatten(examples.labels), LABELS[:24])
    np.testing.assert_array_equal(examples.read(np.arange(24)), IMAGES[:24])


def unbatched_dict():
    return tf.data.Dataset.from_tensor_slices(({"image": IMAGES}, LABELS))


@pytest.mark.parametrize(
    ("source", "steps", "message"),
    [
        (
            lambda: dataset().repeat(),
            None,
            "never ends; leave its repeat.. out, or say by `steps_per_epoch`",
        ),
        (lambda: Endless(), None, "has no length, so it never ends; say by `steps_per_epoch`"),
        (lambda: Unsaid(), None, "has no length, so it never ends"),
        (
            lambda: generated(again_and_again),
            None,
            "begins again after 4[0-9] examples and may never end",
        ),
        (lambda: generated(always_other), None, "gives other examples when it is read again"),
        (unbatched_dict, None, "gives single examples; batch them"),
        (
            lambda: tf.data.Dataset.from_tensor_slices({"image": IMAGES, "label": LABELS}),
            None,
            "gives dicts of .'image', 'label'.; map them to pairs",
        ),
        (lambda: dataset(), 9, "`steps_per_epoch` is 9, and `data` has 5 batches"),
        (lambda: dataset(), 0, "must be a whole number of at least 1; received 0"),
        (
            lambda: (IMAGES, LABELS),
            2,
            "`steps_per_epoch` has no effect here: `data` does not come in batches",
        ),
    ],
)
def test_endless_data_is_refused(source, steps, message):
    with pytest.raises(EkgError, match=message) as error:
        find_examples(source(), INPUTS, steps=steps)
    assert "\n" not in str(error.value)


def test_data_that_fills_the_folder_is_refused(monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 0, 50_000))
    with pytest.raises(
        EkgError, match="has not ended after .* examples of 4[0-9],[0-9]+ bytes, which fill"
    ):
        find_examples(generated(counting), INPUTS)


def test_a_finite_generator_is_read_completely():
    def once():
        for start in range(0, 40, 10):
            yield IMAGES[start : start + 10], LABELS[start : start + 10]

    assert (find_examples(generated(once), INPUTS).labels == LABELS).all()
    twice = generated(lambda: itertools.islice(counting(), 30))
    assert len(find_examples(twice, INPUTS).labels) == 210


def test_a_single_input_as_a_dict_and_the_argument_of_make_data():
    own = keras.Sequential(
        [keras.Input(SHAPE, name="image"), keras.layers.Flatten(), keras.layers.Dense(4)]
    )
    data = ekg.make_data(own, ({"image": IMAGES}, {"class": LABELS}))
    np.testing.assert_array_equal(data.train.read(np.arange(40)), IMAGES)
    assert len(ekg.make_data(own, dataset().repeat(), steps_per_epoch=2).train) == 16
