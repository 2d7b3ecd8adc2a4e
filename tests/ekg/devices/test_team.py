import json
import os

import numpy as np
import pytest
import tensorflow as tf

from ekg import devices
from ekg.devices import Team
from ekg.errors import EkgError
from tests.helpers import mirrored

WORKERS = ["a.cluster:8888", "b.cluster:8888"]


def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(EkgError, match="--gpu_id 99: this machine has"):
        devices.make_strategy([99])


def test_a_batch_that_does_not_divide_is_named():
    message = r"--batch_size 24 must be a multiple of 10 = 2 devices x 5 micro-batches \(--accum\)"
    with pytest.raises(EkgError, match=message):
        devices.check_batch("--batch_size", 24, {"devices": 2, "micro-batches (--accum)": 5})


def test_xla_choice():
    assert devices.use_xla("on") and not devices.use_xla("off")
    assert devices.use_xla("auto") == bool(tf.config.list_physical_devices("GPU"))


@pytest.mark.parametrize("config", [
    "{", "[]", "{}", json.dumps({"cluster": {"worker": []}, "task": {"type": "worker", "index": 0}}),
    json.dumps({"cluster": {"worker": ["host"]}, "task": {"type": "worker", "index": 0}}),
    json.dumps({"cluster": {"ps": WORKERS}, "task": {"type": "ps", "index": 0}}),
    json.dumps({"cluster": {"worker": WORKERS}}), json.dumps({"cluster": {"worker": WORKERS}, "task": {"type": "worker"}}),
    json.dumps({"cluster": {"worker": WORKERS}, "task": {"type": "chief", "index": 0}}),
    json.dumps({"cluster": {"worker": WORKERS}, "task": {"type": "worker", "index": 2}}),
    json.dumps({"cluster": {"worker": WORKERS}, "task": {"type": "worker", "index": "0"}})])
def test_a_malformed_cluster_is_one_clear_line(monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(EkgError, match="^TF_CONFIG: .*it must look like"):
        devices.make_strategy(kind="multi_worker")


def test_a_cluster_that_nobody_names_is_said(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_") or name == "TF_CONFIG"]:
        monkeypatch.delenv(name)
    with pytest.raises(EkgError, match="neither TF_CONFIG nor SLURM names the workers"):
        devices.make_strategy(kind="multi_worker")


def test_slurm_names_the_workers(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name, value in {"PROCID": "1", "STEP_NODELIST": "node[3-4]", "STEP_NUM_TASKS": "2", "STEP_TASKS_PER_NODE": "1(x2)",
                        "NTASKS": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    resolver = devices._make_resolver()
    assert resolver.cluster_spec().as_dict() == {"worker": ["node3:8888", "node4:8888"]}
    assert (resolver.task_type, resolver.task_id) == ("worker", 1)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "many")
    with pytest.raises(EkgError, match="SLURM's variables cannot be understood"):
        devices._make_resolver()


def test_each_member_works_on_its_own_device():
    team = Team(mirrored(3))
    assert (team.count, team.numbers, team.num_workers, team.worker, team.is_chief) == (3, range(3), 1, 0, True)
    found = team.run(lambda number: tf.constant(float(number)) + 1)
    assert [float(value) for value in found.values()] == [1, 2, 3]
    assert [value.device[-5:] for value in found.values()] == ["CPU:0", "CPU:1", "CPU:2"]


def test_one_process_agrees_with_itself():
    team, values = Team(mirrored(2)), np.arange(3)
    assert team.total(values) is values and team.exchange("é") == ["é"]
    assert team.chief_says(True) and not team.chief_says(False)
    team.check_same({"seed": 1})
    with pytest.raises(OSError, match="full"):
        team.on_chief(lambda: (_ for _ in ()).throw(OSError("full")))


def test_a_worker_that_was_started_otherwise_is_named(monkeypatch):
    other = json.dumps({"seed": 2, "code": "a"})
    monkeypatch.setattr(Team, "exchange", lambda self, text: [text, other])
    with pytest.raises(EkgError, match=r"worker 1: was started otherwise .*\(seed 2 there, 1 at the chief"):
        Team().check_same({"seed": 1, "code": "a"})
    Team().check_same({"seed": 2, "code": "a"})
