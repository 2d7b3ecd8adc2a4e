"""What the result of every run depends on besides its settings, as it stands in arguments.json."""

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
from ekg.run.comparing import describe_network

RESULTS_VERSION = 4  # raised where the same arguments lead to other numbers than before
TEST_DATA = "test_data"  # nothing is chosen by it; the final table is of it
VERSIONS = {
    "python": platform.python_version(),
    "tensorflow": tf.__version__,
    "keras": keras.__version__,
    "numpy": np.__version__,
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


def hash_code(folder, patterns):
    """Returns a hash of the source files in a folder; workers compare it.

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
