"""Kills a small run again and again (SIGKILL), starts it each time, and compares its end with an undisturbed run's.

    python -m tests.stress_resume --kills 100

Kills come at random instants, in turn in search, memory bank and fine-tuning. Prints how many runs were resumed, and
whether the ends are identical: search history, memory bank and trained parameters, bit for bit.
"""

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import numpy as np
import train_cifar
from ekg import files
from ekg.distil import bank_files
from ekg.search.evaluator import Evaluator
from ekg.train.step import Trainer
from tests import runs

ARGUMENTS = ["--arch", "ResNet-8", "--dataset", "DIGITS", "--target_rate", "0.85", "--search_step", "0.5", "--num_teacher",
             "3", "--train_epoch", "2", "--batch_size", "32", "--subset_per_class", "32", "--val_per_class", "8",
             "--search_batch_size", "160", "--checkpoint_minutes", "0.01", "--no-preflight"]
BLOCK_ROWS = 300  # so that the bank of 1 438 images has several blocks
PHASES = ("search", "bank", "fine-tune")
KILLS_OF_A_RUN = ("search",) * 4 + ("bank",) * 3 + ("fine-tune",) * 3
DELAYS = {"search": 5, "bank": 3, "fine-tune": 12}  # seconds into a phase, at most


# ---------------------------------------------------------------- the process that is killed

def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def before(function, count):
    """Returns a function that kills the process at its call number `count`, before it does anything."""
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
        self._file.write(data[:len(data) // 2])
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
    """Arranges that block number `count` of the memory bank is half written when this process is killed."""
    original, calls = bank_files.BankWriter._write_block, iter(range(1, 10**9))

    def write_block(self):
        if next(calls) == count:
            self._file = HalfWriter(self._file)
        original(self)
    bank_files.BankWriter._write_block = write_block


def cut_line(count):
    """Arranges that line number `count` of JSON is cut short when this process is killed."""
    original, calls = files.append_json_line, iter(range(1, 10**9))

    def append(path, value):
        original(path, value)
        if next(calls) == count:
            os.truncate(path, path.stat().st_size - 9)
            kill_self()
    files.append_json_line = append


def child(event, argv):
    """Runs train_cifar.py in this process, which ends at the event."""
    bank_files.BLOCK_ROWS = BLOCK_ROWS
    plan_kill(event)
    utils.run_script(train_cifar.main, lambda: train_cifar.parse_args(argv))


# ---------------------------------------------------------------- the process that kills

def start(params, folder, event="none"):
    """Starts the run in a process of its own."""
    return runs.start("-m", "tests.stress_resume", "--child", event, "--", *ARGUMENTS, "--trained_param", params,
                      "--train_path", folder)


def run_to_event(params, folder, event="none"):
    """Runs until the event and returns (exit code, output)."""
    return runs.finish(start(params, folder, event))[0]


def end_of(folder):
    """Returns what the ends of two runs are compared by."""
    names = ("memory_bank/logits.npy", "slimmed_param.pkl", "trained_param.pkl")
    return [runs.read_history(folder), runs.read_curves(folder), *((folder / name).read_bytes() for name in names)]


def kill_in_phase(process, phase, delay):
    """Kills the process so many seconds after it entered the phase; returns the phase it was in, or None if it had ended."""
    now, entered = [None], threading.Event()

    def read():
        for line in process.stdout:
            begun = re.search(r"phase (\S+)$", line.strip())
            now[0] = begun.group(1) if begun else now[0]
            if begun and (begun.group(1) == phase or PHASES.index(phase) < _order(begun.group(1))):
                entered.set()
        entered.set()
    reader = threading.Thread(target=read)
    reader.start()
    entered.wait(600)
    time.sleep(delay)
    is_running = process.poll() is None
    process.kill()
    process.wait()
    reader.join()
    return now[0] if is_running else None


def _order(phase):
    return PHASES.index(phase) if phase in PHASES else (-1 if phase in ("subset", "slim") else len(PHASES))


def stress(kills, seed, root):
    """Returns {kills, kills by phase, runs started, runs finished, identical ends}."""
    params, rng = root / "params.pkl", np.random.default_rng(seed)
    runs.write_params(params)
    code, output = run_to_event(params, root / "undisturbed")
    if code:
        raise RuntimeError(output)
    expected, by_phase = end_of(root / "undisturbed"), {}
    result = {"kills": 0, "started": 0, "finished": 0, "identical": 0}
    while result["kills"] < kills:
        folder = root / f"run{result['finished']}"
        for phase in KILLS_OF_A_RUN:
            if result["kills"] == kills:
                break
            killed_in = kill_in_phase(start(params, folder), phase, rng.uniform(0, DELAYS[phase]))
            result["started"] += 1
            if killed_in is not None:
                result["kills"] += 1
                by_phase[killed_in] = by_phase.get(killed_in, 0) + 1
        code, output = run_to_event(params, folder)
        if code:
            raise RuntimeError(output)
        result["started"] += 1
        result["finished"] += 1
        result["identical"] += end_of(folder) == expected
        print(json.dumps(result | by_phase), flush=True)
    return result | by_phase


def main(argv=None):
    parser = argparse.ArgumentParser(description="Kill a run at random instants and compare its end.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        return child(args.child, args.arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = stress(args.kills, args.seed, Path(folder))
    print(json.dumps(result))
    return int(result["identical"] != result["finished"])


if __name__ == "__main__":
    sys.exit(main())
