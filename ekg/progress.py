"""What a person at the terminal watches: progress bars and the memory that is used."""

import contextlib
import re
import resource
from pathlib import Path

import tqdm


class _Shown:
    """Whether this process shows progress bars."""
    is_on = True


def progress_bar(name, total, unit):
    """Returns a tqdm progress bar on the standard error stream."""
    return tqdm.tqdm(total=total, desc=name, unit=unit, dynamic_ncols=True, mininterval=0.5, smoothing=0.1,
                     disable=not _Shown.is_on)


@contextlib.contextmanager
def shown(is_on):
    """Shows progress bars while it lasts, or none."""
    before, _Shown.is_on = _Shown.is_on, is_on
    try:
        yield
    finally:
        _Shown.is_on = before


def peak_memory_mib():
    """Returns the most memory, in MiB, that this process has had resident.

    It is read from Linux' own record of this program: getrusage() would count the memory of the parent process, too.
    """
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    if peak:
        return int(peak.group(1)) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
