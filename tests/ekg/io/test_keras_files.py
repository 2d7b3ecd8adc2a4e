"""Files of networks from strangers: a corpus of what must not be loaded, and of what must."""

import io
import json
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import layers

from ekg.errors import EkgError
from ekg.io import keras_files
from ekg.io.keras_files import load_keras
from ekg.process import memory
from tests.helpers import networks
from tests.helpers.models import make_tiny_resnet


@pytest.fixture
def plain(tmp_path):
    """A .keras file of a small network."""
    path = tmp_path / "plain.keras"
    make_tiny_resnet().save(path)
    return path


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    """Keras' loader counts its calls."""
    calls, real = [], keras.models.load_model
    monkeypatch.setattr(
        keras_files.keras.models,
        "load_model",
        lambda *args, **kwargs: calls.append(args) or real(*args, **kwargs),
    )
    return calls


def rewritten(path, change=None, add=(), name="other.keras"):
    """Returns a copy of a .keras file with another configuration, and more members."""
    target = path.parent / name
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.namelist():
            data = old.read(member)
            if member == "config.json" and change is not None:
                config = json.loads(data)
                change(config)
                data = json.dumps(config).encode()
            new.writestr(member, data)
        for member, data in add:
            new.writestr(member, data)
    return target


def in_a_layer(value):
    """Returns a change that puts a value in the place of the first layer's initializer."""

    def change(config):
        layer = next(
            layer for layer in config["config"]["layers"] if layer["class_name"] == "Conv2D"
        )
        layer["config"]["kernel_initializer"] = value

    return change


def as_first_layer(value):
    def change(config):
        config["config"]["layers"][1] |= value

    return change


FUNCTION = {"class_name": "function", "registered_name": "function"}
HOSTILE = {
    "a Lambda": (
        as_first_layer({"module": "keras.layers", "class_name": "Lambda"}),
        "a Lambda, whose code comes with",
    ),
    "a lambda as a function": (
        in_a_layer({"class_name": "__lambda__", "config": {"value": "4wAA"}}),
        "whose code comes with",
    ),
    "a system call": (
        in_a_layer(FUNCTION | {"module": "os", "config": "system"}),
        "the function 'system' of 'os'",
    ),
    "a builtin": (
        in_a_layer(FUNCTION | {"module": "builtins", "config": "exec"}),
        "the function 'exec' of 'builtins'",
    ),
    "Keras' own loader": (
        in_a_layer(FUNCTION | {"module": "keras.models", "config": "load_model"}),
        "'load_model'",
    ),
    "Keras' switch": (
        in_a_layer(
            FUNCTION | {"module": "keras.config", "config": "enable_unsafe_deserialization"}
        ),
        "'enable_unsafe_deserialization'",
    ),
    "Keras' downloads": (
        in_a_layer(FUNCTION | {"module": "keras.utils", "config": "get_file"}),
        "'get_file'",
    ),
    "another module": (
        as_first_layer({"module": "subprocess", "class_name": "Popen"}),
        "a subprocess.Popen, which is not",
    ),
    "a module like Keras'": (
        as_first_layer({"module": "keras_evil.layers"}),
        "which is not Keras' own",
    ),
    "a class of a program": (
        as_first_layer({"module": None, "registered_name": "mine>Own"}),
        "a mine>Own, which is not",
    ),
    "a module that is no text": (as_first_layer({"module": ["os"]}), "which is not Keras' own"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_with_code_is_refused_before_anything_is_loaded(plain, nothing_is_loaded, case):
    change, message = HOSTILE[case]
    modules = set(sys.modules)
    with pytest.raises(EkgError, match=message) as error:
        load_keras(rewritten(plain, change))
    assert nothing_is_loaded == [] and not {"keras_evil", "keras_evil.layers"} & (
        set(sys.modules) - modules
    )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["../evil.py", "/etc/passwd", "assets/../../x", "code.py", "assets/.hidden"]
)
def test_members_that_no_such_file_has_are_refused(plain, nothing_is_loaded, name):
    with pytest.raises(EkgError, match="which no .keras file does"):
        load_keras(rewritten(plain, add=[(name, b"x")]))
    assert nothing_is_loaded == []


def test_a_configuration_of_enormous_size_is_not_read(plain, monkeypatch):
    monkeypatch.setattr(keras_files, "MOST_CONFIG_BYTES", 100)
    with pytest.raises(EkgError, match="its configuration is larger than 100 bytes"):
        load_keras(plain)


def widened(layer_class, name, value):
    """Returns a change of the first layer of a class."""

    def change(config):
        layer = next(
            layer for layer in config["config"]["layers"] if layer["class_name"] == layer_class
        )
        layer["config"][name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        widened("Dense", "units", 3 * 10**8),
        widened("Conv2D", "filters", 10**8),
        widened("Conv2D", "kernel_size", [10**5, 10**5]),
    ],
)
def test_weights_that_the_file_does_not_hold_are_not_made(plain, change):
    file, add_weight, before = (
        rewritten(plain, change),
        keras.Layer.add_weight,
        memory.resident_mib(),
    )
    with pytest.raises(
        EkgError,
        match=r"its layers have [\d,]+ weights or more, and the file holds [\d,]+ bytes of them",
    ):
        load_keras(file)
    assert keras.Layer.add_weight is add_weight and memory.resident_mib() - before < 100
    load_keras(plain)


def test_a_network_of_more_layers_than_anyone_builds_is_refused_before_they_are_built(
    plain, nothing_is_loaded
):
    def change(config):
        config["config"]["layers"] *= 20_000 // len(config["config"]["layers"])

    with pytest.raises(EkgError, match="has more than 5,000 layers"):
        load_keras(rewritten(plain, change))
    assert nothing_is_loaded == []


def repacked(path, make_weights, compression=zipfile.ZIP_STORED):
    """Returns a copy of a .keras file with other weights."""
    target = path.parent / "repacked.keras"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", compression) as new:
        for member in old.namelist():
            data = old.read(member)
            new.writestr(member, make_weights(data) if member.endswith(".h5") else data)
    return target


def test_weights_that_would_unpack_to_gigabytes_are_refused(plain, nothing_is_loaded):
    with pytest.raises(EkgError, match=r"its weights of [\d,]+ bytes would unpack to 20,000,000"):
        load_keras(repacked(plain, lambda _: bytes(20_000_000), zipfile.ZIP_DEFLATED))
    load_keras(
        repacked(plain, lambda data: data, zipfile.ZIP_DEFLATED)
    )  # packed, as by another program
    assert len(nothing_is_loaded) == 1


def test_an_array_that_declares_more_than_the_file_holds_is_refused(plain, nothing_is_loaded):
    h5py = pytest.importorskip("h5py")

    def declare(_):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file.create_dataset(
                "layers/dense/vars/0", (10**6, 10**6), "f4", chunks=(10, 10)
            )  # no number is written
        return buffer.getvalue()

    with pytest.raises(
        EkgError,
        match="its array 'layers/dense/vars/0' declares 1,000,000,000,000 numbers in a file of",
    ):
        load_keras(repacked(plain, declare))
    assert nothing_is_loaded == []


def make_zip(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("_", "."), data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a zip",
        make_zip(),
        make_zip(config_json=b"{"),
        make_zip(config_json=b"[1, 2]"),
        make_zip(config_json=b"[" * 100_000),
        make_zip(config_json=b"{}"),
        make_zip(config_json=b"\xff\xfe"),
    ],
    ids=range(8),
)
def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path, data):
    (tmp_path / "x.keras").write_bytes(data)
    with pytest.raises(EkgError, match="cannot be read as a .keras file") as error:
        load_keras(tmp_path / "x.keras")
    assert "\n" not in str(error.value)


def test_every_cut_and_many_flips_give_typed_errors_or_the_network(plain):
    data, rng = plain.read_bytes(), np.random.default_rng(0)
    for number in range(60):
        damaged = bytearray(data[: rng.integers(len(data))] if number % 3 == 0 else data)
        for _ in range(number % 3):
            damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        plain.write_bytes(bytes(damaged))
        try:
            load_keras(plain)
        except EkgError as error:
            assert "\n" not in str(error)


def test_other_formats_and_missing_files_are_reported(tmp_path):
    (tmp_path / "a.pb").write_bytes(b"x")
    with pytest.raises(EkgError, match="is no .keras or .h5 file; save the network"):
        load_keras(tmp_path / "a.pb")
    with pytest.raises(EkgError, match="no such file"):
        load_keras(tmp_path / "nothing.keras")


def nested():
    inner = make_tiny_resnet()
    entry = keras.Input((8, 8, 3))
    x = layers.Activation(keras.activations.swish)(layers.Rescaling(1 / 255)(entry))
    x = keras.ops.relu(
        layers.Conv2D(3, 3, padding="same", kernel_regularizer="l2", activation="gelu")(x)
    )
    model = keras.Model(entry, keras.ops.mean(inner(x[:, ::1, :, :3]), axis=0, keepdims=True))
    model.compile("adam", loss=lambda y_true, y_pred: 0.0)
    return model


@pytest.mark.parametrize(
    "make",
    [
        make_tiny_resnet,
        nested,
        networks.regnet,
        networks.unet,
        networks.shufflenet,
        lambda: networks.application("MobileNetV3Small"),
        lambda: networks.application("EfficientNetB0"),
    ],
)
def test_networks_of_keras_layers_are_read(tmp_path, make):
    model = make()
    model.save(tmp_path / "m.keras")
    again = load_keras(tmp_path / "m.keras")
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    assert all((old == new).all() for old, new in zip(model.get_weights(), again.get_weights()))
