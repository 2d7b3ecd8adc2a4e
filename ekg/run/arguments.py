"""All that the result of a run depends on, as its arguments.json holds it."""

import dataclasses
import hashlib
import os
import platform
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ekg.devices.kind import machine
from ekg.distil import bank_files
from ekg.graph.naming import named_weights
from ekg.run import comparing
from ekg.run.comparing import describe_network
from ekg.settings import MACHINE, TRAINING, about

_PLAIN = (type(None), bool, int, float, str, tuple, list, dict)  # go to JSON as they are
RESULTS_VERSION = 5  # raised where the same arguments lead to other numbers than before
TEST_DATA = "test_data"  # nothing is chosen by it; the final table is of it
VERSIONS = {
    "python": platform.python_version(),
    "tensorflow": tf.__version__,
    "keras": keras.__version__,
    "numpy": np.__version__,
}


def of_job(job, asked):
    """Returns (what arguments.json holds, what of it cannot be compared, in words).

    Args:
        job: Job.
        asked: {name: value} besides the settings of the job. A function or another object is
            described by what it does; see comparing.describe().
    """
    values = settings_of(job, lambda details: details.affects != MACHINE) | asked
    described = {
        name: comparing.describe(value)
        for name, value in values.items()
        if not isinstance(value, _PLAIN)
    }
    unknown = [f"`{name}` ({what})" for name, one in described.items() for what in one.unknown]
    texts = {name: one.text for name, one in described.items()}
    return {**values, **texts, **describe(job.data, job.compute.use_xla)}, unknown


def started_with(job, asked):
    """Returns {name: text} of all that every worker of a job must be started with, as far as it is
    known before data are compared.

    Args:
        job: Job.
        asked: see of_job().
    """
    values = settings_of(job, lambda details: not details.is_per_worker) | asked
    return {name: str(value) for name, value in values.items() if isinstance(value, _PLAIN)}


def training_names(job):
    """Returns the names of the settings of a job that its search does not depend on."""
    return list(settings_of(job, lambda details: details.affects == TRAINING))


def settings_of(job, is_wanted):
    """Returns {name: value} of the settings of a job whose Setting is wanted, a function to a truth
    value.
    """
    return {
        field.name: getattr(part, field.name)
        for part in job.settings.parts()
        for field in dataclasses.fields(part)
        if is_wanted(about(field))
    }


def describe(data, is_compiled):
    """Returns {name: value} of data, machine code and versions.

    Args:
        data: data set.
        is_compiled: whether steps are compiled with XLA.
    """
    train, test = (bank_files.fingerprint(split, data.task) for split in (data.train, data.test))
    return {
        "results_version": RESULTS_VERSION,
        "data": train,
        TEST_DATA: test,
        "use_xla": is_compiled,
        "versions": VERSIONS,
    }


def origin():
    """Returns what a result came out of besides its arguments: {"revision", "machine", "cores"},
    for summary.json.

    The revision is that of the git checkout that this program lies in; None where it lies in none.
    """
    return {
        "revision": _revision(Path(__file__).parents[2] / ".git"),
        "machine": machine(),
        "cores": count_cores(),
    }


def hash_library():
    """Returns a hash of the source files of this package; workers compare it."""
    return hash_code(Path(__file__).parents[1], ("**/*.py",))


def hash_code(folder, patterns):
    """Returns a hash of the source files in a folder.

    Args:
        folder: pathlib.Path.
        patterns: of the names of files in it, as Path.glob() takes them.
    """
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def count_cores():
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _revision(git):
    """Returns the commit that a .git folder has checked out, or None; it is read, as a library
    starts no process.
    """
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (git / name).exists():
            return (git / name).read_text().strip()
        packed = (
            line.split(" ", 1)
            for line in (git / "packed-refs").read_text().splitlines()
            if " " in line
        )
        return next((commit for commit, ref in packed if ref == name), None)
    except OSError:
        return None


def model_fingerprint(model):
    """Returns a hash of a network: the names, shapes and numbers of its weights, and what its
    layers compute.
    """
    digest = hashlib.sha256()
    for layer, name, variable in named_weights(model):
        digest.update(f"{type(layer).__name__} {name} {tuple(variable.shape)}".encode())
        digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
    digest.update(describe_network(model).encode())
    return digest.hexdigest()


def differences(old, new):
    """Returns a line for every entry in which two dicts differ, or an empty text."""
    return "".join(
        f"\n  {name}: {old.get(name)!r} there, {new.get(name)!r} here"
        for name in sorted(set(old) | set(new))
        if old.get(name) != new.get(name)
    )
