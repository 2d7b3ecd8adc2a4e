"""A class gives the search what it has; the others are not made smaller by it."""

import logging

import keras
import numpy as np
import pytest
from keras import layers

import ekg
from ekg.errors import EkgError
from ekg.run import check, defaults

RNG = np.random.default_rng(0)


def table(sizes):
    """(examples, class numbers) of classes of these sizes, mixed."""
    labels = RNG.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return RNG.normal(size=(len(labels), 6)).astype(np.float32) + labels[:, None], labels


def network(units=3):
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(12, activation="relu"),
            layers.Dense(8, activation="relu"),
            layers.Dense(units),
        ]
    )


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((60, 2, 50), (32, 2, 32)), ((6, 70, 33), (6, 32, 32)), ((20, 1, 9), (20, 1, 9))],
)
def test_rare_classes_do_not_shrink_the_subsets_of_others(sizes, expected):
    data = ekg.make_data(network(), table(sizes))
    settings = defaults.make_settings(data, 3, 1)
    decide = data.last_of_each_class(settings.search.val_per_class, 0)
    assert tuple(np.bincount(decide.labels)) == expected
    subset = data.first_of_each_class(settings.subset.subset_per_class, 0)
    assert tuple(np.bincount(subset.labels)) == sizes
    assert data.num_of_each_class(settings.search.val_per_class) == sum(expected)
    asked = {"val_per_class": max(sizes)}
    assert defaults.make_settings(data, 3, 1, search=asked).search.val_per_class == max(sizes)
    with pytest.raises(EkgError, match=f"the largest class of own data has {max(sizes)}"):
        data.last_of_each_class(max(sizes) + 1, 0)


def test_the_log_says_how_many_images_decide(caplog):
    with caplog.at_level(logging.INFO):
        result = ekg.prune(
            network(), table((40, 2, 40)), target_rate=0.9, epochs=None, search={"search_step": 1.0}
        )
    assert (
        "the search decides by 66 images: 32 of each of 3 classes or parts, but at least 2"
        in caplog.text
    )
    assert "only 66 images decide what is pruned" in caplog.text
    assert result.rate <= 0.9 and np.isfinite(result.table[-1].loss)


def test_enough_images_give_no_warning(caplog):
    data = ekg.make_data(network(4), table((60, 4, 60, 60)))
    with caplog.at_level(logging.INFO):
        check.log_images_that_decide(data, 32)
    assert "by 100 images: 32 of each of 4" in caplog.text and "only" not in caplog.text


def test_sorted_examples_are_drawn_from_the_whole_range():
    examples, goals = RNG.normal(size=(500, 6)), np.sort(RNG.exponential(size=500))
    regression = ekg.make_data(network(1), (examples, goals))
    chosen = regression.last_of_each_class(10, 0).labels[:, 0]
    tenths = np.searchsorted(np.quantile(goals, np.linspace(0.1, 0.9, 9)), chosen)
    assert np.bincount(tenths).tolist() == [10] * 10
    several = np.zeros((500, 3), int)
    several[:, 0], several[:100, 1:] = np.arange(500) >= 250, 1
    chosen = ekg.make_data(network(3), (examples, several)).last_of_each_class(10, 0)
    assert chosen.labels[:, 0].mean() == 0.5 and chosen.labels[:, 1].mean() == 0.2
