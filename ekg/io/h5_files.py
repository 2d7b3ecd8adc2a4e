"""Safe loading of .h5 networks and weights: files are checked before Keras reads them.

Keras' safe mode does not check the members of these files. So class names are read first, as plain
text, links to other places are refused, and sizes are compared before memory is allocated.
"""

import json
import math
import os
import signal
import subprocess
import sys
import threading

import h5py
import keras

from ekg.errors import EkgError, escaped, first_line
from ekg.io import h5_probe

SUFFIXES = (".h5", ".hdf5")
MOST_CONFIG_BYTES = 2**26
MOST_MEMBERS = h5_probe.MOST_MEMBERS
PROBE_SECONDS, PROBED_PER_SECOND = 20, 2**24  # CPU time to read a file, and bytes in a second more
PROBE_MEMORY = 2**33  # address space, in bytes, of a process that reads a small file
MOST_EXPANSION = 100  # largest ratio of a member's size in memory to its size in the file
FREE_BYTES = 2**16  # members up to this size may have any compression ratio
# Modules in which Keras 2 looked up classes that are named without a module
_MODULES = (keras.layers, keras.models, keras.initializers, keras.regularizers, keras.constraints)
_PLAIN = ("Functional", "Policy", "TensorShape")  # further class names of Keras 2


def load_h5(path, check_config):
    """Returns the keras.Model in a .h5 file, not compiled, without running code from the file.

    Args:
        path: path of the file.
        check_config: function (path, configuration) that raises EkgError if a configuration
            contains code, or objects that are not part of Keras.

    Raises:
        EkgError: the file cannot be read; or it contains code, links, layers that Keras does not
            have, or weights of another network.
    """
    try:
        with open(path, "rb") as file:
            check_ends(path, file)
        with h5py.File(path, "r") as file:
            _check_members(path, file)
            config = _read_config(path, file)
        check_config(path, config)
        _check_kinds(path, config)
        _try_sizes(path)
        return keras.models.load_model(path, compile=False)
    except EkgError:
        raise
    except Exception as error:  # h5py and Keras may raise anything for a damaged file
        raise EkgError(
            f"`model` {path}: cannot be read as a .h5 file of a whole network "
            f"({first_line(error)[:200]})."
        ) from None


def load_weights_(model, path):
    """Gives a keras.Model the weights in a .weights.h5 file.

    Raises:
        EkgError: the file cannot be read; or it contains links, or weights of another network.
    """
    if not os.path.isfile(path):
        raise EkgError(f"`weights` {path}: there is no plain file of that name.")
    try:
        with open(path, "rb") as file:
            check_ends(path, file, "weights")
        with h5py.File(path, "r") as file:
            _check_members(path, file, "weights")
        model.load_weights(path)
    except EkgError:
        raise
    except Exception as error:  # h5py and Keras may raise anything for a damaged file
        raise EkgError(
            f"`weights` {path}: cannot be read as weights of {model.name!r} "
            f"({first_line(error)[:200]})."
        ) from None


def check_ends(path, source, argument="model"):
    """Raises EkgError if reading an HDF5 file never ends, crashes, or takes too much memory.

    Another process tries it, as HDF5's C code cannot be stopped in this one.

    Args:
        path: path of the file, for the error message.
        source: open binary file, or bytes.
        argument: name of the argument, for the error message.
    """
    is_bytes = isinstance(source, bytes)
    size = len(source) if is_bytes else os.fstat(source.fileno()).st_size
    seconds, memory = PROBE_SECONDS + size // PROBED_PER_SECOND, PROBE_MEMORY + 4 * size
    probed = subprocess.run(  # noqa: S603
        [sys.executable, "-P", h5_probe.__file__, str(seconds), str(memory)],
        **({"input": source} if is_bytes else {"stdin": source}),
        capture_output=True,
        check=False,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # threads take address space
    )
    problem = {
        h5_probe.EXIT_OUT_OF_MEMORY: f"takes more than {memory:,} bytes of memory",
        -signal.SIGXCPU: f"has not ended after {seconds} seconds",
    }.get(probed.returncode, "ends the program")
    if probed.returncode < 0 or probed.returncode == h5_probe.EXIT_OUT_OF_MEMORY:
        raise EkgError(f"`{argument}` {path}: damaged, reading it {problem}; put the file back.")


def _check_members(path, file, argument="model"):
    """Raises EkgError for links, external data, and members that are much larger in memory."""
    waiting = [file]
    num_members = 0
    while waiting:
        group = waiting.pop()
        for name in group:
            num_members += 1
            place = escaped(f"{group.name.rstrip('/')}/{name}")
            if num_members > MOST_MEMBERS:
                raise EkgError(
                    f"`{argument}` {path}: has more than {MOST_MEMBERS:,} members, or members "
                    "within themselves."
                )
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise EkgError(
                    f"`{argument}` {path}: {place} is a link to another place, which is not "
                    "followed."
                )
            member = group[name]
            if isinstance(member, h5py.Group):
                waiting.append(member)
            elif isinstance(member, h5py.Dataset):
                _check_dataset(path, place, member, argument)


def _check_dataset(path, place, member, argument):
    if member.external or member.is_virtual:
        raise EkgError(
            f"`{argument}` {path}: the data of {place} lie in another file, which is not read."
        )
    if member.shape is None or member.dtype.hasobject:
        raise EkgError(f"`{argument}` {path}: {place} holds no plain numbers.")
    size = math.prod(member.shape) * member.dtype.itemsize
    if size > max(FREE_BYTES, MOST_EXPANSION * member.id.get_storage_size()):
        raise EkgError(
            f"`{argument}` {path}: {place} would take {size:,} bytes of memory and has "
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
    """Raises EkgError for a class that is named without a module and is not part of Keras."""
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            kind = value.get("class_name")
            has_module = value.get("module") is not None
            if kind is not None and not has_module and not _is_keras_class(str(kind)):
                raise EkgError(
                    f"`model` {path}: holds a {escaped(str(kind))}, which is no layer of Keras 3; "
                    "build the network again from such layers, and prune it with ekg.prune."
                )
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _is_keras_class(kind):
    """Returns whether a class name is known to Keras; names like __tensor__ are internal ones."""
    if kind.startswith("__") or kind in _PLAIN:
        return True
    return any(isinstance(getattr(module, kind, None), type) for module in _MODULES)


def _try_sizes(path):
    """Raises Keras' error if weights do not fit the configuration, without allocating variables.

    It runs in a thread of its own, because Keras keeps a list per thread of variables without
    values, and would fill them later.
    """
    raised = []

    def load():
        try:
            with keras.StatelessScope(initialize_variables=False):
                keras.models.load_model(path, compile=False)
        except Exception as error:  # raised again in the calling thread
            raised.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
