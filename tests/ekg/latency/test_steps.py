import keras
import pytest
from keras import layers

import ekg
from ekg.latency import runtimes, steps
from tests.helpers import networks
from tests.helpers.made_up_runtime import install


def test_the_tiles_of_a_runtime_are_found(monkeypatch):
    """Its convolutions compute eight channels at a time."""
    install(monkeypatch)
    assert steps.find_multiple(ekg.Supernet(networks.resnet()), runtimes.RUNTIMES["litert"]) == 8


def test_a_runtime_without_tiles_asks_for_no_multiple(monkeypatch):
    clock = install(monkeypatch)

    class Even(runtimes.Runtime):
        def load(self, model, batch, threads, input_shape=None):
            def run():
                clock.now += 1e-5 * (1 + model.outputs[0].shape[-1])

            return run

    assert steps.find_multiple(ekg.Supernet(networks.resnet()), Even()) == 1


@pytest.mark.parametrize("multiple", [2, 16])
def test_rounding_costs_what_the_next_multiple_takes_more(multiple):
    times = steps.np.array([1.0 + (count - 1) // 4 for count in range(1, 33)])
    cost = steps._cost_of_rounding(times, multiple)
    assert cost == 0 if multiple == 2 else cost > 0.5


def test_a_network_without_such_kernels_asks_for_none(monkeypatch):
    install(monkeypatch)
    entry = keras.Input((8,))
    model = keras.Model(entry, layers.Dense(2)(layers.ReLU()(layers.Dense(5)(entry))))
    assert steps.find_multiple(ekg.Supernet(model), runtimes.RUNTIMES["litert"]) == 1
