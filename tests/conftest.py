"""Devices, order and fixtures of all tests. Everything runs on a CPU and needs no download."""

import gc
import os
import sys
import types
from unittest import mock

# Each of pytest's processes has a core of its own: threads that wait for one another's cores get
# less done.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# What tests need of XLA is that it compiles and computes the same; optimising takes most of its
# time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import utils  # noqa: F401, I001  first: it sets TensorFlow's environment
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.util import tf_stack

from ekg.process.memory import resident_mib
from tests.helpers.models import make_data, make_tiny_resnet

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 3
)
tf.config.experimental.enable_op_determinism()

# Most functions of a test run once or twice, so that what TensorFlow does while it traces them
# takes most of the time: a stack trace per operation, which only errors in graphs show, and
# optimising graphs. Cycles of garbage are collected after modules that leave much of it.
_STACK = tf_stack.extract_stack()
tf_stack.extract_stack = lambda stacklevel=1: _STACK
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
gc.disable()
GARBAGE_MIB = 1000

# Files with a test of a minute or more, begun first: a file is one process's, so that a long one at
# the end would keep the other waiting
LONG_FILES = (
    "test_readme",
    "test_multi_worker",
    "test_full_disk",
    "test_resume",
    "test_train_cifar",
    "test_applications_deep",
    "test_applications",
    "test_random_graphs",
    "test_random_networks",
    "test_pruning",
    "test_xla",
    "test_real_data",
    "test_finished",
    "test_train_imagenet",
    "test_prune",
    "test_gpu_kernels",
    "test_outputs",
    "test_package",
    "test_export",
    "test_networks",
)


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_configure(config):
    config.addinivalue_line("markers", "rendered: the pictures of runs are rendered in this test")
    config.addinivalue_line("markers", "timed: tables have the latencies that they have by default")
    config.addinivalue_line("markers", "rehearsed: jobs have their preflight in this test")


@pytest.fixture(scope="session")
def collected():
    """The resident memory in MiB when garbage was last collected, in a list."""
    return [resident_mib()]


@pytest.fixture(autouse=True, scope="module")
def garbage(collected):
    yield
    if resident_mib() > collected[0] + GARBAGE_MIB:
        gc.collect()
        collected[0] = resident_mib()


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


@pytest.fixture(autouse=True)
def short_latencies(request, monkeypatch):
    """Lets tables be made with few rounds, and without LiteRT where no runtime is named.

    Fixtures of modules and tests marked `timed` measure as users do.
    """
    if "timed" not in request.keywords and "ekg.report.measure" in sys.modules:
        measure = sys.modules["ekg.report.measure"]
        monkeypatch.setattr(measure, "LEAST_SECONDS", 0.05)
        monkeypatch.setattr(measure, "automatic_runtimes", lambda: ["tensorflow"])


@pytest.fixture(autouse=True)
def no_preflight(request, monkeypatch):
    """Lets jobs begin without their preflight, which traces much that the job traces again.

    Fixtures of modules and tests marked `rehearsed` have it.
    """
    if "rehearsed" not in request.keywords and "ekg.run.run" in sys.modules:
        without = types.SimpleNamespace(rehearse=lambda job, baseline: {})
        monkeypatch.setattr(sys.modules["ekg.run.run"], "preflight", without)


@pytest.fixture
def tiny_resnet():
    return make_tiny_resnet()


@pytest.fixture
def tiny_data():
    return make_data()


@pytest.fixture
def images():
    return np.random.default_rng(1).normal(size=(7, 8, 8, 3)).astype(np.float32)
