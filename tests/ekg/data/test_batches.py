import numpy as np
import pytest

from ekg.data.dataset import Batches, TrainingBatches, members_by_class, prefetched
from ekg.errors import EkgError
from tests.helpers.models import make_data


def test_an_epoch_visits_every_image_once_with_its_own_label_and_draws(tiny_data):
    batches = list(tiny_data.epoch(batch_size=32, seed=3, epoch=1, num_views=2))
    index = np.concatenate([batch["index"] for batch in batches])
    assert sorted(index) == list(range(96)) and (index != np.arange(96)).any()
    for batch in batches:
        np.testing.assert_array_equal(batch["images"], tiny_data.train.images[batch["index"]])
        np.testing.assert_array_equal(batch["labels"], tiny_data.train.labels[batch["index"]])
        assert batch["draws"].shape == (32, 2, 6) and batch["images"].dtype == np.uint8


def test_draws_are_keyed_by_seed_epoch_and_image(tiny_data):
    def draws(batch_size, seed, epoch):
        batches = list(tiny_data.epoch(batch_size, seed, epoch, num_views=1))
        index = np.concatenate([batch["index"] for batch in batches])
        return np.concatenate([batch["draws"] for batch in batches])[np.argsort(index)]

    np.testing.assert_array_equal(draws(32, 0, 5), draws(48, 0, 5))
    assert not np.array_equal(draws(32, 0, 5), draws(32, 0, 6))
    assert not np.array_equal(draws(32, 0, 5), draws(32, 1, 5))


def test_an_incomplete_last_batch_is_dropped():
    assert [len(batch["index"]) for batch in make_data(num_train=100).epoch(32, 0, 0)] == [
        32,
        32,
        32,
    ]


def test_subsets_hold_the_first_and_the_last_images_of_each_class(tiny_data):
    marked = tiny_data.train.images
    marked[:, 0, 0, 0] = np.arange(96)
    first = tiny_data.first_of_each_class(4, seed=0)
    last = tiny_data.last_of_each_class(4, seed=0)
    assert sorted(first.images[:, 0, 0, 0]) == list(range(12))
    assert sorted(last.images[:, 0, 0, 0]) == list(range(84, 96))
    assert list(first.labels) == [image % 3 for image in first.images[:, 0, 0, 0]]
    assert list(first.images[:, 0, 0, 0]) == list(
        tiny_data.first_of_each_class(4, seed=0).images[:, 0, 0, 0]
    )
    assert list(first.labels) != sorted(first.labels)


def test_more_images_of_a_class_than_there_are_cannot_be_asked_for(tiny_data):
    message = (
        "33 images of each class are asked for, and the largest class of TINY has 32; lower "
        "`subset_per_class`"
    )
    for take in (tiny_data.first_of_each_class, tiny_data.last_of_each_class):
        with pytest.raises(EkgError, match=message):
            take(33, seed=0)


# ------------------------------------------ batches of a split in its own order


@pytest.mark.parametrize(
    ("num_images", "batch_size", "edges"),
    [(320, 256, [0, 160, 320]), (10, 4, [0, 3, 6, 10]), (4, 4, [0, 4]), (3, 8, [0, 3])],
)
def test_batches_are_few_and_of_even_size(num_images, batch_size, edges):
    data = make_data(num_train=num_images)
    batches = Batches(data.train, data.normalise, batch_size)
    assert [(indices[0], indices[-1] + 1) for indices in batches.indices] == list(
        zip(edges, edges[1:])
    )
    assert (len(batches), batches.num_images) == (len(edges) - 1, num_images)
    for number, images in enumerate(batches.images()):
        np.testing.assert_array_equal(images, data.train.images[edges[number] : edges[number + 1]])
        np.testing.assert_array_equal(
            batches.labels(number), data.train.labels[edges[number] : edges[number + 1]]
        )


def test_single_batches_and_the_first_images_can_be_asked_for(tiny_data):
    batches = Batches(tiny_data.train, tiny_data.normalise, 40)
    (second,) = batches.images([1])
    np.testing.assert_array_equal(second, tiny_data.train.images[32:64])
    assert list(batches.images([])) == []
    for count, expected in ((50, 50), (1000, 96)):
        head = batches.head(count)
        assert head.num_images == expected and head.batch_size == 40
        np.testing.assert_array_equal(
            np.concatenate(list(head.images())), tiny_data.train.images[:expected]
        )


# ---------------------------------------------------------------- batches of a training


def test_an_epoch_resumes_at_a_batch_and_is_split_among_workers(tiny_data):
    batches = TrainingBatches(tiny_data, batch_size=30, seed=3, num_views=2)
    whole = list(batches.epoch(1))
    assert len(whole) == batches.num_steps == 3
    for batch, again in zip(whole[1:], batches.epoch(1, start=1)):
        assert batch.keys() == again.keys() and all(
            (batch[name] == again[name]).all() for name in batch
        )
    for batch, *parts in zip(whole, batches.epoch(1, (0, 2)), batches.epoch(1, (1, 2))):
        for name in batch:
            np.testing.assert_array_equal(
                np.concatenate([part[name] for part in parts]), batch[name]
            )


def test_batches_of_a_subset_are_completed(tiny_data):
    subset = tiny_data.first_of_each_class(8, seed=0)
    batches = TrainingBatches(
        tiny_data, 10, seed=0, split=subset, complete=lambda batch: {"twice": 2 * batch["index"]}
    )
    assert batches.num_steps == 2
    for batch in batches.epoch(0):
        np.testing.assert_array_equal(batch["images"], subset.images[batch["index"]])
        np.testing.assert_array_equal(batch["twice"], 2 * batch["index"])
        assert "draws" not in batch


# ---------------------------------------------------------------- reading ahead


def test_items_are_taken_ahead_and_an_error_arrives_in_its_place():
    taken = []

    def items():
        for number in range(5):
            taken.append(number)
            yield number
        raise ValueError("after the last")

    ahead = prefetched(items(), depth=2)
    assert next(ahead) == 0 and next(ahead) == 1
    with pytest.raises(ValueError, match="after the last"):
        for number in ahead:
            assert number in taken
    assert taken == list(range(5)) and list(prefetched(range(3), depth=5)) == [0, 1, 2]


@pytest.mark.parametrize("num_classes", [3, 70_000])
def test_members_of_classes_equal_those_found_by_comparing_every_label(num_classes):
    labels = np.random.default_rng(0).integers(0, num_classes, 500)
    members = members_by_class(labels)
    assert len(members) == labels.max() + 1
    for label in np.unique(labels):
        np.testing.assert_array_equal(members[label], np.flatnonzero(labels == label))
    assert sum(map(len, members)) == len(labels)
