"""Networks in .keras and .h5 files from anywhere: looked through before anything of them is loaded.

Keras' safe mode was passed by several times (CVE-2025-1550, -8747, -9906, -12060), each time by
names in config.json. So the
names are read here first, as plain text: a file may speak of Keras' own layers and of nothing else.
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

from ekg.errors import EkgError, first_line
from ekg.io import h5_files

MOST_CONFIG_BYTES = 2**26
# Keras takes some milliseconds for each; the largest of keras.applications have a thousand
MOST_LAYERS = 5000
MOST_PACKED = 100  # how many times as large as in the file its weights may be; Keras packs nothing
MEMBERS = re.compile(
    r"(metadata\.json|config\.json|model\.weights\.h5|model\.weights\.npz|assets/[^.][^/]*(/[^.][^/]*)*)"
)
# Keras' own modules whose functions a layer may hold; others load files, or change how Keras loads
# them.
FUNCTIONS = re.compile(
    r"keras\.(src\.)?(activations|ops|initializers|regularizers|constraints|losses|metrics)(\.\w+)*"
)
LAMBDAS = ("Lambda", "__lambda__")


def load_keras(path):
    """Returns the keras.Model in a .keras or .h5 file, not compiled; nothing of the file's own is
    imported or run.

    Args:
        path: of the file.

    Raises:
        EkgError: there is no such file; it cannot be read; or it holds code, or layers that Keras
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
    limit = _WeightLimit(stored)  # a weight takes a byte at least
    try:
        with limit:
            return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # whatever Keras raises
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
            if foreign or len(set(names)) < len(names):
                raise EkgError(
                    f"`model` {path}: holds {foreign[0]!r}, which no .keras file does."
                    if foreign
                    else f"`model` {path}: holds a file twice."
                )
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
    """Returns the bytes of the weights in a .keras file, which is looked through without unpacking
    large arrays.
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
                _check_arrays(path, archive.read(entry))
            return entry.file_size
    except EkgError:
        raise
    except StopIteration:
        raise EkgError(
            f"`model` {path}: cannot be read as a .keras file (it holds no weights)."
        ) from None
    except Exception as error:  # whatever zipfile and HDF5 raise of a damaged file
        raise _unreadable(path, error) from None


def _check_arrays(path, data):
    """Raises EkgError if an array of an HDF5 file, given as its bytes, declares more than the file
    holds.
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
    """Lets Keras make no more weights than a limit while its block runs, so that a small file takes
    no large memory.

    Attributes:
        needed: numbers of the weights that layers of this thread asked for.
    """

    def __init__(self, most):
        self.needed, self._most, self._thread = 0, most, threading.get_ident()

    @property
    def is_exceeded(self):
        return self.needed > self._most

    def __enter__(self):
        _loading.acquire()  # one at a time, as it is the class that is changed
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
    """Raises EkgError if a configuration speaks of code, or of anything that is not Keras' own.

    Args:
        path: of the file, for the error.
        config: the JSON of config.json.
    """
    waiting = [
        {name: value for name, value in config.items() if name != "compile_config"}
        if isinstance(config, dict)
        else config
    ]
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
    kind, module, registered = (
        value["class_name"],
        value.get("module"),
        value.get("registered_name"),
    )
    own = value.get("config")
    name = own.get("name", kind) if isinstance(own, dict) else kind
    if kind in LAMBDAS or isinstance(own, dict) and own.get("class_name") in LAMBDAS:
        raise EkgError(
            f"`model` {path}: holds {name!r}, a {kind}, whose code comes with the file; prune it "
            "with ekg.prune in the program that made it."
        )
    if kind == "function":
        if not FUNCTIONS.fullmatch(str(module)):
            raise EkgError(
                f"`model` {path}: names the function {own!r} of {module!r}, which is none of "
                "Keras' activations and operations; prune it with ekg.prune in the program that "
                "has it."
            )
    elif (
        str(registered).count(">")
        or module is not None
        and not re.fullmatch(r"keras(\.\w+)*", str(module))
    ):
        raise EkgError(
            f"`model` {path}: holds {name!r}, a {registered or f'{module}.{kind}'}, which is not "
            "Keras' own; prune it with ekg.prune in the program that has it."
        )
