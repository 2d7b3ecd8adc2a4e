"""Networks in .keras and .h5 files from anywhere: looked through before anything of them is loaded.

Keras' safe mode was passed by several times (CVE-2025-1550, -8747, -9906, -12060), each time by names in config.json. So the
names are read here first, as plain text: a file may speak of Keras' own layers and of nothing else.
"""

import json
import os
import re
import zipfile

import keras

from ekg import h5_files
from ekg.errors import EkgError, first_line

MOST_CONFIG_BYTES = 2**26
MEMBERS = re.compile(r"(metadata\.json|config\.json|model\.weights\.h5|model\.weights\.npz|assets/[^.][^/]*(/[^.][^/]*)*)")
# Keras' own modules whose functions a layer may hold; others load files, or change how Keras loads them.
FUNCTIONS = re.compile(r"keras\.(src\.)?(activations|ops|initializers|regularizers|constraints|losses|metrics)(\.\w+)*")
LAMBDAS = ("Lambda", "__lambda__")


def load_keras(path):
    """Returns the keras.Model in a .keras or .h5 file, not compiled; nothing of the file's own is imported or run.

    Args:
        path: of the file.

    Raises:
        EkgError: there is no such file; it cannot be read; or it holds code, or layers that Keras does not have.
    """
    if not os.path.isfile(path):
        raise EkgError(f"`model` {path}: no such file.")
    if str(path).endswith(h5_files.SUFFIXES):
        return h5_files.load_h5(path, check_config)
    if not str(path).endswith(".keras"):
        raise EkgError(f"`model` {path}: is no .keras or .h5 file; save the network with model.save(\"name.keras\").")
    check_config(path, _read_config(path))
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # whatever Keras raises
        raise _unreadable(path, error) from None


def _unreadable(path, error):
    return EkgError(f"`model` {path}: cannot be read as a .keras file ({first_line(error)[:200]}).")


def _read_config(path):
    """Returns the configuration in a .keras file as plain JSON."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            foreign = [name for name in names if not name.endswith("/") and not MEMBERS.fullmatch(name)]
            if foreign or len(set(names)) < len(names):
                raise EkgError(f"`model` {path}: holds {foreign[0]!r}, which no .keras file does." if foreign else
                               f"`model` {path}: holds a file twice.")
            if archive.getinfo("config.json").file_size > MOST_CONFIG_BYTES:
                raise EkgError(f"`model` {path}: its configuration is larger than {MOST_CONFIG_BYTES:,} bytes.")
            return json.loads(archive.read("config.json"))
    except EkgError:
        raise
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, RecursionError, EOFError, NotImplementedError,
            RuntimeError) as error:
        raise _unreadable(path, error) from None


def check_config(path, config):
    """Raises EkgError if a configuration speaks of code, or of anything that is not Keras' own.

    Args:
        path: of the file, for the error.
        config: the JSON of config.json.
    """
    waiting = [{name: value for name, value in config.items() if name != "compile_config"} if isinstance(config, dict)
               else config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                _check_object(path, value)
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _check_object(path, value):
    kind, module, registered = value["class_name"], value.get("module"), value.get("registered_name")
    own = value.get("config")
    name = own.get("name", kind) if isinstance(own, dict) else kind
    if kind in LAMBDAS or isinstance(own, dict) and own.get("class_name") in LAMBDAS:
        raise EkgError(f"`model` {path}: holds {name!r}, a {kind}, whose code comes with the file; prune it with ekg.prune "
                       "in the program that made it.")
    if kind == "function":
        if not FUNCTIONS.fullmatch(str(module)):
            raise EkgError(f"`model` {path}: names the function {own!r} of {module!r}, which is none of Keras' activations "
                           "and operations; prune it with ekg.prune in the program that has it.")
    elif str(registered).count(">") or module is not None and not re.fullmatch(r"keras(\.\w+)*", str(module)):
        raise EkgError(f"`model` {path}: holds {name!r}, a {registered or f'{module}.{kind}'}, which is not Keras' own; "
                       "prune it with ekg.prune in the program that has it.")
