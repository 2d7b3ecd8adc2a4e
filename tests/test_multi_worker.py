"""Two processes on this machine's loopback interface, against one process with two devices."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import nets
import utils
from ekg import training

ROOT = Path(__file__).parents[1]
SHORT = ["--arch", "ResNet-20", "--dataset", "DIGITS", "--target_rate", "0.93", "--search_step", "0.5", "--num_teacher", "2",
         "--train_epoch", "1", "--no-preflight", "--batch_size", "32", "--subset_per_class", "64", "--val_per_class", "8"]


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start(arguments, **environment):
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE,  # noqa: S603
                            stderr=subprocess.STDOUT, text=True)


def start_workers(arguments, own=((), ())):
    """Starts two workers of the same arguments and returns their processes; `own` are further ones of each."""
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(2)]}
    return [start(["train_cifar.py", "--strategy", "multi_worker", *arguments, *own[index]],
                  TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}))
            for index in range(2)]


def finish(processes, timeout=400):
    """Returns (exit code, output) of each process."""
    try:
        return [(process.wait(), output) for process, output in
                [(process, process.communicate(timeout=timeout)[0]) for process in processes]]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A parameter file, so that no baseline is trained."""
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("params") / "resnet20.pkl"
    model = nets.build("ResNet-20", 10)
    for weight in model.weights:
        if weight.name == "gamma":
            weight.assign(np.random.default_rng(0).uniform(0.5, 1.5, weight.shape))
    utils.save_params(model, path)
    return path


def test_two_workers_end_as_one_process_with_two_devices(tmp_path, trained):
    """Search and bank to the bit, trained parameters but for the order of sums; the chief alone writes and prints."""
    arguments = [*SHORT, "--trained_param", str(trained)]
    (code, output), = finish([start(["train_cifar.py", *arguments, "--train_path", str(tmp_path / "one"),
                                     "--virtual_devices", "2"])])
    assert code == 0, output
    workers = finish(start_workers([*arguments, "--train_path", str(tmp_path / "two")]))
    assert [code for code, _ in workers] == [0, 0], workers
    assert "| fine-tuned |" in workers[0][1] and "| fine-tuned |" not in workers[1][1]
    one, two = tmp_path / "one", tmp_path / "two"
    histories = [[line | {"seconds": 0} for line in utils.read_json_lines(folder / "history.jsonl")]
                 for folder in (one, two)]
    assert histories[0] == histories[1] and len(histories[0]) > 2
    for name in ("memory_bank/logits.npy", "memory_bank/bank.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    expected, found = (utils.load_params(folder / "trained_param.pkl") for folder in (one, two))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-6 + 1e-4 * np.abs(array).max())
    rows = [utils.read_json(folder / "summary.json")["table"][2] for folder in (one, two)]
    assert rows[0]["top1"] == rows[1]["top1"] and rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-4)


def test_a_worker_started_otherwise_ends_all_with_one_line(tmp_path, trained):
    arguments = [*SHORT, "--trained_param", str(trained), "--train_path", str(tmp_path / "run")]
    for code, output in finish(start_workers(arguments, own=((), ("--seed", "7")))):
        lines = [line for line in output.splitlines() if line.startswith("error:")]
        assert code == 2 and len(lines) == 1 and "seed '7' there, '0' at the chief" in lines[0] and "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_a_worker_that_dies_ends_the_other_and_the_same_command_goes_on(tmp_path, trained):
    arguments = [*SHORT, "--trained_param", str(trained), "--train_path", str(tmp_path / "run")]
    chief, other = start_workers(arguments)
    for line in chief.stdout:
        if "phase search" in line:
            break
    other.kill()
    (code, output), _ = finish([chief, other])
    assert code == 3 and "error: another worker ended or cannot be reached" in output and "Traceback" not in output, output
    workers = finish(start_workers(arguments))
    assert [code for code, _ in workers] == [0, 0], workers
    assert "phase subset" not in workers[0][1]  # that was done


def test_a_signal_to_one_worker_ends_all_with_a_checkpoint(tmp_path, trained):
    """A search of a step, then a training that is stopped within its epoch; the chief itself gets no signal."""
    arguments = [*SHORT, "--target_rate", "0.999", "--num_teacher", "1", "--trained_param", str(trained), "--train_path",
                 str(tmp_path / "run")]
    workers = start_workers(arguments)
    for line in workers[0].stdout:
        if "fine-tune 1/1" in line and "loss=" in line:
            break
    workers[1].send_signal(signal.SIGUSR1)
    for code, output in finish(workers):
        assert code == 138 and "stopped by SIGUSR1; the same command goes on" in output and "Traceback" not in output, output
    workers = finish(start_workers(arguments))
    assert [code for code, _ in workers] == [0, 0], workers
    found = re.search(r"fine-tune: goes on after epoch 0, step (\d+)", workers[0][1])
    assert found and int(found.group(1)) % training.AGREEMENT_STEPS == 0, workers


def test_a_malformed_cluster_is_one_line_and_exit_code_2():
    (code, output), = finish([start(["train_cifar.py", "--strategy", "multi_worker", *SHORT], TF_CONFIG="{")])
    lines = [line for line in output.splitlines() if line.startswith("error:")]
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: TF_CONFIG: is no JSON")
