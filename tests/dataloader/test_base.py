import numpy as np

from tests.conftest import make_data


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


def test_an_incomplete_last_batch_is_left_out():
    assert [len(batch["index"]) for batch in make_data(num_train=100).epoch(32, 0, 0)] == [32, 32, 32]


def test_subsets_hold_the_first_and_the_last_images_of_each_class(tiny_data):
    marked = tiny_data.train.images
    marked[:, 0, 0, 0] = np.arange(96)
    first = tiny_data.first_of_each_class(4, seed=0)
    last = tiny_data.last_of_each_class(4, seed=0)
    assert sorted(first.images[:, 0, 0, 0]) == list(range(12))
    assert sorted(last.images[:, 0, 0, 0]) == list(range(84, 96))
    assert list(first.labels) == [image % 3 for image in first.images[:, 0, 0, 0]]
    assert list(first.images[:, 0, 0, 0]) == list(tiny_data.first_of_each_class(4, seed=0).images[:, 0, 0, 0])
    assert list(first.labels) != sorted(first.labels)
