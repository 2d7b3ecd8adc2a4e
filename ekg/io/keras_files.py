"""Safe loading of .keras and .h5 networks from any source: files are checked before they load.

Keras' safe mode has been bypassed several times (CVE-2025-1550, -8747, -9906, -12060), each time by
names in config.json. So the names are read first, as plain text: a file may refer to Keras' own
layers and to nothing else.
"""

import functools
import io
import json
import math
import os
import re
import threading
import zipfile

import keras

from ekg.errors import EkgError, escaped, first_line
from ekg.io import h5_files

MOST_CONFIG_BYTES = 2**26
# Keras needs some milliseconds per layer; the largest of keras.applications have a thousand
MOST_LAYERS = 5000
MOST_PACKED = 100  # largest compression ratio of the weights; Keras does not compress them
MEMBERS = re.compile(
    r"(metadata\.json|config\.json|model\.weights\.h5|model\.weights\.npz|assets/[^.][^/]*(/[^.][^/]*)*)"
)
# Modules of Keras whose functions a layer may use; other modules load files, or change how Keras
# loads them.
FUNCTIONS = re.compile(
    r"keras\.(src\.)?(activations|ops|initializers|regularizers|constraints|losses|metrics)(\.\w+)*"
)
LAMBDAS = ("Lambda", "__lambda__")


def load_keras(path):
    """Returns the keras.Model in a .keras or .h5 file, not compiled, without running file content.

    Args:
        path: path of the file.

    Raises:
        EkgError: the file is missing or cannot be read; or it contains code, or layers that Keras
            does not have.
    """
    if not os.path.isfile(path):
        raise EkgError(f"`model` {path}: no such file.")
    if str(path).endswith(h5_files.SUFFIXES):
        return h5_files.load_h5(path, check_config)
    if not str(path).endswith(".keras"):
        raise EkgError(
            f"`model` {path}: is no .keras or .h5 file; save the network with "
            'model.save("name.keras").'
        )
    config = _read_config(path)
    check_config(path, config)
    stored = _stored_bytes(path)
    limit = _WeightLimit(stored)  # a weight takes at least one byte
    try:
        with limit:
            return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras may raise anything for a damaged file
        if limit.is_exceeded:
            raise EkgError(
                f"`model` {path}: its layers have {limit.needed:,} weights or more, and the file "
                f"holds {stored:,} bytes of them; save the network again."
            ) from None
        raise _unreadable(path, error) from None


def _unreadable(path, error):
    return EkgError(f"`model` {path}: cannot be read as a .keras file ({first_line(error)[:200]}).")


def _read_config(path):
    """Returns the configuration in a .keras file as plain JSON."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            foreign = [
                name for name in names if not name.endswith("/") and not MEMBERS.fullmatch(name)
            ]
            if foreign:
                raise EkgError(f"`model` {path}: holds {foreign[0]!r}, which no .keras file does.")
            if len(set(names)) < len(names):
                raise EkgError(f"`model` {path}: holds a file twice.")
            if archive.getinfo("config.json").file_size > MOST_CONFIG_BYTES:
                raise EkgError(
                    f"`model` {path}: its configuration is larger than {MOST_CONFIG_BYTES:,} bytes."
                )
            return json.loads(archive.read("config.json"))
    except EkgError:
        raise
    except (
        OSError,
        zipfile.BadZipFile,
        KeyError,
        ValueError,
        RecursionError,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise _unreadable(path, error) from None


def _stored_bytes(path):
    """Returns the size in bytes of the weights in a .keras file, after checking their arrays.

    Large arrays are not unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next(
                entry for entry in archive.infolist() if entry.filename.startswith("model.weights.")
            )
            if entry.file_size > MOST_PACKED * entry.compress_size + 2**20:
                raise EkgError(
                    f"`model` {path}: its weights of {entry.compress_size:,} bytes would unpack "
                    f"to {entry.file_size:,}; save the network again."
                )
            if entry.filename.endswith(".h5"):
                data = archive.read(entry)
                h5_files.check_ends(path, data)
                _check_arrays(path, data)
            return entry.file_size
    except EkgError:
        raise
    except StopIteration:
        raise EkgError(
            f"`model` {path}: cannot be read as a .keras file (it holds no weights)."
        ) from None
    except Exception as error:  # zipfile and HDF5 may raise anything for a damaged file
        raise _unreadable(path, error) from None


def _check_arrays(path, data):
    """Raises EkgError if an array declares more bytes than its HDF5 file has.

    Args:
        path: path of the .keras file, for the error message.
        data: contents of the HDF5 file, bytes.
    """
    import h5py  # comes with Keras

    def check(name, node):
        if isinstance(node, h5py.Dataset) and node.size * node.dtype.itemsize > len(data):
            raise EkgError(
                f"`model` {path}: its array {name!r} declares {node.size:,} numbers in a file of "
                f"{len(data):,} bytes; save the network again."
            )

    with h5py.File(io.BytesIO(data), "r") as weights:
        weights.visititems(check)


class _WeightLimit:
    """Limits how many weights Keras creates in its block, so that small files use little memory.

    Attributes:
        needed: number of weights that layers of this thread have requested so far.
    """

    def __init__(self, limit):
        self.needed = 0
        self._limit = limit
        self._thread = threading.get_ident()

    @property
    def is_exceeded(self):
        """Whether more weights were requested than the limit allows."""
        return self.needed > self._limit

    def __enter__(self):
        _loading.acquire()  # one loader at a time, since the class keras.Layer is patched
        self._add_weight = keras.Layer.add_weight

        @functools.wraps(self._add_weight)
        def add_weight(layer, shape=None, *args, **options):
            if threading.get_ident() == self._thread:
                self.needed += math.prod((shape,) if isinstance(shape, int) else shape or ())
                if self.is_exceeded:
                    raise MemoryError
            return self._add_weight(layer, shape, *args, **options)

        keras.Layer.add_weight = add_weight
        return self

    def __exit__(self, *_):
        keras.Layer.add_weight = self._add_weight
        _loading.release()


_loading = threading.Lock()


def check_config(path, config):
    """Raises EkgError if a configuration contains code, or objects that are not part of Keras.

    Args:
        path: path of the file, for the error message.
        config: parsed contents of config.json.
    """
    if isinstance(config, dict):
        config = {name: value for name, value in config.items() if name != "compile_config"}
    waiting = [config]
    num_layers = 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                _check_object(path, value)
            num_layers += "inbound_nodes" in value or "build_config" in value
            if num_layers > MOST_LAYERS:
                raise EkgError(
                    f"`model` {path}: has more than {MOST_LAYERS:,} layers; prune it with "
                    "ekg.prune in the program that made it."
                )
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _check_object(path, value):
    """Raises EkgError unless a serialised object, given as dict, is part of Keras."""
    kind = escaped(str(value["class_name"]))
    module = value.get("module")
    registered = value.get("registered_name")
    config = value.get("config")
    name = config.get("name", kind) if isinstance(config, dict) else kind
    if kind in LAMBDAS or isinstance(config, dict) and config.get("class_name") in LAMBDAS:
        raise EkgError(
            f"`model` {path}: holds {name!r}, a {kind}, whose code comes with the file; prune it "
            "with ekg.prune in the program that made it."
        )
    if kind == "function":
        if not FUNCTIONS.fullmatch(str(module)):
            raise EkgError(
                f"`model` {path}: names the function {config!r} of {module!r}, which is none of "
                "Keras' activations and operations; prune it with ekg.prune in the program that "
                "has it."
            )
        return
    is_keras_module = module is None or re.fullmatch(r"keras(\.\w+)*", str(module))
    if ">" in str(registered) or not is_keras_module:
        full_name = escaped(str(registered or f"{module}.{kind}"))
        raise EkgError(
            f"`model` {path}: holds {name!r}, a {full_name}, which is not Keras' own; prune it "
            "with ekg.prune in the program that has it."
        )
