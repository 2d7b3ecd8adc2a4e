"""Pickles of plain data and numeric arrays, which are read without running code from the file."""

import io
import math
import pickle
import pickletools
import re
from pathlib import Path

import numpy as np

from ekg.errors import EkgError
from ekg.io import files

# Instructions that plain data and arrays need. All others that call or import (INST, OBJ, NEWOBJ,
# EXT, PERSID, ...) are refused.
_PLAIN_OPCODES = {
    "PROTO",
    "STOP",
    "FRAME",
    "MARK",
    "POP",
    "POP_MARK",
    "DUP",
    "MEMOIZE",
    "PUT",
    "BINPUT",
    "LONG_BINPUT",
    "GET",
    "BINGET",
    "LONG_BINGET",
    "NONE",
    "NEWTRUE",
    "NEWFALSE",
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
    "EMPTY_DICT",
    "DICT",
    "SETITEM",
    "SETITEMS",
    "EMPTY_LIST",
    "LIST",
    "APPEND",
    "APPENDS",
    "EMPTY_TUPLE",
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
    "GLOBAL",
    "STACK_GLOBAL",
    "REDUCE",
    "BUILD",
}
_PLAIN_TYPES = (str, bytes, bytearray, int, float, bool, type(None), np.ndarray, np.generic)
_DTYPE_NAME = re.compile(r"[<>=|]?[biuf]\d{1,2}")  # all that NumPy writes for numeric arrays
_LATIN_1 = ("latin1", "latin-1")


class _Dtype:
    """Placeholder of a numpy.dtype while a pickle is read; admits numeric types only."""

    def __init__(self, name, *_):
        name = name.decode("latin-1") if isinstance(name, bytes) else name
        if not isinstance(name, str) or not _DTYPE_NAME.fullmatch(name):
            raise pickle.UnpicklingError(
                f"it holds an array of type {str(name)[:40]!r}, which is not numeric"
            )
        self.dtype = np.dtype(name)

    def __setstate__(self, state):
        order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
        if any(item is not None for item in state[2:5]) or order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("it holds an array of a structured type")
        if order != "|":
            self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Placeholder of a numpy.ndarray while a pickle is read."""

    def __init__(self, make_array):
        self.value = None
        self._make_array = make_array

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, data = state
        self.value = self._make_array(data, dtype, shape, "F" if is_fortran else "C")


class _Call:
    """A function that a pickle may call, but whose state it cannot change."""

    __slots__ = ("_function",)

    def __init__(self, function):
        self._function = function

    def __call__(self, *args):
        return self._function(*args)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it changes a function")


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain data and numeric arrays that together have at most as many bytes as the file."""

    def __init__(self, data, encoding):
        super().__init__(io.BytesIO(data), encoding=encoding)
        self._bytes_left = len(data)
        self._admitted = {
            ("numpy", "ndarray"): _Call(self._refuse),
            ("numpy", "dtype"): _Call(_Dtype),
            ("_codecs", "encode"): _Call(self._encode),  # how Python 3 writes bytes into protocol 2
            ("builtins", "bytes"): _Call(self._empty_bytes),
            ("__builtin__", "bytes"): _Call(self._empty_bytes),
        }
        for core in ("numpy.core", "numpy._core"):
            self._admitted |= {
                (f"{core}.multiarray", "_reconstruct"): _Call(lambda *_: _Array(self._make_array)),
                (f"{core}.multiarray", "scalar"): _Call(
                    lambda dtype, data: self._make_array(data, dtype, (), "C")[()]
                ),
                (f"{core}.numeric", "_frombuffer"): _Call(self._make_array),
            }

    def find_class(self, module, name):
        if (module, name) not in self._admitted:
            raise pickle.UnpicklingError(
                f"it asks for {f'{module}.{name}'[:60]!r}, and only plain data and numeric arrays "
                "are admitted"
            )
        return self._admitted[module, name]

    def _make_array(self, data, dtype, shape, order):
        """Returns an array of these bytes, whose number must match the declared shape."""
        if isinstance(data, str):
            data = data.encode("latin-1")
        has_types = isinstance(dtype, _Dtype) and isinstance(data, (bytes, bytearray))
        has_shape = all(type(size) is int and size >= 0 for size in shape)
        if not has_types or not has_shape or order not in ("C", "F"):
            raise pickle.UnpicklingError("it holds a malformed array")
        if math.prod(shape) * dtype.dtype.itemsize != len(data):
            raise pickle.UnpicklingError(
                f"it holds an array of shape {str(shape)[:60]} with {len(data)} bytes"
            )
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise pickle.UnpicklingError("it holds the same bytes many times over")
        return np.frombuffer(data, dtype.dtype).reshape(shape, order=order).copy()

    def _encode(self, text, encoding):
        if encoding not in _LATIN_1:
            raise pickle.UnpicklingError(f"it encodes text as {str(encoding)[:20]!r}")
        return text.encode("latin-1")

    def _empty_bytes(self):
        return b""

    def _refuse(self, *_):
        raise pickle.UnpicklingError("it holds a malformed array")


def _resolve(value, budget):
    """Returns the value with its placeholders replaced by arrays.

    Args:
        value: unpickled value.
        budget: list with the number of values that may still be visited; a file cannot hold more
            values than bytes.
    """
    budget[0] -= 1
    if budget[0] < 0:
        raise pickle.UnpicklingError("it holds the same values many times over")
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {_resolve(key, budget): _resolve(item, budget) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_resolve(item, budget) for item in value)
    if not isinstance(value, _PLAIN_TYPES):
        raise pickle.UnpicklingError("it holds something that is no data")
    return value


def save_pickle(path, value):
    """Pickles plain data and arrays, followed by a checksum."""
    files.write_sealed(path, pickle.dumps(value, protocol=4))


def load_pickle(path, encoding="ASCII"):
    """Returns the plain data in a pickle file, without running code from it.

    Args:
        path: path of the file.
        encoding: encoding of strings that Python 2 wrote; "bytes" keeps them as bytes.

    Raises:
        EkgError: the file is missing, truncated, not a pickle, or contains anything but dicts,
            lists, tuples, strings, bytes, numbers and numeric NumPy arrays.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise EkgError(f"{path}: cannot be read ({error.strerror}).") from None
    return parse_pickle(data, path, encoding)


def parse_pickle(data, source, encoding="ASCII"):
    """Returns the plain data in pickled bytes, like load_pickle(); errors name the `source`."""
    try:
        end = 0
        for opcode, argument, position in pickletools.genops(data):
            end = position + 1
            if opcode.name not in _PLAIN_OPCODES:
                raise pickle.UnpicklingError(
                    f"it holds the instruction {opcode.name}, which plain data does not need"
                )
            if opcode.name.endswith("PUT") and argument > len(data):
                raise pickle.UnpicklingError("its memo is larger than the file")
        if data[end:] not in (b"", files.seal(data[:end])):
            raise pickle.UnpicklingError("its checksum is wrong, or something is appended to it")
        return _resolve(_PlainUnpickler(data, encoding).load(), [len(data)])
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        IndexError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as error:
        raise EkgError(
            f"{source}: not a readable pickle of plain data ({' '.join(str(error).split())}); it "
            "may be truncated, of another kind, or unsafe."
        ) from None
