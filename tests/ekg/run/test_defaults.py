"""What a program asks for, as dicts or as objects, and what suits its data."""

import numpy as np
import pytest
from keras import layers

import ekg
from ekg.distil.settings import FineTuneSettings
from ekg.errors import EkgError
from ekg.run.defaults import make_settings
from ekg.run.settings import RunSettings
from ekg.searching.settings import SearchSettings, SubsetSettings
from tests.helpers.digits import digits, network


@pytest.fixture(scope="module")
def data():
    model = network(lambda x: layers.Dense(10, name="fc")(x))
    return ekg.make_data(model, digits())


def test_default_settings_suit_the_data(data):
    made = make_settings(data, 10, 1, epochs=2)
    fewest = int(np.max(data.class_sizes))
    assert made.search.val_per_class == made.subset.subset_per_class == fewest
    assert made.search.search_batch_size == made.fine_tuning.batch_size == len(data.train)
    assert (made.search.target_rate, made.fine_tuning.train_epoch, made.run.seed) == (0.5, 2, 0)


def test_a_settings_object_is_used_unchanged(data):
    asked = {
        "search": SearchSettings(search_step=0.4, val_per_class=4, search_batch_size=80),
        "fine_tune": FineTuneSettings(learning_rate=0.02, batch_size=30),
        "run": RunSettings(val_batch_size=40, accum=2),
    }
    objects = make_settings(data, 10, 1, target_rate=0.7, epochs=2, seed=3, **asked)
    dicts = {name: vars(value) for name, value in asked.items()}
    for name, key in (("search", "target_rate"), ("search", "target_params"), ("run", "seed")):
        del dicts[name][key]
    del dicts["fine_tune"]["train_epoch"]
    assert objects == make_settings(data, 10, 1, target_rate=0.7, epochs=2, seed=3, **dicts)
    assert objects.fine_tuning.temperature == 4.0 and objects.search.target_rate == 0.7
    assert make_settings(data, 10, 1, search=SubsetSettings(6)).subset.subset_per_class == 6


def test_a_settings_object_without_epochs_may_still_set_the_searchs_batch_size(data):
    made = make_settings(data, 10, 1, fine_tune=FineTuneSettings(weight_decay=0.25))
    assert made.fine_tuning.weight_decay == 0.25 and not made.fine_tunes
    with pytest.raises(EkgError, match="`learning_rate` has no effect here: `epochs` is None"):
        make_settings(data, 10, 1, fine_tune=FineTuneSettings(learning_rate=0.25))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"search": SearchSettings(target_rate=0.3)}, "`search`: the target is given as"),
        ({"run": RunSettings(seed=3)}, "`run`: the seed is given as `seed` of its own"),
        (
            {"epochs": 2, "fine_tune": FineTuneSettings(train_epoch=3)},
            "`fine_tune`: its length is given as `epochs`",
        ),
        (
            {"run": SearchSettings()},
            "`run` must be a dict of settings, {name: value}, or RunSettings; received",
        ),
        ({"search": SearchSettings(val_per_class=90)}, None),
    ],
)
def test_contradictory_settings_objects_are_refused(data, asked, message):
    if message is None:  # what an object says is not made smaller
        assert make_settings(data, 10, 1, **asked).search.val_per_class == 90
        return
    with pytest.raises(EkgError, match=message.replace("{", "[{]")):
        make_settings(data, 10, 1, **asked)
