"""Ends small runs again and again, starts them each time, and compares their ends with undisturbed
runs'.

    python -m tests.programs.stress --kills 300 --signals 50 --jobs 40 --workers 20 --differing 30

Processes end at random instants, in turn in search, memory bank and fine-tuning: by SIGKILL (every
fifteenth time the next process is killed within a second of its first line, too), and by SIGTERM
and SIGUSR1. The runs are train_cifar.py on one device and on two, and a program of its own that
calls ekg.prune; --jobs is for jobs of several outputs, of several rates, of an accuracy goal, and
of a repaired start, which end at a random line of their output, every third time by a disk that
takes nothing more; --workers is for two processes of one job, of which one is killed; --differing
for two whose data and versions differ, which both refuse. Prints what was done, and how many ends
are identical: history, curves, memory bank and parameters, bit for bit.
"""

import argparse
import collections
import contextlib
import functools
import json
import re
import resource
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from tests import test_multi_worker
from tests.helpers import runs
from tests.programs import stress_resume

KINDS = ("one device", "two devices", "ekg.prune")
# Jobs of several runs or outputs, whose processes end at a random line of their output
JOBS = ("outputs", "front", "goal", "rates", "drop", "repaired")
DROP = "--max_drop 60 --lowest_rate 0.9 --held_out 0.2 --probe_epochs 0".split()
PHASES = ("search", "bank", "fine-tune")
AIMS = ("search",) * 4 + ("bank",) * 3 + ("fine-tune",) * 3  # of the processes of a run, in turn
DELAYS = {"search": 5, "bank": 3, "fine-tune": 12}  # seconds into a phase, at most
DOUBLE = 15
ENDS = {signal.SIGKILL: (-signal.SIGKILL,), signal.SIGTERM: (143,), signal.SIGUSR1: (138,)}
LOST_WORKER = 3


class Watched:
    """A process whose output is read as it comes.

    Attributes:
        process: subprocess.Popen.
        phase: the phase it is in, or None.
    """

    def __init__(self, process):
        self.process, self.phase, self._lines = process, None, []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            begun = re.search(r"phase (\S+)$", line.strip())
            with self._changed:
                self.phase = begun.group(1) if begun else self.phase
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._lines.append("")
            self._changed.notify_all()

    def wait_for(self, is_there):
        """Returns when something of this object is so, or the process has ended, or after ten
        minutes.
        """
        with self._changed:
            self._changed.wait_for(lambda: is_there() or self._lines[-1:] == [""], 600)

    def wait_for_phase(self, phase):
        order = {name: number for number, name in enumerate(PHASES)} | {
            "subset": -1,
            "slim": 0.5,
            "report": 9,
        }
        self.wait_for(lambda: order.get(self.phase, -2) >= order[phase])

    def wait_for_line(self):
        self.wait_for_lines(2)  # the first comes before TensorFlow is loaded

    def wait_for_lines(self, count):
        self.wait_for(lambda: len(self._lines) >= count)

    def end(self, number):
        """Sends a signal and returns (whether the process was running, its exit code, all it
        said).
        """
        is_running = self.process.poll() is None
        if is_running:
            self.process.send_signal(number)
        return is_running, *self.finish()

    def finish(self):
        """Returns (exit code, all it said)."""
        code = self.process.wait(600)
        self._reader.join()
        return code, "".join(self._lines)


class Stress:
    """Runs of one kind that are disturbed.

    Attributes:
        done: collections.Counter of what was done.
    """

    def __init__(self, start, haste, folder, rng):
        """
        Args:
            start: function of a run folder that starts a process.
            haste: how many times as fast as train_cifar.py's phases are those of these runs.
            folder: pathlib.Path for the runs.
            rng: numpy.random.Generator.
        """
        self._start, self._haste, self._folder, self._rng = start, haste, folder, rng
        self.done = collections.Counter()
        code, output = Watched(start(folder / "undisturbed")).finish()
        check(code == 0, output)
        self._expected = stress_resume.end_of(folder / "undisturbed")

    def run(self, numbers):
        """Ends processes by these signals, one after the other, and lets each run come to its end
        behind ten of them.
        """
        numbers = list(numbers)
        for begin in range(0, len(numbers), len(AIMS)):
            folder = self._folder / f"run{self.done['runs']}"
            for aim, number in zip(AIMS, numbers[begin : begin + len(AIMS)]):
                self._disturb(folder, aim, number)
            self._finish(folder)

    def _disturb(self, folder, aim, number):
        watched = Watched(self._start(folder))
        watched.wait_for_phase(aim)
        time.sleep(self._rng.uniform(0, DELAYS[aim]) / self._haste)
        was_running, code, output = watched.end(number)
        at_the_end = (
            code == -number and "phase report took" in output
        )  # while Python ended, where signals have no handler
        check(not was_running or code in (0, *ENDS[number]) or at_the_end, output)
        check("Traceback" not in output, output)
        if was_running and code:
            self.done[signal.Signals(number).name] += 1
            self.done[f"in {watched.phase}"] += 1
        if number == signal.SIGKILL and self.done["SIGKILL"] % DOUBLE == DOUBLE - 1:
            again = Watched(self._start(folder))
            again.wait_for_line()
            time.sleep(self._rng.uniform(0, 1))
            was_running, code, output = again.end(number)
            self.done["SIGKILL"] += was_running
            self.done["double kills"] += was_running

    def _finish(self, folder):
        code, output = Watched(self._start(folder)).finish()
        check(code == 0 and "Traceback" not in output, output)
        self.done["runs"] += 1
        self.done["identical"] += stress_resume.end_of(folder) == self._expected
        print(json.dumps(self.done), file=sys.stderr, flush=True)


class JobStress:
    """Jobs of one kind, each of which is disturbed several times, and then comes to its end.

    Attributes:
        done: collections.Counter of what was done.
    """

    def __init__(self, start, folder, rng):
        """
        Args:
            start: function of a folder that starts a process.
            folder: pathlib.Path for the jobs.
            rng: numpy.random.Generator.
        """
        self._start, self._folder, self._rng = start, folder, rng
        self.done = collections.Counter()
        code, output = Watched(start(folder / "undisturbed")).finish()
        check(code == 0, output)
        self._num_lines = output.count("\n")
        self._expected = stress_resume.ends_of(folder / "undisturbed")

    def run(self, count, together=4):
        """Disturbs so many processes, `together` of each job."""
        for begin in range(0, count, together):
            folder = self._folder / f"job{self.done['jobs']}"
            for number in range(begin, min(begin + together, count)):
                self._disturb(folder, is_full=number % 3 == 2)
            code, output = Watched(self._start(folder)).finish()
            check(code == 0 and "Traceback" not in output, output)
            self.done["jobs"] += 1
            self.done["identical"] += stress_resume.ends_of(folder) == self._expected
            print(json.dumps(self.done), file=sys.stderr, flush=True)

    def _disturb(self, folder, is_full):
        process = self._start(folder)
        watched = Watched(process)
        watched.wait_for_lines(int(self._rng.integers(2, self._num_lines)))
        time.sleep(self._rng.uniform(0, 1))
        if not is_full:
            was_running, code, output = watched.end(signal.SIGKILL)
            check(not was_running or code in (0, -signal.SIGKILL), output)
            self.done["kills"] += was_running
        else:
            # No file of the process may grow any more, as on a full disk
            with contextlib.suppress(ProcessLookupError):  # it has ended by now
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            code, output = watched.finish()
            check(code in (0, 2), output)
            self.done["full disks"] += code == 2
        check("Traceback" not in output, output)


def stress_workers(params, folder, count, rng):
    """Kills one of two processes of a job so many times; returns what was done."""
    arguments = [
        *test_multi_worker.SHORT,
        "--checkpoint_minutes",
        "0.01",
        "--trained_param",
        params,
    ]
    done = collections.Counter()

    def start(name):
        return [
            Watched(process)
            for process in test_multi_worker.start_workers(
                [*arguments, "--train_path", folder / name]
            )
        ]

    def finish(name):
        for watched in start(name):
            code, output = watched.finish()
            check(code == 0, output)

    finish("undisturbed")
    expected = stress_resume.end_of(folder / "undisturbed")
    for number in range(count):
        workers, aim = start(f"run{done['runs']}"), AIMS[number % len(AIMS)]
        workers[0].wait_for_phase(aim)
        time.sleep(rng.uniform(0, DELAYS[aim]))
        victim = int(rng.integers(2))
        was_running, _, _ = workers[victim].end(signal.SIGKILL)
        code, output = workers[1 - victim].finish()
        check(code == (LOST_WORKER if was_running else 0) or code == 0, output)
        check("Traceback" not in output, output)
        done["killed"] += was_running
        done[f"in {workers[0].phase}"] += was_running
        if number % len(AIMS) == len(AIMS) - 1 or number == count - 1:
            finish(f"run{done['runs']}")
            done["identical"] += stress_resume.end_of(folder / f"run{done['runs']}") == expected
            done["runs"] += 1
    return done


def stress_differing_workers(params, folder, count):
    """Starts two workers of which one has other data and another NumPy, so many times; each time
    both must refuse.
    """
    arguments = [
        *stress_resume.ARGUMENTS,
        "--trained_param",
        params,
        "--train_path",
        folder / "run",
    ]
    done = collections.Counter()
    for _ in range(count):
        workers = test_multi_worker.start_workers(
            arguments, job=("tests.programs.differing", "environment", "--")
        )
        for code, output in (Watched(process).finish() for process in workers):
            check(code == 2 and "versions numpy" in output and "data sample" in output, output)
            check("Traceback" not in output and not (folder / "run").exists(), output)
        done["refused"] += 1
    return done


def check(is_so, output):
    if not is_so:
        raise RuntimeError(output)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description="End runs at random instants and compare their ends."
    )
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--signals", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=40, help="of these, shared out among kinds")
    parser.add_argument("--job_kinds", nargs="+", default=JOBS, choices=JOBS)
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument(
        "--differing", type=int, default=30, help="starts of two workers of other data and versions"
    )
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    differing = 0
    with tempfile.TemporaryDirectory() as name:
        root, rng = Path(name), np.random.default_rng(args.seed)
        params, large_params = root / "params.pkl", root / "large_params.pkl"
        stress_resume.write_params(params)
        runs.write_params(large_params)
        kinds = {
            "one device": (lambda folder: stress_resume.start(params, folder), 1),
            "two devices": (
                lambda folder: stress_resume.start(params, folder, more=("--virtual_devices", "2")),
                1,
            ),
            "ekg.prune": (lambda folder: runs.start("-m", "tests.programs.stress_own", folder), 10),
        }
        for number, kind in enumerate(args.kinds):
            share = len(args.kinds)
            kills, signals = (
                count // share + (number < count % share) for count in (args.kills, args.signals)
            )
            signals_in_turn = [(signal.SIGTERM, signal.SIGUSR1)[i % 2] for i in range(signals)]
            if kills or signals:
                stress = Stress(*kinds[kind], root / kind.replace(" ", "_"), rng)
                stress.run([*[signal.SIGKILL] * kills, *signals_in_turn])
                print(json.dumps({"kind": kind} | stress.done), flush=True)
                differing += stress.done["runs"] - stress.done["identical"]
        own = "tests.programs.stress_own"
        jobs = {
            "rates": lambda folder: stress_resume.start(
                params, folder, target=("--target_rates", "0.7", "0.4")
            ),
            "drop": lambda folder: stress_resume.start(params, folder, target=DROP),
            "repaired": lambda folder: stress_resume.start(params, folder, more=("--repair",)),
        } | {
            job: functools.partial(lambda job, folder: runs.fork(own, folder, "--job", job), job)
            for job in ("outputs", "front", "goal")
        }
        for number, kind in enumerate(args.job_kinds):
            share = len(args.job_kinds)
            count = args.jobs // share + (number < args.jobs % share)
            if count:
                stress = JobStress(jobs[kind], root / kind, rng)
                stress.run(count)
                print(json.dumps({"kind": kind} | stress.done), flush=True)
                differing += stress.done["jobs"] - stress.done["identical"]
        if args.workers:
            done = stress_workers(large_params, root / "workers", args.workers, rng)
            print(json.dumps({"kind": "two workers"} | done), flush=True)
            differing += done["runs"] - done["identical"]
        if args.differing:
            print(
                json.dumps(
                    {"kind": "differing workers"}
                    | stress_differing_workers(params, root / "differing", args.differing)
                ),
                flush=True,
            )
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
