"""Networks in .h5 files, as Keras 2 wrote them: looked through before anything of them is loaded.

Keras' safe mode does not look at these files' members. So names are read here first, as plain text,
links that lead elsewhere are refused, and sizes are compared before anything of them is allocated.
"""

import json
import math
import threading

import h5py
import keras

from ekg.errors import EkgError, first_line

SUFFIXES = (".h5", ".hdf5")
MOST_CONFIG_BYTES = 2**26
MOST_MEMBERS = 100_000
MOST_EXPANSION = 100  # bytes that a member may take in memory for each that it takes in the file
FREE_BYTES = 2**16  # what is this small may be compressed as it likes
# Where Keras 2 looked a class up that is named without its module.
_MODULES = (keras.layers, keras.models, keras.initializers, keras.regularizers, keras.constraints)
_PLAIN = ("Functional", "Policy", "TensorShape")  # names of its own


def load_h5(path, check_config):
    """Returns the keras.Model in a .h5 file, not compiled; no code of the file's is run.

    Args:
        path: of the file.
        check_config: function (path, configuration) that raises EkgError if a configuration speaks
            of code, or of anything that is not Keras' own.

    Raises:
        EkgError: the file cannot be read; or it holds code, links, layers that Keras does not have,
            or another network's weights.
    """
    try:
        with h5py.File(path, "r") as file:
            _check_members(path, file)
            config = _read_config(path, file)
        check_config(path, config)
        _check_kinds(path, config)
        _try_sizes(path)
        return keras.models.load_model(path, compile=False)
    except EkgError:
        raise
    except Exception as error:  # whatever h5py and Keras raise
        raise EkgError(
            f"`model` {path}: cannot be read as a .h5 file of a whole network "
            f"({first_line(error)[:200]})."
        ) from None


def _check_members(path, file):
    """Raises EkgError for links, for data outside the file, and for members that would grow in
    memory."""
    waiting, seen = [file], 0
    while waiting:
        group = waiting.pop()
        for name in group:
            seen += 1
            place = f"{group.name.rstrip('/')}/{name}"
            if seen > MOST_MEMBERS:
                raise EkgError(
                    f"`model` {path}: has more than {MOST_MEMBERS:,} members, or members within "
                    "themselves."
                )
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise EkgError(
                    f"`model` {path}: {place} is a link to another place, which is not followed."
                )
            member = group[name]
            if isinstance(member, h5py.Group):
                waiting.append(member)
            elif isinstance(member, h5py.Dataset):
                _check_dataset(path, place, member)


def _check_dataset(path, place, member):
    if member.external or member.is_virtual:
        raise EkgError(
            f"`model` {path}: the data of {place} lie in another file, which is not read."
        )
    if member.shape is None or member.dtype.hasobject:
        raise EkgError(f"`model` {path}: {place} holds no plain numbers.")
    size = math.prod(member.shape) * member.dtype.itemsize
    if size > max(FREE_BYTES, MOST_EXPANSION * member.id.get_storage_size()):
        raise EkgError(
            f"`model` {path}: {place} would take {size:,} bytes of memory and has "
            f"{member.id.get_storage_size():,} in the file."
        )


def _read_config(path, file):
    """Returns the configuration in an open file as plain JSON."""
    if "model_config" not in file.attrs:
        raise EkgError(
            f"`model` {path}: holds weights alone; a whole network is needed, as model.save() "
            "writes it."
        )
    if file.attrs.get_id("model_config").get_storage_size() > MOST_CONFIG_BYTES:
        raise EkgError(
            f"`model` {path}: its configuration is larger than {MOST_CONFIG_BYTES:,} bytes."
        )
    text = file.attrs["model_config"]
    if len(text) > MOST_CONFIG_BYTES:
        raise EkgError(
            f"`model` {path}: its configuration is larger than {MOST_CONFIG_BYTES:,} bytes."
        )
    return json.loads(text)


def _check_kinds(path, config):
    """Raises EkgError for a class that is named without a module and is none of Keras' own."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            kind = value.get("class_name")
            is_named = (
                kind is not None and value.get("module") is None and not str(kind).startswith("__")
            )
            if (
                is_named
                and kind not in _PLAIN
                and not any(
                    isinstance(getattr(module, str(kind), None), type) for module in _MODULES
                )
            ):
                raise EkgError(
                    f"`model` {path}: holds a {kind}, which is no layer of Keras 3; build the "
                    "network again from such layers, and prune it with ekg.prune."
                )
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _try_sizes(path):
    """Raises what Keras does where configuration and weights do not fit; allocates no variable.

    In a thread of its own: Keras keeps a list of variables that wait for their values, and fills
    them later.
    """
    raised = []

    def load():
        try:
            with keras.StatelessScope(initialize_variables=False):
                keras.models.load_model(path, compile=False)
        except Exception as error:  # whatever Keras raises
            raised.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
