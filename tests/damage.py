"""How tests damage files."""

import numpy as np


def flip_bit(data, offset=None, bit=4):
    """Returns the bytes with one bit changed: of the byte at `offset`, or of the middle one."""
    offset = len(data) // 2 if offset is None else offset
    return data[:offset] + bytes([data[offset] ^ (1 << bit)]) + data[offset + 1:]


def flip_bit_of(path, offset=None, bit=4):
    """Changes one bit of a file; see flip_bit."""
    path.write_bytes(flip_bit(path.read_bytes(), offset, bit))


def mutate(data, rng):
    """Returns the data with a byte or a stretch changed, inserted, removed, repeated, or cut off."""
    start = int(rng.integers(len(data)))
    size = int(rng.choice([1, 1, 1, 4, 64]))
    stretch = rng.integers(0, 256, size).astype(np.uint8).tobytes()
    kind = rng.integers(5)
    if kind == 0:
        return data[:start] + stretch + data[start + size:]
    if kind == 1:
        return data[:start] + stretch + data[start:]
    if kind == 2:
        return data[:start] + data[start + size:]
    if kind == 3:
        return data[:start] + data[start:start + size] + data[start:]
    return data[:start]
