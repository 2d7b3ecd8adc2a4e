"""Program that reads a whole HDF5 file, so that a damaged one cannot hang or end its caller.

    python -P h5_probe.py CPU_SECONDS BYTES < FILE

HDF5's C code does not check everything: it may loop forever, end the process, or request any
amount of memory. The exit code is 0 where the file was read, and also where h5py raised an
exception, which the caller then meets itself. It runs by its path, as importing the package takes
seconds.
"""

import io
import math
import resource
import sys

import h5py

MOST_MEMBERS = 100_000
MOST_READ = 2**26  # bytes at once
EXIT_OUT_OF_MEMORY = 3


def read(file):
    """Reads all attributes and arrays of an open h5py.File, except those that lie elsewhere."""
    waiting = [file]
    known = set()  # addresses: a group may lie within itself
    while waiting and len(known) < MOST_MEMBERS:
        group = waiting.pop()
        _read_attributes(group)
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            member = group[name]
            address = h5py.h5o.get_info(member.id).addr
            if address in known:
                continue
            known.add(address)
            if isinstance(member, h5py.Group):
                waiting.append(member)
            elif isinstance(member, h5py.Dataset):
                _read_attributes(member)
                _read_array(member)


def _read_attributes(member):
    for name in member.attrs:
        member.attrs[name]


def _read_array(member):
    is_elsewhere = member.external or member.is_virtual
    if is_elsewhere or member.shape is None or member.dtype.itemsize == 0:
        return
    if math.prod(member.shape) * member.dtype.itemsize <= MOST_READ:
        member[()]


if __name__ == "__main__":
    seconds, size = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    stream = sys.stdin.buffer
    try:
        with h5py.File(stream if stream.seekable() else io.BytesIO(stream.read()), "r") as opened:
            read(opened)
    except MemoryError:
        sys.exit(EXIT_OUT_OF_MEMORY)
    except Exception:  # the caller meets it again, and names the file
        sys.exit(0)
