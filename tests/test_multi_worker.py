"""Two processes on this machine's loopback interface, against one process with two devices."""

import json
import re
import signal
import socket

import numpy as np
import pytest

import utils
from ekg.io import files
from ekg.train import loop
from tests.helpers import runs
from tests.programs import stress_resume

SHORT = [
    "--arch",
    "ResNet-8",
    "--dataset",
    "DIGITS",
    "--target_rate",
    "0.85",
    "--search_step",
    "0.5",
    "--num_teacher",
    "2",
    "--train_epoch",
    "1",
    "--no-preflight",
    "--batch_size",
    "32",
    "--subset_per_class",
    "64",
    "--val_per_class",
    "8",
]


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


# The same job on a network and data that are small, for tests that start many processes
SMALL_JOB = ("tests.programs.stress_resume", "none", "--")


def start_workers(arguments, further=((), ()), job=None):
    """Starts two workers and returns their processes.

    Args:
        arguments: of both workers.
        further: arguments of each worker alone.
        job: the module, and the arguments before all others, of a process that is forked; None
            starts train_cifar.py.
    """
    start, command = (runs.start, ("train_cifar.py",)) if job is None else (runs.fork, job)
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(2)]}
    return [
        start(
            *command,
            "--strategy",
            "multi_worker",
            *arguments,
            *further[index],
            TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}),
        )
        for index in range(2)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A parameter file, so that no baseline is trained."""
    path = tmp_path_factory.mktemp("params") / "resnet8.pkl"
    runs.write_params(path)
    return path


def test_two_workers_stopped_twice_end_like_one_process_with_two_devices(tmp_path):
    """Search and bank to the bit, trained parameters but for the order of sums; the chief alone
    writes and prints.

    One worker dies in the search, and one gets a signal in the training.
    """
    one, two, trained = tmp_path / "one", tmp_path / "two", tmp_path / "small.pkl"
    stress_resume.write_params(trained)
    arguments = [
        *stress_resume.ARGUMENTS,
        "--trained_param",
        trained,
        "--runtimes",
        "tensorflow",  # timed by the chief alone, while the other waits
    ]
    ((code, output),) = runs.finish(
        runs.fork(*SMALL_JOB, *arguments, "--train_path", one, "--virtual_devices", "2")
    )
    assert code == 0, output

    arguments += ["--train_path", two]
    chief, other = start_workers(arguments, job=SMALL_JOB)
    wait_for(chief, "phase search")
    other.kill()
    (code, output), _ = runs.finish(chief, other)
    assert code == 3 and runs.error_line(output).startswith(
        "error: another worker ended or cannot be reached"
    ), output

    workers = start_workers(arguments, job=SMALL_JOB)
    assert not any(
        "phase subset" in line for line in wait_for(workers[0], "phase fine-tune")
    )  # that was done
    workers[1].send_signal(signal.SIGUSR1)  # the chief itself gets none
    for code, output in runs.finish(*workers):
        assert (
            code == 138
            and "stopped by SIGUSR1; the same command resumes" in output
            and "Traceback" not in output
        ), output

    workers = runs.finish(*start_workers(arguments, job=SMALL_JOB))
    assert [code for code, _ in workers] == [0, 0], workers
    message = re.search(r"fine-tune: resumes after epoch 0, step (\d+)", workers[0][1])
    assert message and int(message.group(1)) % loop.AGREEMENT_STEPS == 0, workers
    assert "| fine-tuned |" in workers[0][1] and "| fine-tuned |" not in workers[1][1]
    check_same_end(one, two)


def check_same_end(one, two):
    histories = [runs.read_history(folder) for folder in (one, two)]
    assert histories[0] == histories[1] and len(histories[0]) > 2
    for name in ("memory_bank/logits.npy", "memory_bank/bank.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    expected, params = (utils.load_params(folder / "trained_param.pkl") for folder in (one, two))
    for name, array in expected.items():
        np.testing.assert_allclose(
            params[name], array, rtol=1e-4, atol=1e-6 + 1e-4 * np.abs(array).max()
        )
    rows = [files.read_json(folder / "summary.json")["table"][2] for folder in (one, two)]
    assert rows[0]["metrics"] == rows[1]["metrics"] and rows[0]["loss"] == pytest.approx(
        rows[1]["loss"], rel=1e-4
    )


def wait_for(process, *words):
    """Reads the output of a process up to a line with these words; returns what was read."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if all(word in line for word in words):
            return lines
    raise AssertionError("".join(lines))


def test_a_worker_with_other_arguments_ends_all_with_one_line(tmp_path, trained):
    arguments = [*SHORT, "--trained_param", trained, "--train_path", tmp_path / "run"]
    for code, output in runs.finish(*start_workers(arguments, further=((), ("--seed", "7")))):
        assert code == 2 and "seed '7' there, '0' at the chief" in runs.error_line(output)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", ["environment", "failure"])
def test_other_data_or_versions_are_refused_and_the_failing_worker_is_named(tmp_path, how):
    stress_resume.write_params(tmp_path / "small.pkl")
    arguments = [
        *stress_resume.ARGUMENTS,
        "--trained_param",
        tmp_path / "small.pkl",
        "--train_path",
        tmp_path / "run",
    ]
    job = ("tests.programs.differing", how, "--")
    (chief_code, chief), (code, other) = runs.finish(*start_workers(arguments, job=job))
    lines = [runs.error_line(output) for output in (chief, other)]
    if how == "failure":
        assert (chief_code, code) == (3, 2), (chief, other)
        assert lines == [
            "error: worker 1: its own disk is full; start all workers again with the same "
            "command: the run "
            "resumes.",
            "error: its own disk is full.",
        ]
        return
    assert (chief_code, code) == (2, 2) and lines[0] == lines[1], lines
    version = np.__version__
    assert f"versions numpy '{version}.other' there, '{version}' at the chief" in lines[0]
    assert "worker 0 of 2, at localhost:" in chief and "waits until all are there" in chief
    assert "data sample" in lines[0] and "data labels" not in lines[0]
    assert not (tmp_path / "run").exists()  # refused before anything is written


def test_a_malformed_cluster_is_one_line_and_exit_code_2():
    ((code, output),) = runs.finish(
        runs.start("train_cifar.py", "--strategy", "multi_worker", *SHORT, TF_CONFIG="{")
    )
    assert code == 2 and runs.error_line(output).startswith("error: TF_CONFIG: is no JSON")
