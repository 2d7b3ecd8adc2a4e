"""How tests damage files."""

import numpy as np


def flip_bit(data, offset=None, bit=4):
    """Returns the bytes with one bit changed: of the byte at `offset`, or of the middle one."""
    offset = len(data) // 2 if offset is None else offset
    return data[:offset] + bytes([data[offset] ^ (1 << bit)]) + data[offset + 1 :]


def flip_bit_of(path, offset=None, bit=4):
    """Changes one bit of a file; see flip_bit."""
    path.write_bytes(flip_bit(path.read_bytes(), offset, bit))


def mutate(data, rng):
    """Returns the data with a byte or a stretch changed, inserted, removed, repeated, or cut
    off.
    """
    start = int(rng.integers(len(data)))
    size = int(rng.choice([1, 1, 1, 4, 64]))
    stretch = rng.integers(0, 256, size).astype(np.uint8).tobytes()
    kind = rng.integers(5)
    if kind == 0:
        return data[:start] + stretch + data[start + size :]
    if kind == 1:
        return data[:start] + stretch + data[start:]
    if kind == 2:
        return data[:start] + data[start + size :]
    if kind == 3:
        return data[:start] + data[start : start + size] + data[start:]
    return data[:start]


STRANGE = (
    None,
    True,
    -1,
    10**30,
    1e308,
    float("nan"),
    "",
    "\x00",
    [],
    {},
    [[]],
    [1, "a", None],
    {"step": {}},
)


def mutate_content(value, rng):
    """Returns JSON whose checksum would be right: an entry anywhere in it removed, renamed, or of
    another kind.
    """
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[int(rng.integers(len(keys)))]
        changed = dict(value) if isinstance(value, dict) else list(value)
        what = rng.integers(8)
        if what == 0:
            del changed[key]
        elif what == 1 and isinstance(value, dict):
            changed[f"{key} "] = changed.pop(key)
        else:
            changed[key] = mutate_content(value[key], rng)
        return changed
    return STRANGE[int(rng.integers(len(STRANGE)))]
