import keras
import numpy as np
import pytest

from ekg.data.dataset import Split
from ekg.errors import EkgError
from ekg.graph import cutting
from ekg.latency.timing import Conditions
from ekg.report import measure
from ekg.report.table import Row
from ekg.train.evaluate import Evaluation
from tests.helpers.made_up_runtime import install
from tests.helpers.models import make_data


def test_a_table_is_measured_in_the_requested_and_the_targeted_conditions():
    target = Conditions("litert")
    assert measure.conditions_for(()) == []
    assert measure.conditions_for(("tensorflow", "litert"), target) == [
        target,
        Conditions("tensorflow", 1),
        Conditions("tensorflow", 256),
    ]
    assert [str(one) for one in measure.conditions_for(("tensorflow", "onnxruntime"))] == [
        "tensorflow, batch 1",
        "tensorflow, batch 256",
        "onnxruntime, batch 1, 1 thread",
    ]


def test_latencies_of_a_tables_networks_are_ratios_to_its_first(tiny_resnet, monkeypatch):
    monkeypatch.setattr(measure, "ROUNDS", 3)
    rows = [Row(name, 1.0, {"top1": 0.5}, 1, 2, 3) for name in "abc"]
    copied = cutting.copy(tiny_resnet)
    rows = measure.with_latencies(
        rows, [tiny_resnet, copied, copied], (), None, target=Conditions("tensorflow", 2)
    )
    assert (
        rows[1].latencies == rows[2].latencies != rows[0].latencies
    )  # one network is measured once
    for row in rows:
        ((name, timing),) = row.latencies.items()
        assert name == "tensorflow, batch 2" and timing["rounds"] == 3
        assert (
            np.isfinite(timing["milliseconds"])
            and timing["low"] <= timing["milliseconds"] <= timing["high"]
        )
    assert rows[0].latencies["tensorflow, batch 2"]["ratio"] == 1.0


@pytest.mark.timed
@pytest.mark.parametrize(
    ("run_seconds", "expected"), [(10, 1.0), (100, 2.5), (400, 10.0), (4000, 20.0), (np.inf, 20.0)]
)
def test_latencies_take_a_twentieth_of_a_run_and_no_more_than_a_third_of_a_minute_each(
    monkeypatch, run_seconds, expected
):
    asked = []
    monkeypatch.setattr(measure, "_measure_in_turn", lambda *args: asked.append(args[-1]) or [])
    measure.with_latencies([], [], ("tensorflow",), None, run_seconds=run_seconds)
    assert asked == [expected, expected]


@pytest.mark.parametrize(
    ("shift", "number", "is_warned"), [(0.0, 96, False), (3.0, 96, True), (3.0, 3, False)]
)
def test_stale_moving_statistics_are_reported(tiny_resnet, caplog, shift, number, is_warned):
    """Labels are what the network says with right statistics; statistics that are far off give
    other answers.
    """
    model, data = cutting.copy(tiny_resnet), make_data()
    images = data.normalise(data.train.images)
    bias = model.layers[-1].bias
    bias.assign(bias - np.median(model(images, training=False), axis=0))  # no class is all of them
    labels = np.argmax(model(images, training=False), axis=-1)
    batches = data.batches(
        Split(data.train.images, labels.astype(np.int32)).take(np.arange(number)), 24
    )
    for weight in model.weights:
        if weight.name == "moving_mean":
            weight.assign(weight + shift * np.random.default_rng(0).normal(size=weight.shape))
    evaluation = Evaluation(model, batches)
    measure.warn_of_lagging_statistics(evaluation, batches, 1.0)
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    share = 100 * evaluation().top1
    assert len(messages) == is_warned and (share < 80 if is_warned else share == 100 or number < 10)
    assert all(
        f"images it has {share:.2f} % top-1 with them" in text and "100.00 % with" in text
        for text in messages
    )


def test_threads_of_tensorflow_are_not_silently_ignored(tiny_resnet):
    with pytest.raises(EkgError, match="`threads` has no effect here"):
        measure.with_latencies(
            [Row("a", 1.0, {}, 1, 2, 3)],
            [tiny_resnet],
            (),
            None,
            target=Conditions("tensorflow", 1, 2),
        )


@pytest.mark.parametrize(
    ("target", "runtimes", "expected"),
    [
        (Conditions("litert", 3, 2), (), (3, 2)),
        (Conditions("litert", 3), (), (3, 1)),
        (None, ("litert",), (1, 1)),
    ],
)
def test_networks_are_timed_at_the_batch_and_threads_that_the_table_names(
    tiny_resnet, monkeypatch, target, runtimes, expected
):
    clock = install(monkeypatch)
    rows = [Row("a", 1.0, {}, 1, 2, 3)]
    (row,) = measure.with_latencies(rows, [tiny_resnet], runtimes, None, target=target)
    assert clock.conditions == {expected}
    plural = "s" if expected[1] > 1 else ""
    assert list(row.latencies) == [f"litert, batch {expected[0]}, {expected[1]} thread{plural}"]


def latencies_of(model, runtimes):
    (row,) = measure.with_latencies([Row("a", 1.0, {}, 1, 2, 3)], [model], runtimes, None)
    return list(row.latencies)


@pytest.mark.timed
def test_a_table_has_litert_beside_tensorflow_where_it_is_installed(
    tiny_resnet, monkeypatch, caplog
):
    caplog.set_level("INFO")
    in_tensorflow = ["tensorflow, batch 1", "tensorflow, batch 256"]
    assert latencies_of(tiny_resnet, ("auto",)) == [*in_tensorflow, "litert, batch 1, 1 thread"]
    assert not caplog.messages
    monkeypatch.setattr(measure, "is_installed", lambda package: False)
    assert latencies_of(tiny_resnet, ("auto",)) == in_tensorflow
    (message,) = caplog.messages
    assert "pip install ai-edge-litert" in message


@pytest.mark.timed
def test_a_network_that_litert_lacks_an_operator_for_has_latencies_of_tensorflow_alone(
    monkeypatch, caplog
):
    caplog.set_level("INFO")
    monkeypatch.setattr(measure, "BATCHES", (1,))
    entry = keras.Input((4,))
    model = keras.Model(entry, keras.ops.erfinv(0.01 * keras.layers.Dense(3)(entry)))
    assert latencies_of(model, ("auto",)) == ["tensorflow, batch 1"]
    assert "it has no operator for Erfinv" in caplog.text
    with pytest.raises(EkgError, match="it has no operator for Erfinv"):
        latencies_of(model, ("litert",))
