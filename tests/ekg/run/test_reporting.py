"""The formats that a run is to leave are tried before its first phase."""

import dataclasses

import keras
import pytest
from keras import layers

from ekg.devices.compute import Compute
from ekg.errors import EkgError
from ekg.network.supernet import Supernet
from ekg.run.folder import RunFolder
from ekg.run.job import Job
from ekg.run.preflight import rehearse_report
from ekg.run.settings import JobSettings, RunSettings
from tests.helpers.models import make_data, randomise_


def network(dtype="float32", has_erfinv=False, size=8):
    entry = keras.Input((size, size, 3))
    x = layers.Conv2D(4, 3, padding="same", dtype=dtype)(layers.RandomFlip()(entry))
    x = layers.BatchNormalization(dtype=dtype)(layers.Conv2D(4, 3, dtype=dtype)(x))
    x = keras.ops.erfinv(0.01 * x) if has_erfinv else x
    return randomise_(keras.Model(entry, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))


def rehearse(model, folder, form):
    settings = dataclasses.replace(
        JobSettings(), run=RunSettings(val_batch_size=20, runtimes=(), exports=(form,))
    )
    supernet = Supernet(model, input_shape=(8, 8, 3))
    rehearse_report(Job(settings, make_data(), supernet, Compute(), RunFolder.create(folder, {})))


def test_a_format_that_refuses_the_network_ends_the_run_before_it_begins(tmp_path):
    with pytest.raises(EkgError, match="LiteRT cannot take it .it has no operator for Erfinv"):
        rehearse(network(has_erfinv=True), tmp_path / "run", "litert")


@pytest.mark.parametrize(
    "options", [{"dtype": "mixed_bfloat16"}, {"size": None}], ids=["mixed", "any size"]
)
def test_a_network_that_a_format_takes_passes(tmp_path, options):
    rehearse(network(**options), tmp_path / "run", "onnx")
