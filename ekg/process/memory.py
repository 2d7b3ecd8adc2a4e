"""The memory that a process and its GPUs use, and that a machine has."""

import contextlib
import os
import re
import resource
from pathlib import Path

import tensorflow as tf

from ekg.devices import kind

MIB = 2**20
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory_mib():
    """Returns the most memory, in MiB, that this process has had resident, since the last Peak
    began.

    It is read from Linux' own record of this program: getrusage() would count the memory of the
        parent process, too.
    """
    return _read_status("VmHWM")


def resident_mib():
    """Returns the memory, in MiB, that this process has resident now; the most so far where the
    system does not tell.
    """
    return _read_status("VmRSS")


def _read_status(name):
    value = re.search(rf"{name}:\s*(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    return (
        int(value.group(1)) if value else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ) / 1024


class Peak:
    """The most memory that was in use while its block ran; what was in use before counts, if it
    stays.

    Where the system cannot begin its record anew (other systems than Linux), it is that since the
    program began.

    Attributes:
        host_mib: of this process, in MiB.
        gpu_mib: of TensorFlow on the GPU that used most of it, in MiB; 0 without a GPU.
    """

    host_mib, gpu_mib = 0.0, 0.0

    def __enter__(self):
        with contextlib.suppress(OSError):
            RESET.write_text("5")  # proc(5): resets the record of the peak
        self._gpus = kind.gpu_memory_names()
        for gpu in self._gpus:
            tf.config.experimental.reset_memory_stats(gpu)
        return self

    def __exit__(self, *_):
        self.host_mib = peak_memory_mib()
        self.gpu_mib = max(
            (tf.config.experimental.get_memory_info(gpu)["peak"] / MIB for gpu in self._gpus),
            default=0.0,
        )

    def __str__(self):
        return f"{self.host_mib:,.0f} MiB" + (
            f", {self.gpu_mib:,.0f} MiB of a GPU" if self.gpu_mib else ""
        )


def machine_memory_mib():
    """Returns the memory, in MiB, that this process can have: the machine's, or what its limits and
    control groups leave.
    """
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_group_limits()]
    return (
        min([*limits, *([] if address_space == resource.RLIM_INFINITY else [address_space])]) / MIB
    )


def _group_limits():
    """Yields the bytes that the process's control groups, as of a container or a job, and those
    around them may take.
    """
    for line in OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.exists() else []:
        number, controllers, name = line.split(":", 2)
        if number == "0":
            root, file = GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, file = GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / name.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            text = (folder / file).read_text().strip() if (folder / file).is_file() else ""
            if text.isdecimal():
                yield int(text)
