"""Memory use of the process and its GPUs, and the memory of the machine."""

import contextlib
import os
import re
import resource
from pathlib import Path

import tensorflow as tf

from ekg.devices import kind

MIB = 2**20
GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


def peak_memory_mib():
    """Returns the peak resident memory of this process, in MiB, since the last Peak began.

    It comes from Linux' record of this process: getrusage() would include the memory of the parent
    process.
    """
    return _read_status("VmHWM")


def resident_mib():
    """Returns the resident memory of this process, in MiB; the peak where Linux is missing."""
    return _read_status("VmRSS")


def _read_status(name):
    """Returns an entry of /proc/self/status in MiB, or the peak memory on other systems."""
    match = re.search(rf"{name}:\s*(\d+) kB", STATUS.read_text()) if STATUS.exists() else None
    if match:
        return int(match.group(1)) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Peak:
    """Measures the peak memory while its block runs, including memory that was in use before.

    Only Linux can reset its record; on other systems the peak is that since the program began.

    Attributes:
        host_mib: peak resident memory of this process, in MiB.
        gpu_mib: peak memory of TensorFlow on the GPU that used most, in MiB; 0 without a GPU.
    """

    host_mib = 0.0
    gpu_mib = 0.0

    def __enter__(self):
        with contextlib.suppress(OSError):
            RESET.write_text("5")  # proc(5): "5" resets the peak resident memory
        self._gpus = kind.gpu_memory_names()
        for gpu in self._gpus:
            tf.config.experimental.reset_memory_stats(gpu)
        return self

    def __exit__(self, *_):
        self.host_mib = peak_memory_mib()
        infos = [tf.config.experimental.get_memory_info(gpu) for gpu in self._gpus]
        self.gpu_mib = max((info["peak"] / MIB for info in infos), default=0.0)

    def __str__(self):
        text = f"{self.host_mib:,.0f} MiB"
        if self.gpu_mib:
            text += f", {self.gpu_mib:,.0f} MiB of a GPU"
        return text


def machine_memory_mib():
    """Returns the memory that this process may use within its limits and control groups, in MiB."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_group_limits()]
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        limits.append(address_space)
    return min(limits) / MIB


def _group_limits():
    """Yields the memory limits, in bytes, of the process's control groups and their parents.

    Containers and batch systems set them.
    """
    if not OWN_GROUPS.exists():
        return
    for line in OWN_GROUPS.read_text().splitlines():
        hierarchy, controllers, name = line.split(":", 2)
        if hierarchy == "0":  # version 2 of control groups
            root, file_name = GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, file_name = GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / name.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            file = folder / file_name
            text = file.read_text().strip() if file.is_file() else ""
            if text.isdecimal():  # "max" means no limit
                yield int(text)
