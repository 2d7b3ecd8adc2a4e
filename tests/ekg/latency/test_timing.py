import logging
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf

import ekg
from ekg.deploy import formats, keras_file, litert
from ekg.deploy.packages import require
from ekg.errors import EkgError
from ekg.graph.execute import pure_forward, read_variables
from ekg.latency import timing
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


@pytest.fixture
def narrow():
    """A convolution of 5 channels with a batch norm: in training it takes 16 positions as one."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(5, 3, padding="same", use_bias=False)(inputs)
    return keras.Model(inputs, keras.layers.BatchNormalization()(x))


def test_tensorflow_times_norms_as_they_are_deployed(narrow):
    forward, variables = pure_forward(narrow, keras_file.AS_DEPLOYED), read_variables(narrow)
    graph = tf.function(lambda x: forward(*variables, x, False)[0]).get_concrete_function(
        tf.TensorSpec((2, 8, 8, 3), tf.float32)
    )
    operations = {operation.type for operation in graph.graph.get_operations()}
    assert "FusedBatchNormV3" in operations and "Tile" not in operations


@pytest.mark.parametrize("form", ["litert", "onnx"])
def test_the_file_that_is_timed_is_the_one_that_export_writes(narrow, tmp_path, monkeypatch, form):
    timed = []
    kind = type(formats.FORMATS[form])
    opened = kind.open

    def open_and_keep(self, path, source=None):
        timed.append(Path(path).read_bytes())
        return opened(self, path, source)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "open", open_and_keep)
        measure_latency({"a": narrow}, kind.runtime, 2, 1, rounds=3)
    path = tmp_path / f"a{kind.suffix}"
    ekg.export(narrow, path)
    assert [contents(form, data) for data in timed] == [contents(form, path.read_bytes())]


def contents(form, data):
    """Returns the contents of a file, of a .onnx file without its names, which are numbered."""
    if form == "litert":
        return data
    graph = onnx.load_from_string(data).graph
    return [node.op_type for node in graph.node], [one.raw_data for one in graph.initializer]


def test_a_network_that_converts_at_a_fixed_batch_only_is_timed_at_it(tmp_path, caplog):
    entry = keras.Input((6, 4))
    model = keras.Model(entry, keras.layers.Dense(2)(keras.layers.LSTM(3)(entry)))
    assert ekg.export(model, tmp_path / "a.tflite").batch == 1
    with caplog.at_level(logging.INFO):
        [timing] = measure_latency({"a": model}, "litert", 2, rounds=3).values()
    assert timing.milliseconds > 0 and "timed at batch 2 only" in caplog.text


def test_a_part_is_timed_with_the_operations_of_a_file(narrow):
    """One convolution with its bias, into which the norm is folded."""
    names = []
    for run in (litert.LiteRT().timed(narrow, 2, 1), litert.LiteRT().timed_part(narrow, 2, 1)):
        details = run.__self__._get_ops_details()
        names.append([entry["op_name"] for entry in details if entry["op_name"] != "DELEGATE"])
    assert names[0] == names[1] == ["CONV_2D"]


def test_a_pass_runs_on_the_threads_asked_for(narrow, monkeypatch, tmp_path):
    class Interpreter(require("ai-edge-litert").Interpreter):
        def __init__(self, num_threads=None, **options):
            super().__init__(num_threads=num_threads, **options)
            self.threads = num_threads

    sessions, InferenceSession = [], require("onnxruntime").InferenceSession

    def make_session(path, options, providers):
        sessions.append(options.intra_op_num_threads)
        return InferenceSession(path, options, providers)

    monkeypatch.setattr(require("ai-edge-litert"), "Interpreter", Interpreter)
    monkeypatch.setattr(require("onnxruntime"), "InferenceSession", make_session)
    images = [np.zeros((2, 8, 8, 3), np.float32)]
    readers = [ekg.export(narrow, tmp_path / name).reader for name in ("a.tflite", "a.onnx")]
    for threads in (1, 3):
        assert readers[0].make_pass(images, threads).__self__.threads == threads
        readers[1].make_pass(images, threads)
        assert sessions[-1] == threads
    for timed in (litert.LiteRT().timed, litert.LiteRT().timed_part):
        assert timed(narrow, 2, 3).__self__.threads == 3


def test_networks_are_timed_in_turn(clock):
    order = []
    functions = [moving(clock, [0.1], order, name) for name in "ab"]
    samples = time_in_turn(functions, 3, warmup=0)
    assert "".join(order) == "ab" + 3 * "aabb"  # each sample after an untimed call
    order.clear()
    time_in_turn(functions, 3, warmup=0, own_caches=False)
    assert "".join(order) == "ab" + "ababab"
    np.testing.assert_allclose(samples, 0.1)


def test_fast_functions_are_repeated_within_a_sample(clock):
    calls = []
    samples = time_in_turn([moving(clock, [2e-5], calls)], 4, warmup=0)
    np.testing.assert_allclose(samples, 2e-5)
    assert len(calls) == 1 + 4 * (1 + 10)


def test_rounds_end_with_the_time_but_there_are_three(clock):
    assert len(time_in_turn([moving(clock, [5.0])], 100, seconds=7, warmup=0)) == 3
    assert (
        len(time_in_turn([moving(clock, [1.0])], 100, seconds=7.5, warmup=0, own_caches=False)) == 8
    )


def test_a_drift_of_the_machine_affects_all_networks_alike():
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
