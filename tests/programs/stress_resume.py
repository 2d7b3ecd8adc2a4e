"""A small run that ends itself at an event, and how its end is compared with an undisturbed run's.

python -m tests.programs.stress_resume EVENT -- ARGUMENTS OF train_cifar.py
"""

import os
import signal
import sys

import utils  # before TensorFlow: it sets TensorFlow's environment
import keras
import op_utils
import train_cifar
from ekg.io import files
from ekg.distil import bank_files
from ekg.searching.evaluator import Evaluator
from ekg.train.step import Trainer
from tests.helpers import runs, small_jobs
from tests.helpers.models import randomise_

# What --arch and --dataset name is not what runs: a process that is started again and again gets a
# small network and data.
ARGUMENTS = [
    "--arch",
    "ResNet-8",
    "--dataset",
    "DIGITS",
    "--target_rate",
    "0.4",
    "--search_step",
    "0.3",
    "--num_teacher",
    "3",
    "--train_epoch",
    "2",
    "--batch_size",
    "32",
    "--subset_per_class",
    "32",
    "--val_per_class",
    "8",
    "--search_batch_size",
    "48",
    "--checkpoint_minutes",
    "0",
    "--no-preflight",
    "--runtimes",  # none: times are compared with nothing
]
BLOCK_ROWS = 200  # so that the bank of 840 images has several blocks


# ---------------------------------------------------------------- the process that is killed


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def before(function, count):
    """Returns a function that kills the process at its call number `count`, before it does
    anything.
    """
    calls = iter(range(1, 10**9))

    def wrapped(*args, **options):
        if next(calls) == count:
            kill_self()
        return function(*args, **options)

    return wrapped


class HalfWriter:
    """A file of which the process does not live to write more than half of one piece."""

    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        kill_self()


def plan_kill(event):
    """Arranges that this process is killed at an event, "NAME:COUNT"."""
    name, _, count = event.partition(":")
    count = int(count or 1)
    if name == "candidate":
        Evaluator._run = before(Evaluator._run, count)
    elif name == "step":
        Trainer.step = before(Trainer.step, count)
    elif name == "checksum":  # a checkpoint is written, its checksums are not
        files.sha256 = before(files.sha256, count)
    elif name == "rename":  # a file is written under its temporary name
        os.replace = before(os.replace, count)
    elif name == "block":
        cut_block(count)
    elif name == "line":
        cut_line(count)
    elif name != "none":
        raise ValueError(f"no such event: {event}.")


def cut_block(count):
    """Arranges that block number `count` of the memory bank is half written when this process is
    killed.
    """
    original, calls = bank_files.BankWriter._store, iter(range(1, 10**9))

    def store(self, rows, stop):
        if next(calls) == count:
            self._file = HalfWriter(self._file)
        original(self, rows, stop)

    bank_files.BankWriter._store = store


def cut_line(count):
    """Arranges that line number `count` of JSON is cut short when this process is killed."""
    original, calls = files.append_json_line, iter(range(1, 10**9))

    def append(path, value):
        original(path, value)
        if next(calls) == count:
            os.truncate(path, path.stat().st_size - 9)
            kill_self()

    files.append_json_line = append


def run_job(args):
    """Runs the job of train_cifar.py with a small network and small data and returns its rows."""
    return op_utils.prune(
        args,
        train_cifar.BASELINE,
        small_jobs.make_large_data,
        small_jobs.build,
        small_jobs.from_params,
    )


def child(event, argv):
    """Runs the job in this process, which ends at the event."""
    bank_files.BLOCK_ROWS = BLOCK_ROWS
    plan_kill(event)
    utils.run_script(run_job, lambda: train_cifar.parse_args(argv))


# ---------------------------------------------------------------- the process that kills


def start(params, folder, event="none", more=(), target=("--target_rate", "0.4"), **environment):
    """Starts the run in a process of its own.

    Args:
        params: parameter file of the network.
        folder: its run folder.
        event: see plan_kill().
        more: further flags.
        target: flags of the target.
        environment: further variables of its environment.
    """
    place = ARGUMENTS.index("--target_rate")
    return runs.fork(
        "tests.programs.stress_resume",
        event,
        "--",
        *ARGUMENTS[:place],
        *ARGUMENTS[place + 2 :],
        *target,
        *more,
        "--trained_param",
        params,
        "--train_path",
        folder,
        **environment,
    )


def write_params(path):
    """Writes the parameter file of the network, as good as untrained; every channel of it
    matters.
    """
    keras.utils.set_random_seed(0)
    utils.save_params(randomise_(small_jobs.build("", 3)), path)


def run_to_event(params, folder, event="none"):
    """Runs until the event and returns (exit code, output)."""
    return runs.finish(start(params, folder, event))[0]


def end_of(folder):
    """Returns what the ends of two runs are compared by."""
    names = ("memory_bank/logits.npy", "slimmed_param.pkl", "trained_param.pkl")
    return [
        runs.read_history(folder),
        runs.read_curves(folder),
        runs.read_events(folder),
        *((folder / name).read_bytes() for name in names if (folder / name).exists()),
    ]


def ends_of(folder):
    """Returns {place: end_of()} of all runs in a folder, as of a front; nothing may be left over.

    Raises:
        RuntimeError: there is no run, or a file that was being written.
    """
    places = sorted(path.parent for path in folder.rglob("arguments.json"))
    left = [path for path in folder.rglob(".*") if path.name != ".lock"]
    if not places or left:
        raise RuntimeError(f"{folder}: {len(places)} runs, and {left}")
    return {str(place.relative_to(folder)): end_of(place) for place in places}


if __name__ == "__main__":
    child(sys.argv[1], sys.argv[3:])
