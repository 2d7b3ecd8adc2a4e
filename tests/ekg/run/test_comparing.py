"""What a user gave is told from another by what it does, not by its name."""

import functools
import importlib.util
import logging
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ekg
from ekg.run.comparing import describe, describe_network
from tests.helpers.models import randomise_

SOURCE = """
import functools, numpy as np, tensorflow as tf, ekg
STRENGTH = {strength}
TABLE = np.arange(5.0)

def weaken(images):
    return images * STRENGTH

def plain(images, seed, factor={default}):
    return weaken(images) + {constant} * factor

def outer(held):
    def view(images, seed):
        return [plain(image, seed) for image in images + held]
    return view

class Own(ekg.Target):
    most = 0.6

    def __init__(self, share):
        self.share = share

    def cost(self, supernet, subnetwork):
        return supernet.rate(subnetwork) * self.share + {constant} - {constant}

class Far(ekg.tasks.Regression):
    def loss(self, labels, outputs, smoothing=0.0):
        return super().loss(labels, outputs, smoothing) + {constant} - {constant}

@functools.cache
def cached(images):
    return {constant}

values = [plain, outer(3.0), outer(np.ones(3)), functools.partial(plain, factor={default}),
          tf.function(plain), Own(0.5), Far(), outer({{"a": [weaken]}}), Own(0.5).cost]
"""
SAME = {"strength": 0.5, "default": 2, "constant": 7}


@pytest.fixture
def made(tmp_path):
    """A function that returns the values of SOURCE, as a program in this file with so many lines
    before it has them.
    """

    def make(file="here.py", lines=0, **changes):
        path = tmp_path / file
        path.write_text("\n" * lines + SOURCE.format(**SAME | changes))
        spec = importlib.util.spec_from_file_location("users_program", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.values

    return make


def texts(values):
    return [describe(value).text for value in values]


def test_the_same_program_elsewhere_is_the_same(made):
    assert texts(made()) == texts(made("there.py", 40))
    assert not any(describe(value).unknown for value in made())


@pytest.mark.parametrize(
    "name, same", [("strength", [5, 6, 8]), ("default", [5, 6, 8]), ("constant", [])]
)
def test_a_constant_a_default_or_a_global_makes_another_function(made, name, same):
    """Those that do not read it stay the same: the target and the task read no default and no
    global.
    """
    before, after = texts(made()), texts(made("changed.py", **{name: 9}))
    assert [i for i, (one, other) in enumerate(zip(before, after)) if one == other] == same


READERS = """
import users_package
import users_package.views

def by_module(images, seed):
    return users_package.views.shift(images)

def by_value(images, seed):
    return images * users_package.STRENGTH

def imported(images, seed):
    import users_package.views
    return users_package.views.shift(images)

def imported_from(images, seed):
    from users_package.views import shift
    return shift(images)

def attributed(images, seed):
    return images * attributed.strength

def unchanged(images, seed):
    return images + users_package.OTHER

attributed.strength = users_package.STRENGTH
values = [by_module, by_value, imported, imported_from, attributed, unchanged]
"""


def test_what_a_function_reads_from_modules_of_the_users_own_counts(tmp_path, monkeypatch):
    def load(folder, name, source):
        path = tmp_path / folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    def texts_with(folder, strength):
        package = load(folder, "users_package", f"STRENGTH, OTHER = {strength}, 1")
        source = f"def shift(images): return images + {strength}"
        package.views = load(folder, "users_package.views", source)
        return texts(load(folder, "users_program", READERS).values)

    first, again, other = texts_with("a", 2), texts_with("b", 2), texts_with("c", 3)
    assert first == again
    assert [one == changed for one, changed in zip(first, other)] == [False] * 5 + [True]


def test_a_module_that_an_object_holds_cannot_be_compared():
    held = types.ModuleType("users_module")
    (unknown,) = describe(lambda images, seed: held.shift(images)).unknown
    assert unknown.startswith("module in")


def test_captured_objects_are_compared_by_value():
    def view(held):
        return lambda images, seed: images + held

    network = keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.Dropout(0.2)])
    other = keras.models.clone_model(network)
    kinds = [
        1.0,
        1,
        np.ones(2),
        np.ones(3),
        np.ones(2, np.float32),
        tf.ones(2),
        network,
        other,
        layers.RandomFlip("vertical"),
        layers.RandomFlip("horizontal"),
        keras.optimizers.AdamW(1e-3),
        keras.optimizers.AdamW(1e-2),
        print,
        np.sqrt,
        np.square,
        {"a": 1},
        {"a": 2},
        {1, 2},
        functools.partial(np.clip, a_min=0),
        tf.nn.relu,
        tf.nn.relu6,
    ]
    found = texts(map(view, kinds))
    equal = [(i, k) for i in range(len(found)) for k in range(i) if found[i] == found[k]]
    assert equal == [(5, 4)]  # a tensor and an array of the same numbers
    other.set_weights(network.get_weights())
    assert texts(map(view, [network, other]))[0] == describe(view(other)).text
    held = []
    held.append(held)  # it holds itself
    assert describe(view(held)).text == describe(view(held)).text


def test_objects_that_claim_to_be_from_the_standard_library_are_compared_too():
    """As functions and classes of a program that has no name: Python takes them for its own."""
    views = [
        types.FunctionType(view.__code__, {})
        for view in (lambda images, seed: images, lambda images, seed: images * 0)
    ]
    kinds = [type("Own", (), {"__module__": "builtins", "view": view})() for view in views]
    assert views[0].__module__ in (None, "builtins")
    assert len(set(texts(views))) == len(set(texts(kinds))) == 2
    # the packages' own stay as they are named
    assert (
        describe(keras.ops.relu).text
        == describe(keras.ops.relu).text
        != describe(keras.ops.gelu).text
    )


def test_objects_that_cannot_be_compared_are_named():
    rng, log = np.random.default_rng(0), logging.getLogger("users")

    def noisy(images, seed):
        log.info("seen")
        return images + rng.normal()

    found = describe(noisy)
    assert found.unknown == (f"Generator in {noisy.__qualname__}",)
    assert found.text == describe(noisy).text


def test_networks_with_different_layer_settings_differ():
    def network(rate=0.2, decay=0.1, join=layers.Add, factor=2.0):
        inputs = keras.Input((4,))
        x = layers.Dense(4, kernel_regularizer=keras.regularizers.L2(decay), name="one")(inputs)
        x = join()([layers.Dropout(rate)(x), inputs * factor])
        return randomise_(keras.Model(inputs, layers.Dense(2, name="two", dtype="float32")(x)))

    base = describe_network(network())
    assert base == describe_network(network())  # names that Keras counted are others
    others = [
        network(rate=0.3),
        network(decay=0.2),
        network(join=layers.Multiply),
        network(factor=3.0),
    ]
    assert len({base, *map(describe_network, others)}) == 5


def test_networks_differ_by_functions_of_the_users_own():
    """A layer's configuration has them by name alone."""

    class Sum(keras.regularizers.Regularizer):
        def __init__(self, function):
            self.function = function

        def __call__(self, weights):
            return keras.ops.sum(self.function(weights))

        def get_config(self):
            return {}

    def double(tensor):
        return tensor * 2

    def triple(tensor):
        return tensor * 3

    triple.__name__, triple.__qualname__ = double.__name__, double.__qualname__

    def network(activation=double, regularizer=double, inside=double):
        inputs = keras.Input((4, 6))
        x = layers.Dense(4, activation, kernel_regularizer=Sum(regularizer), name="one")(inputs)
        x = layers.TimeDistributed(layers.Dense(3, inside, name="inner"), name="outer")(x)
        return randomise_(keras.Model(inputs, layers.Dense(2, name="two")(x)))

    base = describe_network(network())
    assert base == describe_network(network())
    others = [network(triple), network(regularizer=triple), network(inside=triple)]
    assert len({base, *map(describe_network, others)}) == 4


def test_a_run_resumes_with_the_same_functions_alone(made, tmp_path, caplog):
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(24, 6, 6, 3)).astype(np.float32), np.arange(24) % 3
    inputs = keras.Input((6, 6, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, activation="relu", name="conv")(inputs))
    model = randomise_(keras.Model(inputs, layers.Dense(3, name="fc")(x), name="own"))

    def criterion(power):
        def rank(context):
            return np.abs(
                np.random.default_rng(power).normal(size=context.supernet.layout.num_channels)
            )

        return rank

    def prune(power=1, share=0.5, view=None):
        return ekg.prune(
            model,
            (images, labels),
            target={"own": made()[5].__class__(share), "flops": 0.9},
            epochs=None,
            augment=view,
            run_dir=tmp_path / "run",
            verbose=False,
            search={"search_step": 1.0, "criterion": criterion(power), "val_per_class": 4},
        )

    def brighter(images, seed):
        return tf.image.stateless_random_brightness(images, 0.1, seed)

    first = prune()
    assert prune().history == first.history
    for change, name in (
        ({"power": 2}, "criterion"),
        ({"share": 0.4}, "target"),
        ({"view": brighter}, "augment"),
    ):
        with pytest.raises(ekg.EkgError, match=f"holds a run with other arguments.*\n  {name}: "):
            prune(**change)
    noise = np.random.default_rng(0)

    def noisy(images, seed):
        return brighter(images, seed) + 0 * noise.normal()

    with pytest.raises(ekg.EkgError, match="augment"):
        prune(view=noisy)
    assert f"what cannot be compared: `augment` (Generator in {noisy.__qualname__})" in caplog.text
