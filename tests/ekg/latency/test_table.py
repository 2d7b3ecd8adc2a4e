import json
import logging

import pytest

import ekg
from ekg.deploy.formats import RUNTIMES
from ekg.errors import EkgError
from ekg.io import files
from ekg.latency.prediction import Predictor
from ekg.latency.table import Table, conditions_of, load_table, save_table
from tests import networks
from tests.conftest import make_tiny_resnet
from tests.ekg.latency.helpers import install, seconds_of
from tests.helpers import random_subnetwork


@pytest.fixture
def clock(monkeypatch):
    return install(monkeypatch)


def measured(model, table=None):
    supernet = ekg.Supernet(model)
    table = table or Table(conditions_of(RUNTIMES["litert"], 1, 1))
    predictor = Predictor(supernet, table)
    predictor.measure_(RUNTIMES["litert"])
    return supernet, predictor


@pytest.mark.parametrize("make", [make_tiny_resnet, networks.resnet])
def test_the_prediction_is_exact_for_a_runtime_whose_kernels_add_up(clock, make):
    supernet, predictor = measured(make())
    for seed in range(8):
        subnetwork = random_subnetwork(supernet, seed)
        expected = seconds_of(supernet.cut(subnetwork))
        assert predictor.seconds(subnetwork) == pytest.approx(expected, rel=0.03), seed


def test_fewer_channels_of_one_group_are_predicted_as_the_whole_is(clock):
    supernet, predictor = measured(networks.resnet())
    present = random_subnetwork(supernet, 3)
    for group in range(len(supernet.groups)):
        by_count = predictor.seconds_by_count(present, group)
        assert list(by_count) == list(range(present.num_kept(group) - 1, 0, -1))
        for count, seconds in by_count.items():
            assert seconds == pytest.approx(
                predictor.seconds(present.with_kept(group, count)), rel=1e-9
            )


def test_measured_kernels_are_not_measured_again(clock, tmp_path):
    supernet, first = measured(make_tiny_resnet())
    save_table(tmp_path / "table.json", first.table)
    loads = clock.loads
    again = load_table(tmp_path / "table.json", first.table.conditions)
    _, second = measured(make_tiny_resnet(), again)
    assert clock.loads <= loads + 2  # a Supernet of its own, no kernel
    half = supernet.whole().with_widths({group.name: 0.5 for group in supernet.groups})
    assert second.seconds(half) == first.seconds(half)


def test_another_machine_or_version_is_named_and_its_table_is_kept(clock, tmp_path, caplog):
    _, predictor = measured(make_tiny_resnet())
    path, here = tmp_path / "table.json", predictor.table.conditions
    save_table(path, predictor.table)
    there = here | {"versions": {"tensorflow": "1.0"}}
    with caplog.at_level(logging.WARNING):
        other = load_table(path, there)
    assert (
        "measured under other conditions (versions" in caplog.text
        and "measured again" in caplog.text
    )
    assert other.curves == {} and other.conditions == there
    save_table(path, other)
    assert (
        load_table(path, here).curves == predictor.table.curves
        and load_table(path, there).curves == {}
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-20], "damaged"),
        (lambda text: text.replace("seconds", "second"), "damaged"),
        (lambda text: "[]", "damaged"),
        (lambda text: "", "damaged"),
    ],
)
def test_a_damaged_table_is_refused(clock, tmp_path, damage, message):
    _, predictor = measured(make_tiny_resnet())
    path = tmp_path / "table.json"
    save_table(path, predictor.table)
    path.write_text(damage(path.read_text()))
    with pytest.raises(EkgError, match=message):
        load_table(path, predictor.table.conditions)


TABLE = {"conditions": {}, "calibrations": {}, "kernels": [{"kind": 1}]}


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"version": 1},
        {"version": 1, "tables": [{}]},
        {"version": 1, "tables": 3},
        {"version": 1, "tables": [TABLE]},
    ],
)
def test_a_file_of_something_else_is_no_table(tmp_path, value):
    files.write_json(tmp_path / "table.json", value)
    with pytest.raises(EkgError, match="does not hold latency tables; name another file"):
        load_table(tmp_path / "table.json", {"runtime": "litert"})
    files.write_json(tmp_path / "table.json", {"version": 99})
    with pytest.raises(EkgError, match="latency tables of version 99, and this program knows 1"):
        load_table(tmp_path / "table.json", {"runtime": "litert"})


@pytest.mark.parametrize(
    ("runtime", "packages"),
    [
        ("tensorflow", set()),
        ("litert", {"ai-edge-litert"}),
        ("onnxruntime", {"onnxruntime", "tf2onnx"}),
    ],
)
def test_conditions_name_runtime_versions_and_machine(runtime, packages):
    """Stored tables are found by exactly these conditions."""
    conditions = conditions_of(RUNTIMES[runtime], 1, 2)
    assert json.loads(json.dumps(conditions)) == conditions
    assert set(conditions) == {"runtime", "batch", "threads", "versions", "machine"}
    assert set(conditions["machine"]) == {"processor", "architecture", "gpus"}
    assert conditions["threads"] == 2 and conditions["runtime"] == runtime
    assert conditions["machine"]["processor"]
    assert set(conditions["versions"]) == {"tensorflow", *packages}
