"""What goes to disk and terminal: parameter files, run folder, logging, the final table."""

import dataclasses
import io
import json
import logging
import math
import os
import pickle
import pickletools
import sys
import tempfile
from pathlib import Path

# TensorFlow reads this when it is first imported. Without it, CPUs that lack VNNI get kernels whose convolution
# gradients take several times as long.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tqdm  # noqa: E402

logger = logging.getLogger("ekg")

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
MAX_MISMATCHES_SHOWN = 12


class UserError(Exception):
    """A mistake of the user's: one line that says what is wrong, where, and what to do."""


def run_script(main, parse_args):
    """Runs main(parse_args()) as a script and exits: 0, 2 with one line for a UserError, 130 for Ctrl-C."""
    args = parse_args()
    tf.get_logger().setLevel("ERROR")
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, stream=sys.stderr)
    try:
        main(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on where the run stopped.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def progress_bar(name, total, unit):
    """Returns a tqdm progress bar on the standard error stream."""
    return tqdm.tqdm(total=total, desc=name, unit=unit, dynamic_ncols=True, mininterval=0.5, smoothing=0.1)


# ---------------------------------------------------------------- files

def write_whole(path, write):
    """Writes a file so that it appears whole or not at all.

    Args:
        path: where it will stand.
        write: function that writes into the binary file it is given.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path, value):
    """Writes a value as indented JSON."""
    write_whole(path, lambda file: file.write((json.dumps(value, indent=2) + "\n").encode()))


def read_json_lines(path):
    """Returns the list of values in a file of JSON lines; a last line that was cut short is left out."""
    lines = Path(path).read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def append_json_line(path, value):
    """Appends a value as one line; what a stopped write left of an unfinished line is cut off first."""
    with open(path, "ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write((json.dumps(value) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


# ---------------------------------------------------------------- pickles from strangers

# What plain data and arrays need. Whatever calls or imports otherwise (INST, OBJ, NEWOBJ, EXT, PERSID, ...) is refused.
_PLAIN_OPCODES = {
    "PROTO", "STOP", "FRAME", "MARK", "POP", "POP_MARK", "DUP", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET",
    "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1",
    "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "EMPTY_DICT", "DICT",
    "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2",
    "TUPLE3", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"}
_NUMERIC_KINDS = "biuf"


class _Type:
    """Stands for the class numpy.ndarray in a pickle."""


class _Dtype:
    """Stands for a numpy.dtype while a pickle is read: numeric kinds only."""

    def __init__(self, name, *_):
        name = name.decode("ascii") if isinstance(name, bytes) else name
        try:
            self.dtype = np.dtype(name) if isinstance(name, str) else None
        except TypeError:
            self.dtype = None
        if self.dtype is None or self.dtype.kind not in _NUMERIC_KINDS or self.dtype.shape:
            raise pickle.UnpicklingError(f"it holds an array of type {str(name)[:40]!r}, which is not numeric")

    def __setstate__(self, state):
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if any(item is not None for item in state[2:5]) or order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("it holds an array of a structured type")
        if order != "|":
            self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for a numpy.ndarray while a pickle is read."""

    def __init__(self, *_):
        self.value = None

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, data = state
        self.value = _from_buffer(data, dtype, shape, "F" if is_fortran else "C")


def _from_buffer(data, dtype, shape, order):
    """Returns an array of its bytes; the declared shape must take exactly as many."""
    if isinstance(data, str):
        data = data.encode("latin-1")
    if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)) or order not in ("C", "F") or not all(
            type(size) is int and size >= 0 for size in shape):
        raise pickle.UnpicklingError("it holds a malformed array")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"it holds an array of shape {shape} with {len(data)} bytes")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order).copy()


def _scalar(dtype, data):
    return _from_buffer(data, dtype, (), "C")[()]


def _empty_bytes():
    return b""


def _encode(text, encoding):
    """Python 3 writes bytes that way into pickles of protocol 2."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes text as {str(encoding)[:20]!r}")
    return text.encode("latin-1")


_ADMITTED = {("numpy", "ndarray"): _Type, ("numpy", "dtype"): _Dtype, ("_codecs", "encode"): _encode,
             ("builtins", "bytes"): _empty_bytes, ("__builtin__", "bytes"): _empty_bytes,
             **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
             **{(f"numpy.{core}.multiarray", name): value for core in ("core", "_core")
                for name, value in (("_reconstruct", _Array), ("scalar", _scalar))}}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module[:40]}.{name[:40]}, and only plain data and numeric "
                                         "arrays are admitted")
        return _ADMITTED[module, name]


def _resolve(value):
    """Replaces the stand-ins by arrays."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {_resolve(key): _resolve(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_resolve(item) for item in value)
    if isinstance(value, (_Type, _Dtype, type)) or callable(value):
        raise pickle.UnpicklingError("it holds something that is no data")
    return value


def load_pickle(path, encoding="ASCII"):
    """Returns the plain data of a pickle file, without ever running code from it.

    Args:
        path: the file.
        encoding: of strings that Python 2 wrote; "bytes" keeps them as bytes.

    Raises:
        UserError: the file is missing, truncated, no pickle, or holds anything but dicts, lists, tuples, strings, bytes,
            numbers and numeric NumPy arrays.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    return parse_pickle(data, path, encoding)


def parse_pickle(data, source, encoding="ASCII"):
    """Returns the plain data of pickled bytes; `source` names them in errors. See load_pickle."""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in _PLAIN_OPCODES:
                raise pickle.UnpicklingError(f"it holds the instruction {opcode.name}, which plain data does not need")
            if opcode.name.endswith("PUT") and argument > len(data):
                raise pickle.UnpicklingError("its memo is larger than the file")
        return _resolve(_PlainUnpickler(io.BytesIO(data), encoding=encoding).load())
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError,
            OverflowError, RecursionError, MemoryError) as error:
        raise UserError(f"{source}: not a readable pickle of plain data ({error}); it may be truncated, of another kind, "
                        "or unsafe.") from None


# ---------------------------------------------------------------- parameter files

def _entries(model):
    """Yields (name in a parameter file, variable, shape in a parameter file) of every weight of a model."""
    for layer in model.layers:
        for variable in layer.weights:
            name, shape = variable.name, tuple(variable.shape)
            if type(layer).__name__ == "Dense" and name == "bias":
                name, shape = "biases", (1, *shape)
            elif type(layer).__name__ == "BatchNormalization":
                shape = (1, 1, 1, *shape)
            yield f"{layer.name.replace('-', '/')}/{name}:0", variable, shape


def model_params(model):
    """Returns {name: float32 array} of a model's weights, as a parameter file holds them.

    Names are layer/weight:0 with "/" for each "-" of a layer's name; kernels are [kh, kw, c_in, c_out], dense biases
    [1, classes], batch norm arrays [1, 1, 1, channels].
    """
    return {name: variable.numpy().reshape(shape) for name, variable, shape in _entries(model)}


def save_params(model, path):
    """Pickles the parameters of a model."""
    write_whole(path, lambda file: pickle.dump(model_params(model), file, protocol=4))


def load_params(path):
    """Returns the {name: array} of a parameter file; entries like __version__ that hold no array are left out.

    Raises:
        UserError: the file cannot be read, is no pickle of plain data, or no dict from names to numeric arrays.
    """
    value = load_pickle(path)
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{path}: not a parameter file: it holds no dict of named arrays.")
    params = {name: array for name, array in value.items() if not name.startswith("__")}
    wrong = [name for name, array in params.items() if not isinstance(array, np.ndarray)]
    if wrong or not params:
        raise UserError(f"{path}: not a parameter file: {wrong[:5] or 'it'} holds no array.")
    broken = [name for name, array in params.items() if not np.isfinite(array).all()]
    if broken:
        raise UserError(f"{path}: {broken[:5]} holds numbers that are not finite.")
    return params


def assign_params_(model, params, source):
    """Sets a model's weights from {name: array}; arrays of another shape but the right size are reshaped.

    Args:
        model: keras.Model, changed in place only if all fits.
        params: as load_params gives.
        source: what to call the parameters in an error.

    Raises:
        UserError: entries are missing, surplus or of the wrong shape; all of them are named at once.
    """
    entries = {name: (variable, shape) for name, variable, shape in _entries(model)}
    problems = [f"missing {name} {shape}" for name, (_, shape) in entries.items() if name not in params]
    problems += [f"surplus {name} {params[name].shape}" for name in params if name not in entries]
    problems += [f"{name} has shape {params[name].shape}, expected {shape}"
                 for name, (_, shape) in entries.items()
                 if name in params and not _same_shape(params[name].shape, shape)]
    if problems:
        raise UserError(mismatch(source, model.name, problems))
    for name, (variable, _) in entries.items():
        variable.assign(params[name].reshape(variable.shape).astype(np.float32))


def mismatch(source, arch, problems):
    """Returns the one line that names all (or the first dozen) problems between a parameter file and a network."""
    more = len(problems) - MAX_MISMATCHES_SHOWN
    shown = "; ".join(problems[:MAX_MISMATCHES_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    return f"{source}: does not fit {arch}, {len(problems)} entries differ: {shown}. Check --arch and --dataset."


def _same_shape(found, expected):
    """Shapes agree but for axes of length one."""
    return [size for size in found if size != 1] == [size for size in expected if size != 1]


# ---------------------------------------------------------------- run folder

class RunFolder:
    """Everything a run leaves: arguments.json first, then what each phase makes.

    Attributes:
        path: pathlib.Path of the folder.
    """

    def __init__(self, path, arguments):
        """Makes the folder, or opens it for the same arguments.

        Args:
            path: the folder.
            arguments: {name: value that goes to JSON} of everything that changes the result.

        Raises:
            UserError: the folder cannot be written, holds something else, or belongs to other arguments.
        """
        self.path, self._events = Path(path), None
        file = self.path / "arguments.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if file.exists():
                self._compare(json.loads(file.read_text()), arguments)
            elif any(self.path.iterdir()):
                raise UserError(f"{path}: --train_path is not empty and holds no run; name a new folder.")
            write_json(file, arguments)
        except json.JSONDecodeError:
            raise UserError(f"{file}: not readable as JSON; name a new --train_path.") from None
        except OSError as error:
            raise UserError(f"{path}: --train_path cannot be written ({error.strerror}).") from None

    def _compare(self, old, new):
        differing = [f"{name} {old.get(name)!r} there, {new.get(name)!r} here"
                     for name in sorted(set(old) | set(new)) if old.get(name) != new.get(name)]
        if differing:
            raise UserError(f"{self.path}: holds a run with other arguments ({'; '.join(differing)}); repeat those, "
                            "or name a new --train_path.")

    def __truediv__(self, name):
        return self.path / name

    def log_curves(self, phase, step, values):
        """Appends {name: number} of one step or epoch to curves.jsonl and to the TensorBoard event files."""
        append_json_line(self / "curves.jsonl", {"phase": phase, "step": step, **values})
        if self._events is None:
            self._events = tf.summary.create_file_writer(str(self / "events"))
        with self._events.as_default():
            for name, value in values.items():
                tf.summary.scalar(f"{phase}/{name}", value, step=step)
        self._events.flush()


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the final table; latencies are medians in milliseconds, file size is in bytes."""
    name: str
    loss: float
    top1: float
    top5: float
    params: int
    flops: int
    file_size: int
    latency_1: float
    latency_256: float


def format_table(rows):
    """Returns the rows as a Markdown table with the rate of FLOPs against the first row."""
    head = ["network", "loss", "top-1 %", "top-5 %", "params", "FLOPs", "rate", "file KiB", "ms, batch 1", "ms, batch 256"]
    lines = [[row.name, f"{row.loss:.4f}", f"{100 * row.top1:.2f}", f"{100 * row.top5:.2f}", f"{row.params:,}",
              f"{row.flops:,}", f"{row.flops / rows[0].flops:.4f}", f"{row.file_size / 1024:,.0f}",
              f"{row.latency_1:.2f}", f"{row.latency_256:.1f}"] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *lines)]
    text = [" | ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in [head, *lines]]
    rule = "-|-".join("-" * width for width in widths)
    return "\n".join(f"| {line} |" for line in [text[0], rule, *text[1:]])
