import keras
import numpy as np
import pytest

from ekg.errors import EkgError
from ekg.latency import runtimes, timing
from ekg.latency.timing import Conditions, measure_latency, summarise, time_in_turn
from tests.helpers.made_up_runtime import Clock


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def moving(clock, seconds, order=None, name=None):
    """Returns a function that takes these seconds, one after the other, the last again and
    again.
    """
    left = list(seconds)

    def run():
        clock.now += left.pop(0) if len(left) > 1 else left[0]
        if order is not None:
            order.append(name)

    return run


def test_the_graph_that_is_timed_has_the_norms_that_are_deployed():
    """In training a norm of 5 channels takes 16 positions as one; a converter could not fold that
    into the convolution.
    """
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(
        inputs, keras.layers.BatchNormalization()(keras.layers.Conv2D(5, 3, padding="same")(inputs))
    )
    operations = {
        operation.type
        for operation in runtimes._frozen(model, 2, None)[1]
        .get_concrete_function()
        .graph.get_operations()
    }
    assert "FusedBatchNormV3" in operations and "Tile" not in operations


def test_networks_run_in_turn(clock):
    order = []
    functions = [moving(clock, [0.1], order, name) for name in "ab"]
    samples = time_in_turn(functions, 3, warmup=0)
    assert "".join(order) == "ab" + 3 * "aabb"  # each sample behind an untimed call
    order.clear()
    time_in_turn(functions, 3, warmup=0, own_caches=False)
    assert "".join(order) == "ab" + "ababab"
    np.testing.assert_allclose(samples, 0.1)


def test_what_is_fast_is_repeated_within_a_sample(clock):
    calls = []
    samples = time_in_turn([moving(clock, [2e-5], calls)], 4, warmup=0)
    np.testing.assert_allclose(samples, 2e-5)
    assert len(calls) == 1 + 4 * (1 + 10)


def test_rounds_end_with_the_time_but_there_are_three(clock):
    assert len(time_in_turn([moving(clock, [5.0])], 100, seconds=7, warmup=0)) == 3
    assert (
        len(time_in_turn([moving(clock, [1.0])], 100, seconds=7.5, warmup=0, own_caches=False)) == 8
    )


def test_a_drift_of_the_machine_hits_all_alike():
    """The machine becomes twice as slow; the ratio stays."""
    speed = np.linspace(1, 2, 11)[:, None]
    first, second = summarise(speed * np.array([[0.004, 0.002]]))
    assert (first.ratio, second.ratio, second.ratio_low, second.ratio_high) == pytest.approx(
        (1, 0.5, 0.5, 0.5)
    )
    assert second.milliseconds == pytest.approx(3.0) and (second.low, second.high) == pytest.approx(
        (2.2, 3.8)
    )
    assert second.rounds == 11


def test_the_ratio_is_that_of_the_medians_which_are_shown_beside_it():
    first, second = summarise(np.array([[0.004, 0.001], [0.010, 0.002], [0.001, 0.003]]))
    assert (first.milliseconds, second.milliseconds) == pytest.approx((4, 2))
    assert (first.ratio, second.ratio) == pytest.approx(
        (1, 2 / 4)
    )  # the median of the ratios is .25
    assert (second.ratio_low, second.ratio_high) == pytest.approx(
        np.quantile([0.25, 0.2, 3.0], (0.1, 0.9))
    )


def test_conditions_in_words():
    assert str(Conditions("litert")) == "litert, batch 1, 1 thread"
    assert str(Conditions("onnxruntime", 8, 2)) == "onnxruntime, batch 8, 2 threads"
    assert str(Conditions("tensorflow", 256)) == "tensorflow, batch 256"


@pytest.mark.parametrize("runtime", ["tensorflow", "litert", "onnxruntime"])
def test_every_runtime_runs_a_network(tiny_resnet, runtime):
    threads = None if runtime == "tensorflow" else 1
    timings = measure_latency({"a": tiny_resnet, "b": tiny_resnet}, runtime, 2, threads, rounds=3)
    assert list(timings) == ["a", "b"] and timings["a"].ratio == 1
    assert all(0 < one.low <= one.milliseconds <= one.high for one in timings.values())


def test_an_unknown_runtime_is_refused(tiny_resnet):
    with pytest.raises(
        EkgError, match=r"`runtime` must be one of \['litert', 'onnxruntime', 'tensorflow'\]"
    ):
        measure_latency({"a": tiny_resnet}, "tvm")
