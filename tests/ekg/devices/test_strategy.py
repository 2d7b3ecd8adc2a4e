import json
import os

import pytest

from ekg.devices import strategy
from ekg.devices.strategy import DeviceSettings
from ekg.errors import EkgError

WORKERS = ["a.cluster:8888", "b.cluster:8888"]


def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(EkgError, match="`gpu_id` 99: this machine has"):
        strategy.make_strategy(DeviceSettings(gpu_id=(99,)))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            {"virtual_devices": 2, "gpu_id": (0,)},
            "`virtual_devices` and `gpu_id` exclude each other",
        ),
        (
            {"virtual_devices": 2, "strategy": "multi_worker"},
            "`virtual_devices` and the multi_worker `strategy` exclude",
        ),
    ],
)
def test_devices_that_exclude_each_other_are_refused(chosen, message):
    with pytest.raises(EkgError, match=message):
        DeviceSettings(**chosen)


def test_more_virtual_devices_than_a_machine_could_hold_are_refused():
    with pytest.raises(EkgError, match="`virtual_devices` must be from 1 to 64; received 1000000"):
        DeviceSettings(virtual_devices=1_000_000)


def test_the_cpu_is_split_if_asked():
    made = strategy.make_strategy(DeviceSettings(virtual_devices=2))
    assert [device[-5:] for device in made.extended.worker_devices] == ["CPU:0", "CPU:1"]


# ---------------------------------------------------------------- clusters


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        "{}",
        json.dumps({"cluster": {"worker": []}, "task": {"type": "worker", "index": 0}}),
        json.dumps({"cluster": {"worker": ["host"]}, "task": {"type": "worker", "index": 0}}),
        json.dumps(
            {"cluster": {"worker": ["a:99999", "b:8888"]}, "task": {"type": "worker", "index": 0}}
        ),
        json.dumps(
            {"cluster": {"worker": ["a:0", "b:8888"]}, "task": {"type": "worker", "index": 0}}
        ),
        json.dumps(
            {"cluster": {"worker": ["a:²", "b:8888"]}, "task": {"type": "worker", "index": 0}}
        ),
        json.dumps({"cluster": {"ps": WORKERS}, "task": {"type": "ps", "index": 0}}),
        json.dumps({"cluster": {"worker": WORKERS}}),
        json.dumps({"cluster": {"worker": WORKERS}, "task": {"type": "worker"}}),
        json.dumps({"cluster": {"worker": WORKERS}, "task": {"type": "chief", "index": 0}}),
        json.dumps({"cluster": {"worker": WORKERS}, "task": {"type": "worker", "index": 2}}),
        json.dumps({"cluster": {"worker": WORKERS}, "task": {"type": "worker", "index": "0"}}),
    ],
)
def test_a_malformed_cluster_is_one_clear_line(monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(EkgError, match="^TF_CONFIG: .*it must look like"):
        strategy.make_strategy(DeviceSettings(strategy="multi_worker"))


def test_a_cluster_without_an_address_is_reported(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_") or name == "TF_CONFIG"]:
        monkeypatch.delenv(name)
    with pytest.raises(
        EkgError, match="`strategy` multi_worker: neither TF_CONFIG nor SLURM names the workers"
    ):
        strategy.make_strategy(DeviceSettings(strategy="multi_worker"))


def test_slurm_names_the_workers(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name, value in {
        "PROCID": "1",
        "STEP_NODELIST": "node[3-4]",
        "STEP_NUM_TASKS": "2",
        "STEP_TASKS_PER_NODE": "1(x2)",
        "NTASKS": "2",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    resolver = strategy._make_resolver()
    assert resolver.cluster_spec().as_dict() == {"worker": ["node3:8888", "node4:8888"]}
    assert (resolver.task_type, resolver.task_id) == ("worker", 1)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "many")
    with pytest.raises(EkgError, match="SLURM's variables cannot be understood"):
        strategy._make_resolver()
