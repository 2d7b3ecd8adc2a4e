"""What tests of whole runs share: processes, a network to begin with, and what two runs are
compared by.
"""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np

import nets
import utils
from ekg.io import files

ROOT = Path(__file__).parents[1]


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
