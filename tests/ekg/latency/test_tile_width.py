import keras
import pytest
from keras import layers

import ekg
from ekg.deploy import format, formats
from ekg.latency import tile_width
from tests import networks
from tests.ekg.latency.helpers import install


def test_the_tiles_of_a_runtime_are_found(monkeypatch):
    """Its convolutions compute eight channels at a time."""
    install(monkeypatch)
    supernet = ekg.Supernet(networks.resnet())
    assert tile_width.find_multiple(supernet, formats.RUNTIMES["litert"]) == 8


def test_a_runtime_without_tiles_asks_for_no_multiple(monkeypatch):
    clock = install(monkeypatch)

    class Even(format.Format):
        def timed(self, model, batch, threads=None, input_shape=None):
            def run():
                clock.now += 1e-5 * (1 + model.outputs[0].shape[-1])

            return run

    assert tile_width.find_multiple(ekg.Supernet(networks.resnet()), Even()) == 1


@pytest.mark.parametrize("multiple", [2, 16])
def test_rounding_costs_the_additional_time_of_the_next_multiple(multiple):
    times = tile_width.np.array([1.0 + (count - 1) // 4 for count in range(1, 33)])
    cost = tile_width._cost_of_rounding(times, multiple)
    assert cost == 0 if multiple == 2 else cost > 0.5


def test_a_network_without_such_kernels_asks_for_none(monkeypatch):
    install(monkeypatch)
    entry = keras.Input((8,))
    model = keras.Model(entry, layers.Dense(2)(layers.ReLU()(layers.Dense(5)(entry))))
    assert tile_width.find_multiple(ekg.Supernet(model), formats.RUNTIMES["litert"]) == 1
