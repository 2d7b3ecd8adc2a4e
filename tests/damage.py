"""How tests damage files."""


def flip_bit(data, offset=None, bit=4):
    """Returns the bytes with one bit changed: of the byte at `offset`, or of the middle one."""
    offset = len(data) // 2 if offset is None else offset
    return data[:offset] + bytes([data[offset] ^ (1 << bit)]) + data[offset + 1:]


def flip_bit_of(path, offset=None, bit=4):
    """Changes one bit of a file; see flip_bit."""
    path.write_bytes(flip_bit(path.read_bytes(), offset, bit))
