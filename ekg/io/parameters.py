"""Parameter files: the weights of a network by name, pickled.

A name is layer/weight:0 with "/" for each "-" of the layer's name; kernels are as Keras has them,
[kh, kw, c_in, c_out] of a convolution; biases of dense layers are [1, units], and arrays of batch
norms [1, 1, 1, channels].
"""

import numpy as np

from ekg.errors import EkgError
from ekg.graph.calls import finish_layers_
from ekg.graph.naming import named_weights
from ekg.graph.registry import weights_of
from ekg.io.pickles import load_pickle, save_pickle

MAX_MISMATCHES_SHOWN = 12


def _entries(model):
    """Yields (name in a parameter file, variable, shape in a parameter file) of every weight of a
    model.
    """
    for layer, name, variable in named_weights(model):
        (key, name), shape = name.rsplit("/", 1), tuple(variable.shape)
        weight = weights_of(layer).get(id(variable))
        if weight is not None:
            name = weight.file_name or name
            shape = (*[1] * ((weight.file_rank or 0) - len(shape)), *shape)
        yield f"{key.replace('-', '/')}/{name}:0", variable, shape


def model_params(model):
    """Returns {name: float32 array} of a model's weights, as a parameter file holds them.

    Names are layer/weight:0 with "/" for each "-" of a layer's name; kernels are [kh, kw, c_in,
    c_out], dense biases [1, classes], batch norm arrays [1, 1, 1, channels].
    """
    params = {
        name: np.asarray(variable.numpy()).reshape(shape)
        for name, variable, shape in _entries(model)
    }
    if len(params) != len(model.weights):
        raise EkgError(
            f"`model` {model.name!r} has {len(model.weights)} weights and {len(params)} names for "
            f"them in a "
            'parameter file; give its layers names that differ in more than "-" and "/".'
        )
    return params


def save_params(model, path):
    """Pickles the parameters of a model, with a checksum behind the pickle.

    Raises:
        FloatingPointError: a weight is not finite.
    """
    params = model_params(model)
    broken = [name for name, array in params.items() if not np.isfinite(array).all()]
    if broken:
        raise FloatingPointError(
            f"{path}: {broken[:5]} became non-finite and are not written; lower the learning rate "
            "(`subset_learning_rate` before the search), or look for examples with huge numbers or "
            "NaN."
        )
    save_pickle(path, params)


def load_params(path):
    """Returns the {name: float32 array} of a parameter file; entries like __version__ that hold no
    array are left out.

    Raises:
        EkgError: the file cannot be read, is no pickle of plain data, or no dict from names to
            numeric arrays.
    """
    value = load_pickle(path)
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise EkgError(f"{path}: not a parameter file: it holds no dict of named arrays.")
    params = {
        name: array
        for name, array in value.items()
        if isinstance(array, np.ndarray) or not name.startswith("__")
    }
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
    """Sets a model's weights from {name: array}; arrays of another shape but the right size are
    reshaped.

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
    """Returns a list of texts, one for every entry that is missing, surplus or, if asked, of
    another shape.
    """
    shapes = {name: shape for name, _, shape in _entries(model)}
    problems = [f"missing {name} {shape}" for name, shape in shapes.items() if name not in params]
    problems += [f"surplus {name} {params[name].shape}" for name in params if name not in shapes]
    if compare_shapes:
        problems += [
            f"{name} has shape {params[name].shape}, expected {shape}"
            for name, shape in shapes.items()
            if name in params and not _same_shape(params[name].shape, shape)
        ]
    return problems


def mismatch(source, arch, problems):
    """Returns the one line that names all (or the first dozen) problems between a parameter file
    and a network.
    """
    more = len(problems) - MAX_MISMATCHES_SHOWN
    shown = "; ".join(problems[:MAX_MISMATCHES_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    return (
        f"{source}: does not fit {arch}, {len(problems)} entries differ: {shown}. Check `arch` "
        f"and `dataset`."
    )


def _same_shape(shape, expected):
    """Shapes agree but for axes of length one."""
    return [size for size in shape if size != 1] == [size for size in expected if size != 1]
