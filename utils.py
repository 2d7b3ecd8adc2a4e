"""What the scripts share around the job itself: their run with its exit codes and signals, and parameter files.

Import this module before TensorFlow: it sets TensorFlow's environment.
"""

import functools
import io
import logging
import math
import os
import pickle
import pickletools
import re
import signal
import sys
from pathlib import Path

# TensorFlow reads this when it is first imported. Without it, CPUs that lack VNNI get kernels whose convolution
# gradients take several times as long.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from ekg import files, stopping  # noqa: E402
from ekg.errors import EkgError  # noqa: E402
from ekg.graph.calls import finish_layers_  # noqa: E402
from ekg.graph.naming import named_weights  # noqa: E402
from ekg.stopping import Stopped  # noqa: E402

EXIT_NOT_FINITE = 1
EXIT_USER_ERROR = 2
EXIT_LOST_WORKER = 3
EXIT_STOPPED = 128  # plus the number of the signal, as shells count
HOW_TO_GO_ON = "the same command{} goes on where the run stopped."
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
LOST_WORKER = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)
MAX_MISMATCHES_SHOWN = 12


# ---------------------------------------------------------------- running a script

def run_script(main, parse_args):
    """Runs main(parse_args()) as a script and ends it with one line and an exit code where it fails.

    0: done; 1: a number became non-finite; 2: a user's mistake; 3: another worker was lost; 130, 143, 138: Ctrl-C, SIGTERM,
    SIGUSR1, after a checkpoint.
    """
    args = parse_args()
    # What is left of a cluster would wait for a process that is shutting down.
    end = functools.partial(_exit, at_once=getattr(args, "strategy", None) == "multi_worker")
    how_to_go_on = HOW_TO_GO_ON.format(" without --overwrite" if getattr(args, "overwrite", False) else "")
    _set_up_process()
    try:
        main(args)
    except (EkgError, OSError) as error:  # OSError: a full disk, say; its text names the file
        end(EXIT_USER_ERROR, f"error: {with_flags(str(error), vars(args))}")
    except tf.errors.ResourceExhaustedError:
        end(EXIT_USER_ERROR, "error: out of memory; lower --batch_size or the batch of the phase that ran, or raise "
                             "--accum.")
    except LOST_WORKER as error:
        if stopping.requested():  # the others were told to stop, too
            _exit_stopped(stopping.requested(), how_to_go_on)
        reason = " ".join(error.message.split())[:160]
        _exit(EXIT_LOST_WORKER, f"error: another worker ended or cannot be reached ({reason}); start all of them again with "
                                "the same command: the run goes on.", at_once=True)
    except FloatingPointError as error:
        end(EXIT_NOT_FINITE, f"error: {error}")
    except Stopped as stop:
        _exit_stopped(stop.signal, how_to_go_on)
    except KeyboardInterrupt:
        _exit(EXIT_STOPPED + signal.SIGINT, f"interrupted; {how_to_go_on}", at_once=True)


def with_flags(text, names):
    """Returns an error's text with a flag for each argument that it names between backticks, if one goes by that name."""
    return re.sub(r"`(\w+)`", lambda match: f"--{match[1]}" if match[1] in names else match[0], text)


def _set_up_process():
    """Sets loggers and signal handlers."""
    tf.get_logger().setLevel("ERROR")
    logging.getLogger("absl").setLevel(logging.WARNING)  # TensorFlow tells there how long a checkpoint's sharding took
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, stream=sys.stderr)
    for number in STOP_SIGNALS:
        signal.signal(number, stopping.handle_signal)


def _exit_stopped(number, how_to_go_on):
    _exit(EXIT_STOPPED + number, f"stopped by {signal.Signals(number).name}; {how_to_go_on}", at_once=True)


def _exit(code, text, at_once=False):
    print(text, file=sys.stderr)
    if at_once:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


# ---------------------------------------------------------------- pickles from strangers

# What plain data and arrays need. Whatever calls or imports otherwise (INST, OBJ, NEWOBJ, EXT, PERSID, ...) is refused.
_PLAIN_OPCODES = {
    "PROTO", "STOP", "FRAME", "MARK", "POP", "POP_MARK", "DUP", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET",
    "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1",
    "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "EMPTY_DICT", "DICT",
    "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2",
    "TUPLE3", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"}
_PLAIN_TYPES = (str, bytes, bytearray, int, float, bool, type(None), np.ndarray, np.generic)
_DTYPE_NAME = re.compile(r"[<>=|]?[biuf]\d{1,2}")  # NumPy writes no others for numeric arrays
_LATIN_1 = ("latin1", "latin-1")


class _Dtype:
    """Stands for a numpy.dtype while a pickle is read: numeric kinds only."""

    def __init__(self, name, *_):
        name = name.decode("latin-1") if isinstance(name, bytes) else name
        if not isinstance(name, str) or not _DTYPE_NAME.fullmatch(name):
            raise pickle.UnpicklingError(f"it holds an array of type {str(name)[:40]!r}, which is not numeric")
        self.dtype = np.dtype(name)

    def __setstate__(self, state):
        order = state[1].decode("latin-1") if isinstance(state[1], bytes) else state[1]
        if any(item is not None for item in state[2:5]) or order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError("it holds an array of a structured type")
        if order != "|":
            self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for a numpy.ndarray while a pickle is read."""

    def __init__(self, make):
        self._make, self.value = make, None

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, data = state
        self.value = self._make(data, dtype, shape, "F" if is_fortran else "C")


class _Call:
    """A function that a pickle may call. It takes no state, so a file cannot change it for the next one."""

    __slots__ = ("_function",)

    def __init__(self, function):
        self._function = function

    def __call__(self, *args):
        return self._function(*args)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it changes a function")


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain data and numeric arrays, which together take no more bytes than the file has."""

    def __init__(self, data, encoding):
        super().__init__(io.BytesIO(data), encoding=encoding)
        self._bytes_left = len(data)
        self._admitted = {
            ("numpy", "ndarray"): _Call(self._refuse), ("numpy", "dtype"): _Call(_Dtype),
            ("_codecs", "encode"): _Call(self._encode),  # how Python 3 writes bytes into protocol 2
            ("builtins", "bytes"): _Call(self._empty_bytes), ("__builtin__", "bytes"): _Call(self._empty_bytes)}
        for core in ("numpy.core", "numpy._core"):
            self._admitted |= {
                (f"{core}.multiarray", "_reconstruct"): _Call(lambda *_: _Array(self._make_array)),
                (f"{core}.multiarray", "scalar"): _Call(lambda dtype, data: self._make_array(data, dtype, (), "C")[()]),
                (f"{core}.numeric", "_frombuffer"): _Call(self._make_array)}

    def find_class(self, module, name):
        if (module, name) not in self._admitted:
            raise pickle.UnpicklingError(f"it asks for {f'{module}.{name}'[:60]!r}, and only plain data and numeric "
                                         "arrays are admitted")
        return self._admitted[module, name]

    def _make_array(self, data, dtype, shape, order):
        """Returns the array of these bytes; the declared shape must take exactly as many."""
        if isinstance(data, str):
            data = data.encode("latin-1")
        if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)) or order not in ("C", "F") or (
                not all(type(size) is int and size >= 0 for size in shape)):
            raise pickle.UnpicklingError("it holds a malformed array")
        if math.prod(shape) * dtype.dtype.itemsize != len(data):
            raise pickle.UnpicklingError(f"it holds an array of shape {str(shape)[:60]} with {len(data)} bytes")
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
    """Returns the value with arrays for their stand-ins; no more values than the file has bytes are visited."""
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
    """Pickles plain data and arrays, with a checksum behind the pickle."""
    files.write_sealed(path, pickle.dumps(value, protocol=4))


def load_pickle(path, encoding="ASCII"):
    """Returns the plain data of a pickle file, without ever running code from it.

    Args:
        path: the file.
        encoding: of strings that Python 2 wrote; "bytes" keeps them as bytes.

    Raises:
        EkgError: the file is missing, truncated, no pickle, or holds anything but dicts, lists, tuples, strings, bytes,
            numbers and numeric NumPy arrays.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise EkgError(f"{path}: cannot be read ({error.strerror}).") from None
    return parse_pickle(data, path, encoding)


def parse_pickle(data, source, encoding="ASCII"):
    """Returns the plain data of pickled bytes; `source` names them in errors. See load_pickle."""
    try:
        end = 0
        for opcode, argument, position in pickletools.genops(data):
            end = position + 1
            if opcode.name not in _PLAIN_OPCODES:
                raise pickle.UnpicklingError(f"it holds the instruction {opcode.name}, which plain data does not need")
            if opcode.name.endswith("PUT") and argument > len(data):
                raise pickle.UnpicklingError("its memo is larger than the file")
        if data[end:] not in (b"", files.seal(data[:end])):
            raise pickle.UnpicklingError("its checksum is wrong, or something is appended to it")
        return _resolve(_PlainUnpickler(data, encoding).load(), [len(data)])
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError,
            OverflowError, RecursionError, MemoryError) as error:
        raise EkgError(f"{source}: not a readable pickle of plain data ({' '.join(str(error).split())}); it may be "
                       "truncated, of another kind, or unsafe.") from None


# ---------------------------------------------------------------- parameter files

def _entries(model):
    """Yields (name in a parameter file, variable, shape in a parameter file) of every weight of a model."""
    for layer, name, variable in named_weights(model):
        (key, name), shape = name.rsplit("/", 1), tuple(variable.shape)
        if type(layer).__name__ == "Dense" and name == "bias":
            name, shape = "biases", (1, *shape)
        elif type(layer).__name__ == "BatchNormalization":
            shape = (1, 1, 1, *shape)
        yield f"{key.replace('-', '/')}/{name}:0", variable, shape


def model_params(model):
    """Returns {name: float32 array} of a model's weights, as a parameter file holds them.

    Names are layer/weight:0 with "/" for each "-" of a layer's name; kernels are [kh, kw, c_in, c_out], dense biases
    [1, classes], batch norm arrays [1, 1, 1, channels].
    """
    params = {name: np.asarray(variable.numpy()).reshape(shape) for name, variable, shape in _entries(model)}
    if len(params) != len(model.weights):
        raise EkgError(f"`model` {model.name!r} has {len(model.weights)} weights and {len(params)} names for them in a "
                       "parameter file; give its layers names that differ in more than \"-\" and \"/\".")
    return params


def save_params(model, path):
    """Pickles the parameters of a model, with a checksum behind the pickle."""
    save_pickle(path, model_params(model))


def load_params(path):
    """Returns the {name: float32 array} of a parameter file; entries like __version__ that hold no array are left out.

    Raises:
        EkgError: the file cannot be read, is no pickle of plain data, or no dict from names to numeric arrays.
    """
    value = load_pickle(path)
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise EkgError(f"{path}: not a parameter file: it holds no dict of named arrays.")
    params = {name: array for name, array in value.items()
              if isinstance(array, np.ndarray) or not name.startswith("__")}
    wrong = [name for name, array in params.items() if not isinstance(array, np.ndarray)]
    if wrong or not params:
        raise EkgError(f"{path}: not a parameter file: {wrong[:5] or 'it'} holds no array.")
    with np.errstate(over="ignore"):
        params = {name: array.astype(np.float32) for name, array in params.items()}
    broken = [name for name, array in params.items() if not np.isfinite(array).all()]
    if broken:
        raise EkgError(f"{path}: {broken[:5]} holds numbers that are not finite.")
    return params


def assign_params_(model, params, source):
    """Sets a model's weights from {name: array}; arrays of another shape but the right size are reshaped.

    Args:
        model: keras.Model, changed in place only if all fits.
        params: as load_params gives.
        source: what to call the parameters in an error.

    Raises:
        EkgError: entries are missing, surplus or of the wrong shape; all of them are named at once.
    """
    problems = find_mismatches(model, params)
    if problems:
        raise EkgError(mismatch(source, model.name, problems))
    for name, variable, _ in _entries(model):
        variable.assign(params[name].reshape(variable.shape).astype(variable.dtype))
    finish_layers_(model)


def find_mismatches(model, params, compare_shapes=True):
    """Returns a list of texts, one for every entry that is missing, surplus or, if asked, of another shape."""
    shapes = {name: shape for name, _, shape in _entries(model)}
    problems = [f"missing {name} {shape}" for name, shape in shapes.items() if name not in params]
    problems += [f"surplus {name} {params[name].shape}" for name in params if name not in shapes]
    if compare_shapes:
        problems += [f"{name} has shape {params[name].shape}, expected {shape}" for name, shape in shapes.items()
                     if name in params and not _same_shape(params[name].shape, shape)]
    return problems


def mismatch(source, arch, problems):
    """Returns the one line that names all (or the first dozen) problems between a parameter file and a network."""
    more = len(problems) - MAX_MISMATCHES_SHOWN
    shown = "; ".join(problems[:MAX_MISMATCHES_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    return f"{source}: does not fit {arch}, {len(problems)} entries differ: {shown}. Check `arch` and `dataset`."


def _same_shape(shape, expected):
    """Shapes agree but for axes of length one."""
    return [size for size in shape if size != 1] == [size for size in expected if size != 1]


class ParameterFiles:
    """Reads and writes networks as parameter files.

    The widths of a network are read off the shapes of its arrays.
    """

    def __init__(self, from_params):
        """
        Args:
            from_params: (params, source) -> keras.Model of whatever widths the parameters tell.
        """
        self._from_params = from_params

    def load(self, path):
        """Returns the keras.Model in a file; see load_params."""
        return self._from_params(load_params(path), path)

    def save(self, model, path):
        save_params(model, path)
