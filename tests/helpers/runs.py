"""What tests of whole runs share: processes, a network to begin with, and what two runs are
compared by.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import nets
import utils
from ekg.io import files

ROOT = Path(__file__).parents[2]


def start(*command, **environment):
    """Starts Python with these arguments in a process of its own; both its streams come
    together.
    """
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# Loading TensorFlow takes longer than most of these jobs. A server loads it once, without starting
# its runtime, and every process is a fork of that server.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["train_cifar", "tests.helpers.small_jobs", "tests.helpers.runs"])


class Fork:
    """A process that runs a module as `python -m` does; it has the methods of subprocess.Popen that
    tests use.
    """

    def __init__(self, module, arguments, environment):
        output, writer = FORKS.Pipe(duplex=False)
        self._process = FORKS.Process(
            target=_run_module, args=(writer, module, arguments, environment)
        )
        self._process.start()
        writer.close()
        self.stdout = os.fdopen(os.dup(output.fileno()), errors="replace")
        output.close()

    @property
    def pid(self):
        return self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def communicate(self, timeout):
        """Returns (the output up to the end of the process, None)."""
        is_late = threading.Event()

        def end_late():
            is_late.set()
            self.kill()

        watch = threading.Timer(timeout, end_late)
        watch.start()
        output = self.stdout.read()
        self.wait()
        watch.cancel()
        if is_late.is_set():
            raise TimeoutError(f"no end after {timeout} s:\n{output}")
        return output, None

    def wait(self, timeout=None):
        """Returns the exit code; None if the process has not ended by then."""
        self._process.join(timeout)
        return self.returncode

    def poll(self):
        return self.wait(0)

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self._process.kill()


def _run_module(output, module, arguments, environment):
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    # New streams: those of the server may belong to a file, which can seek.
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    os.environ.update(environment)
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def fork(module, *arguments, **environment):
    """Starts a module with these arguments in a process that has TensorFlow loaded already; both
    its streams come together.
    """
    return Fork(module, [str(argument) for argument in arguments], environment)


def finish(*processes, timeout=600):
    """Returns (exit code, output) of every process; none of them outlives this call."""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
        return [(process.returncode, output) for process, output in zip(processes, outputs)]
    finally:
        for process in processes:
            process.kill()


def error_line(output):
    """Returns the line that says why a process ended; there must be one, and no traceback."""
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert "Traceback" not in output, output
    return line


def write_params(path):
    """Writes the parameter file of a network that is as good as untrained; every channel of it
    matters.
    """
    keras.utils.set_random_seed(0)
    model = nets.build("ResNet-8", 10)
    for weight in model.weights:
        if weight.name == "gamma":
            weight.assign(np.random.default_rng(0).uniform(0.5, 1.5, weight.shape))
    utils.save_params(model, path)


def read_history(folder):
    """Returns the lines of a run's history without the seconds."""
    return [line | {"seconds": 0} for line in files.read_json_lines(folder / "history.jsonl")]


def read_curves(folder):
    """Returns the lines of a run's curves without the speed."""
    return [
        line | {"images_per_second": 0} for line in files.read_json_lines(folder / "curves.jsonl")
    ]


def read_events(folder):
    """Returns {tag: [(step, number)]} that TensorBoard shows of a run, without the speed."""
    events = EventAccumulator(str(folder / "events"), size_guidance={"tensors": 0}).Reload()
    return {
        tag: [
            (event.step, float(tf.make_ndarray(event.tensor_proto)))
            for event in events.Tensors(tag)
        ]
        for tag in events.Tags()["tensors"]
        if not tag.endswith("images_per_second")
    }
