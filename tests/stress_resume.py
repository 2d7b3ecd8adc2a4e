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
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import keras
import nets
import numpy as np
import op_utils
import train_cifar
from ekg import evaluator, memory_bank

ROOT = Path(__file__).parents[1]
ARGUMENTS = ["--arch", "ResNet-20", "--dataset", "DIGITS", "--target_rate", "0.93", "--search_step", "0.5", "--num_teacher",
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
        evaluator.Evaluator._run = before(evaluator.Evaluator._run, count)
    elif name == "step":
        op_utils.Trainer.step = before(op_utils.Trainer.step, count)
    elif name == "checksum":  # a checkpoint is written, its checksums are not
        utils.sha256 = before(utils.sha256, count)
    elif name == "rename":  # a file is written under its temporary name
        os.replace = before(os.replace, count)
    elif name == "block":
        original, calls = memory_bank._Writer._write_block, iter(range(1, 10**9))

        def write_block(self):
            if next(calls) == count:
                self._file = HalfWriter(self._file)
            original(self)
        memory_bank._Writer._write_block = write_block
    elif name == "line":
        original_line, lines = utils.append_json_line, iter(range(1, 10**9))

        def append(path, value):
            original_line(path, value)
            if next(lines) == count:
                os.truncate(path, path.stat().st_size - 9)
                kill_self()
        utils.append_json_line = append
    elif name != "none":
        raise ValueError(f"no such event: {event}.")


def child(event, argv):
    """Runs train_cifar.py in this process, which ends at the event."""
    memory_bank.BLOCK_ROWS = BLOCK_ROWS
    plan_kill(event)
    utils.run_script(train_cifar.main, lambda: train_cifar.parse_args(argv))


# ---------------------------------------------------------------- the process that kills

def make_params(path):
    """Writes the parameter file of a network that is as good as untrained; every channel of it matters."""
    keras.utils.set_random_seed(0)
    model = nets.build("ResNet-20", 10)
    for weight in model.weights:
        if weight.name == "gamma":
            weight.assign(np.random.default_rng(0).uniform(0.5, 1.5, weight.shape))
    utils.save_params(model, path)


def start(params, folder, event="none"):
    """Starts the run in a process of its own."""
    command = [sys.executable, "-m", "tests.stress_resume", "--child", event, "--", *ARGUMENTS, "--trained_param",
               str(params), "--train_path", str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # noqa: S603


def run_to_event(params, folder, event="none"):
    """Runs until the event and returns (exit code, output)."""
    process = start(params, folder, event)
    output = process.communicate(timeout=600)[0]
    return process.returncode, output


def end_of(folder):
    """Returns what the ends of two runs are compared by."""
    history = [line | {"seconds": 0} for line in utils.read_json_lines(folder / "history.jsonl")]
    curves = [line | {"images_per_second": 0} for line in utils.read_json_lines(folder / "curves.jsonl")]
    names = ("memory_bank/logits.npy", "slimmed_param.pkl", "trained_param.pkl")
    return [history, curves, *((folder / name).read_bytes() for name in names)]


def kill_in_phase(process, phase, delay):
    """Kills the process so many seconds after it entered the phase; returns the phase it was in, or None if it had ended."""
    now, entered = [None], threading.Event()

    def read():
        for line in process.stdout:
            found = re.search(r"phase (\S+)$", line.strip())
            now[0] = found.group(1) if found else now[0]
            if found and (found.group(1) == phase or PHASES.index(phase) < _order(found.group(1))):
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
    make_params(params)
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
