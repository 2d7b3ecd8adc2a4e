"""Small networks and data that the tests share. Everything runs on a CPU in seconds and needs no
download.
"""

import os
import sys
from unittest import mock

# Each of pytest's processes has a core of its own: threads that wait for one another's cores get
# less done.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# What tests need of XLA is that it compiles and computes the same; optimising takes most of its time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import utils  # noqa: F401, I001  first: it sets TensorFlow's environment
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from ekg.data.dataset import Dataset, Split
from ekg.graph.calls import finish_layers_

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 3
)
tf.config.experimental.enable_op_determinism()

# Files with a test of a minute or more, begun first: a file is one process's, so that a long one at
# the end would keep the other waiting
LONG_FILES = (
    "test_readme",
    "test_multi_worker",
    "test_full_disk",
    "test_resume",
    "test_real_data",
    "test_applications_deep",
    "test_applications",
    "test_random_graphs",
    "test_train_cifar",
    "test_train_imagenet",
    "test_prune",
    "test_export",
    "test_networks",
)


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def randomise_(model, seed=0):
    """Gives every weight of a model random values, batch norms included, so that no test passes by
    symmetry.
    """
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.name in ("gamma", "moving_variance", "variance", "scale"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("beta", "moving_mean", "bias"):
            variable.assign(rng.normal(0, 0.3, variable.shape))
        else:
            variable.assign(
                rng.normal(0, 1 / np.sqrt(np.prod(variable.shape[:-1])), variable.shape).astype(
                    variable.dtype
                )
            )
    finish_layers_(model)
    return model


def conv_bn(x, filters, name, size=3, strides=1, relu=True):
    x = layers.Conv2D(filters, size, strides, padding="same", use_bias=False, name=name)(x)
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def make_tiny_resnet(num_classes=3):
    """Stem, an identity block and a block with a projection: 4 channel groups of 6, 4, 5 and 8
    channels.
    """
    inputs = keras.Input((8, 8, 3))
    stem = conv_bn(inputs, 6, "stem")
    x = conv_bn(conv_bn(stem, 4, "a1"), 6, "a2", relu=False)
    stage = layers.ReLU(name="a_out")(layers.Add(name="a_add")([x, stem]))
    x = conv_bn(conv_bn(stage, 5, "b1", strides=2), 8, "b2", relu=False)
    shortcut = conv_bn(stage, 8, "b3", size=1, strides=2, relu=False)
    x = layers.ReLU(name="b_out")(layers.Add(name="b_add")([x, shortcut]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return randomise_(keras.Model(inputs, layers.Dense(num_classes, name="fc")(x), name="tiny"))


def make_data(num_train=96, num_test=22, num_classes=3, size=8, seed=0):
    """Images whose class is the channel that is brightest."""
    rng = np.random.default_rng(seed)

    def split(count):
        labels = np.arange(count, dtype=np.int32) % num_classes
        images = rng.integers(0, 160, (count, size, size, 3))
        images[np.arange(count), ..., labels % 3] += 60
        return Split(images.astype(np.uint8), labels)

    return Dataset(
        "TINY", num_classes, split(num_train), split(num_test), (100.0,) * 3, (50.0,) * 3
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "rendered: the pictures of runs are rendered in this test")


@pytest.fixture(autouse=True)
def blank_pictures(request, monkeypatch):
    """Lets pictures of runs be drawn but not rendered, which takes as long as a small search.

    Fixtures of modules and tests marked `rendered` render them.
    """
    if "rendered" in request.keywords or "ekg.report.pictures" not in sys.modules:
        return
    pictures = sys.modules["ekg.report.pictures"]
    draw, save = pictures.draw_run, pictures.save

    def save_blank(figure, path):
        figure.clear()
        save(figure, path)

    def draw_blank(path, run):
        with mock.patch.object(pictures, "save", save_blank):
            draw(path, run)

    monkeypatch.setattr(pictures, "draw_run", draw_blank)


@pytest.fixture
def tiny_resnet():
    return make_tiny_resnet()


@pytest.fixture
def tiny_data():
    return make_data()


@pytest.fixture
def images():
    return np.random.default_rng(1).normal(size=(7, 8, 8, 3)).astype(np.float32)
