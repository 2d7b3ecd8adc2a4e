"""What a value that a user gave is, in a text that tells it from another one: functions by their
code and not by name.

Of a function code, constants, defaults, closure, attributes and the global values that it reads
are compared, also those that it reads from modules of the user's own; of an object its class and
its attributes. Installed packages go by name and version. What holds none of this, such as a random
generator, cannot be compared: its place is named, so that a run that resumes says so.
"""

import contextlib
import dataclasses
import dis
import functools
import hashlib
import logging
import sys
import types
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ekg.graph.calls import Graph
from ekg.graph.steps import Ref

DIGITS = 16  # of a hash that are shown
_PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(Ellipsis),
    range,
    np.dtype,
    tf.DType,
)
_INSTALLED = ("site-packages", "dist-packages")
_MADE_BY_PYTHON = 1 << 9  # Py_TPFLAGS_HEAPTYPE, the flag of classes that are no part of C code
_OF_C = (
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
)
_OF_CLASSES = frozenset(
    (
        "__dict__",
        "__weakref__",
        "__module__",
        "__doc__",
        "__slots__",
        "__firstlineno__",
        "__static_attributes__",
        "__annotations__",
        "__abstractmethods__",
        "_abc_impl",
        "__dataclass_fields__",
        "__dataclass_params__",
    )
)


@dataclasses.dataclass(frozen=True)
class Described:
    """A value as a text.

    Attributes:
        text: equal for values that are the same, as far as that can be known.
        unknown: tuple of what of it cannot be compared, in words.
    """

    text: str
    unknown: tuple[str, ...] = ()


def describe(value):
    """Returns the Described of what a user gave: plain values as they are written, others as name
    and hash.
    """
    describer = _Describer()
    content = describer.of(value, "")
    if isinstance(value, _PLAIN):
        return Described(str(value))
    if (
        dataclasses.is_dataclass(value)
        and not isinstance(value, type)
        and _is_published(type(value))
    ):
        parts = [
            f"{field.name}={describe(getattr(value, field.name)).text}" for field in _shown(value)
        ]
        return Described(f"{type(value).__name__}({', '.join(parts)})", tuple(describer.unknown))
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return Described(f"{name} {_hash(content)[:DIGITS]}", tuple(describer.unknown))


def describe_network(model):
    """Returns a hash of what a network computes besides its weights: its calls, and what its layers
    are set to.

    Names that Keras gives by counting are left out.
    """
    describer, contents = _Describer(), []
    for call in Graph(model).calls:
        arguments = keras.tree.map_structure(
            lambda value: (
                ("tensor", value.number) if isinstance(value, Ref) else describer.of(value, "")
            ),
            (list(call.args), dict(call.kwargs)),
        )
        contents.append((describer.layer(call.layer, call.key), arguments, call.outputs))
    return _hash(contents)


def _hash(content):
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _shown(value):
    """Returns the fields of a dataclass that are part of what it is: a file to read from is
    none.
    """
    return [field for field in dataclasses.fields(value) if field.repr]


def _is_library(module):
    """Returns whether a module belongs to Python, to this package, or to what is installed beside
    it.
    """
    root = (module or "").partition(".")[0]
    if root == "ekg" or root in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(root), "__file__", None)
    return file is not None and any(parent.name in _INSTALLED for parent in Path(file).parents)


def _is_published(value):
    """Returns whether a function or class is a package's own, found there under its name.

    What a notebook or exec() defines may say that it is of Python's builtins, where it is not
    found.
    """
    found = sys.modules.get(value.__module__ or "")
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value and _is_library(value.__module__)


def _library_name(value):
    """Returns what identifies a function or class of a package: its name and the package's
    version.
    """
    root = value.__module__.partition(".")[0] if value.__module__ else "builtins"
    return value.__module__, value.__qualname__, getattr(sys.modules.get(root), "__version__", "")


class _Describer:
    """Turns values into nested tuples of plain values, and notes what it cannot."""

    def __init__(self):
        self.unknown, self._known, self._open = [], {}, []

    def of(self, value, place):
        """Returns the content of a value: itself where it is plain, else a hash.

        Args:
            value: anything.
            place: where it was found, in words; empty for what a user gave itself.
        """
        if isinstance(value, _PLAIN):
            return type(value).__name__, repr(value)
        if id(value) in self._open:  # it holds itself
            return "again", len(self._open) - self._open.index(id(value))
        if id(value) not in self._known:
            self._open.append(id(value))
            try:
                content = _hash(self._composed(value, place))
            except Exception:  # looking at an object of the user's own may raise anything
                content = _hash(self._note(value, place))
            self._open.pop()
            self._known[id(value)] = content, value  # kept, so that no other gets its identity
        return self._known[id(value)][0]

    def _composed(self, value, place):
        if (
            isinstance(value, (np.ndarray, np.generic))
            or tf.is_tensor(value)
            or isinstance(value, keras.Variable)
        ):
            return self._array(value, place)
        if isinstance(value, dict):
            return "dict", [
                (self.of(key, place), self.of(item, place)) for key, item in value.items()
            ]
        if isinstance(value, (list, tuple)):
            return type(value).__name__, [self.of(item, place) for item in value]
        if isinstance(value, (set, frozenset)):
            return "set", sorted(repr(self.of(item, place)) for item in value)
        if isinstance(value, types.ModuleType) and not _is_library(value.__name__):
            return self._note(value, place)  # which of it is read, its reader does not say
        if isinstance(value, (types.ModuleType, logging.Logger)):
            name = getattr(value, "__name__", "logger")
            return "module", name, getattr(value, "__version__", "")
        if isinstance(value, type):
            return self._class(value)
        return self._callable(value, place) or self._object(value, place)

    def _array(self, value, place):
        if not isinstance(value, (np.ndarray, np.generic)) and not hasattr(value, "numpy"):
            return self._note(value, place)  # a tensor of a graph, which holds no numbers
        array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
        if array.dtype == object:
            return "objects", array.shape, [self.of(item, place) for item in array.reshape(-1)]
        return (
            str(array.dtype),
            array.shape,
            hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest(),
        )

    def _callable(self, value, place):
        """Returns the content of a function in any of its forms, or None for what is none."""
        if isinstance(value, tf.types.experimental.PolymorphicFunction):
            return "function", self.of(value.python_function, place)
        if isinstance(value, functools.partial):
            return (
                "partial",
                self.of(value.func, place),
                self.of([*value.args], place),
                self.of(value.keywords, place),
            )
        if isinstance(value, types.MethodType):
            return "method", self.of(value.__func__, place), self.of(value.__self__, place)
        if isinstance(value, (staticmethod, classmethod)):
            return type(value).__name__, self.of(value.__func__, place)
        if isinstance(value, property):
            return "property", [
                self.of(part, place) for part in (value.fget, value.fset, value.fdel)
            ]
        if isinstance(value, _OF_C):
            return "builtin", value.__name__
        if isinstance(
            value,
            (
                types.BuiltinFunctionType,
                types.MethodWrapperType,
                types.WrapperDescriptorType,
                np.ufunc,
            ),
        ):
            owner = getattr(value, "__self__", None)
            return (
                "builtin",
                value.__name__,
                None if isinstance(owner, types.ModuleType) else self.of(owner, place),
            )
        if isinstance(value, types.FunctionType):
            return self._function(value)
        wrapped = getattr(value, "__wrapped__", None)  # as functools.cache makes
        return (
            None if wrapped is None else ("wrapped", type(value).__name__, self.of(wrapped, place))
        )

    def _function(self, function):
        """Code, constants, defaults, closure, and the values of the global names that the code
        reads.
        """
        if _is_published(function):
            return "library", _library_name(function)
        place = f"in {function.__qualname__}"
        held = []
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # one that holds nothing yet
                held.append(self.of(cell.cell_contents, place))
        if _is_library(
            function.__globals__.get("__name__", "")
        ):  # a package made it of what it holds
            return "library", _library_name(function), held
        code, known = function.__code__, function.__globals__
        read = _names(code)
        values = [
            (name, self._read(known[name], read, place))
            for name in sorted(_arguments_of(code, ("LOAD_GLOBAL", "LOAD_NAME")))
            if name in known
        ]
        for name in sorted(_arguments_of(code, ("IMPORT_NAME",))):
            if not _is_library(name):
                values.append((name, self._read(sys.modules.get(name), read, place)))
        content = (
            "function",
            _code(code),
            self.of(function.__defaults__, place),
            self.of(function.__kwdefaults__, place),
            held,
            values,
        )
        return (*content, self.of(vars(function), place)) if vars(function) else content

    def _read(self, value, names, place, outer=()):
        """Returns the content of a value that a function reads by a name; of a module of the user's
        own, that of what the function may read from it.

        Args:
            value: the value.
            names: set of all names in the function's code.
            place: see of().
            outer: modules that the value was found in.
        """
        is_module = isinstance(value, types.ModuleType)
        if not is_module or _is_library(value.__name__) or value in outer:
            return self.of(value, place)
        found = sorted(names & set(vars(value)))
        return [
            (name, self._read(vars(value)[name], names, place, (*outer, value))) for name in found
        ]

    def _class(self, kind):
        if _is_published(kind) or not kind.__flags__ & _MADE_BY_PYTHON:
            return "library", _library_name(kind)
        place = f"in {kind.__qualname__}"
        return (
            "class",
            [self.of(base, place) for base in kind.__bases__],
            [
                (name, self.of(value, place))
                for name, value in sorted(vars(kind).items())
                if name not in _OF_CLASSES
            ],
        )

    def _object(self, value, place):
        if isinstance(value, keras.Model) or isinstance(value, keras.Operation):
            weights = [self._array(weight, place) for weight in getattr(value, "weights", ())]
            return "layer", self.layer(value, place), weights
        kind = self.of(type(value), place)
        if isinstance(value, keras.optimizers.Optimizer) or (
            hasattr(value, "get_config") and type(value).__module__.startswith("keras.")
        ):
            pattern = getattr(value, "_exclude_from_weight_decay_pattern", None)  # of an optimizer
            return (
                kind,
                self.of(_without_names(value.get_config()), place),
                getattr(pattern, "pattern", None),
            )
        if dataclasses.is_dataclass(value) and _is_published(type(value)):
            return kind, [
                (field.name, self.of(getattr(value, field.name), place)) for field in _shown(value)
            ]
        slots = [
            name for base in type(value).__mro__ for name in _slots(base) if hasattr(value, name)
        ]
        if not hasattr(value, "__dict__") and not slots or _is_published(type(value)):
            text = repr(value)
            return (kind, text) if _is_telling(text) else self._note(value, place)
        attributes = {name: getattr(value, name) for name in slots} | vars(value)
        return kind, [
            (name, self.of(item, f"in {type(value).__qualname__}"))
            for name, item in sorted(attributes.items())
        ]

    def layer(self, layer, place):
        """Returns the content of a layer or other operation, but for its weights and its name."""
        kind = self._class(type(layer))
        if isinstance(layer, keras.layers.Lambda):
            return kind, self.of(layer.function, place), self.of(layer.arguments, place)
        own = self._own_parts(layer, place)  # which a configuration holds by name alone
        if own:
            kind = kind, own
        try:
            return kind, self.of(_without_names(layer.get_config()), place)
        except Exception:  # a class of the user's own need not know its configuration
            plain = {
                name: value
                for name, value in vars(layer).items()
                if isinstance(value, _PLAIN) and not name.startswith("_") and name != "name"
            }
            return kind, self.of(plain, place)

    def _own_parts(self, layer, place):
        """Returns the content of functions and layers of the user's own in a layer, such as an
        activation, and in the layers inside it.
        """
        inside = layer._flatten_layers(False) if isinstance(layer, keras.layers.Layer) else []
        contents = [self._class(type(part)) for part in inside if not _is_published(type(part))]
        for part in (layer, *inside):
            for name, value in sorted(vars(part).items()):
                if not name.startswith("_") and _is_own_function(value):
                    contents.append((name, self.of(value, place)))
        return contents

    def _note(self, value, place):
        """Takes a value for the same as any other of its kind."""
        self.unknown.append(" ".join(filter(None, (type(value).__qualname__, place))))
        return "unknown", type(value).__qualname__


def _is_own_function(value):
    """Returns whether a value can be called and is of the user's own, but not a layer or class."""
    if isinstance(value, types.FunctionType):
        return not _is_library(value.__globals__.get("__name__", ""))
    if isinstance(value, functools.partial):
        return True
    is_function = callable(value) and not isinstance(value, (keras.Operation, type))
    return is_function and not _is_published(type(value))


def _is_telling(text):
    """Returns whether the repr of a value is all that there is to it, and not its place in memory,
    or cut short.
    """
    return " at 0x" not in text and "..." not in text and "<" not in text


def _slots(kind):
    slots = vars(kind).get("__slots__", ())
    return (
        [slots]
        if isinstance(slots, str)
        else [name for name in slots if name not in ("__dict__", "__weakref__")]
    )


def _code(code):
    """Returns what a code object computes, without the places it was written at."""
    constants = [
        _code(value)
        if isinstance(value, types.CodeType)
        else (
            type(value).__name__,
            sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value),
        )
        for value in code.co_consts
    ]
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return (
        code.co_code,
        constants,
        code.co_names,
        arguments,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        code.co_flags,
        getattr(code, "co_exceptiontable", b""),
    )


def _arguments_of(code, operations):
    """Returns the set of the names that a code object, or one inside it, uses in some operations.

    Args:
        code: code object.
        operations: names of the operations, as dis has them.
    """
    names = {step.argval for step in dis.get_instructions(code) if step.opname in operations}
    return names.union(*(_arguments_of(inner, operations) for inner in _inner(code)))


def _names(code):
    """Returns the set of all names of globals and attributes in a code object or one inside it."""
    return set(code.co_names).union(*map(_names, _inner(code)))


def _inner(code):
    return [value for value in code.co_consts if isinstance(value, types.CodeType)]


def _without_names(config):
    """Returns a configuration without the names of layers, which Keras gives by counting."""
    if isinstance(config, dict):
        if str(config.get("class_name")).endswith("DTypePolicy"):
            return config
        return {
            key: _without_names(value)
            for key, value in config.items()
            if key not in ("name", "registered_name")
        }
    return (
        [_without_names(item) for item in config] if isinstance(config, (list, tuple)) else config
    )
