"""Networks in .h5 files from strangers: a corpus of what must not be loaded, and of what must."""

import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from ekg.errors import EkgError
from ekg.io import h5_files, keras_files
from ekg.io.keras_files import load_keras
from tests.helpers.models import make_tiny_resnet

# A network as Keras 2.0 wrote it: the keys, the classes and the nodes of that time.
KERAS_2 = {
    "class_name": "Model",
    "config": {
        "name": "model_1",
        "layers": [
            {
                "class_name": "InputLayer",
                "name": "input_1",
                "inbound_nodes": [],
                "config": {
                    "batch_input_shape": [None, 4, 4, 1],
                    "name": "input_1",
                    "dtype": "float32",
                    "sparse": False,
                },
            },
            {
                "class_name": "SeparableConv2D",
                "name": "sep",
                "inbound_nodes": [[["input_1", 0, 0, {}]]],
                "config": {
                    "name": "sep",
                    "trainable": True,
                    "filters": 3,
                    "kernel_size": [3, 3],
                    "strides": [1, 1],
                    "padding": "same",
                    "data_format": "channels_last",
                    "activation": "relu",
                    "use_bias": False,
                    "depth_multiplier": 1,
                    "depthwise_initializer": {
                        "class_name": "VarianceScaling",
                        "config": {
                            "scale": 1.0,
                            "mode": "fan_avg",
                            "distribution": "uniform",
                            "seed": None,
                        },
                    },
                    "pointwise_initializer": {"class_name": "Zeros", "config": {}},
                    "bias_initializer": {"class_name": "Zeros", "config": {}},
                    "depthwise_regularizer": None,
                    "pointwise_regularizer": {
                        "class_name": "L1L2",
                        "config": {"l1": 0.0, "l2": 0.01},
                    },
                    "bias_regularizer": None,
                    "activity_regularizer": None,
                    "depthwise_constraint": None,
                    "pointwise_constraint": None,
                    "bias_constraint": None,
                },
            },
            {
                "class_name": "GlobalAveragePooling2D",
                "name": "pool",
                "inbound_nodes": [[["sep", 0, 0, {}]]],
                "config": {"name": "pool", "trainable": True, "data_format": "channels_last"},
            },
        ],
        "input_layers": [["input_1", 0, 0]],
        "output_layers": [["pool", 0, 0]],
    },
}


@pytest.fixture
def former(tmp_path):
    """(path of a file in the format of Keras 2, its depthwise and its pointwise kernel)."""
    generator, path = np.random.default_rng(0), tmp_path / "former.hdf5"
    kernels = [
        generator.normal(size=shape).astype(np.float32) for shape in ((3, 3, 1, 1), (1, 1, 1, 3))
    ]
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(KERAS_2).encode()
        optimizer = {"optimizer_config": {"class_name": "Gone", "config": {"lr": 1}}}
        file.attrs["training_config"] = json.dumps(optimizer).encode()
        weights = file.create_group("model_weights")
        weights.attrs["layer_names"] = [b"input_1", b"sep", b"pool"]
        weights.attrs["backend"], weights.attrs["keras_version"] = b"tensorflow", b"2.0.5"
        for name in ("input_1", "sep", "pool"):
            weights.create_group(name).attrs["weight_names"] = (
                [] if name != "sep" else [b"sep/a:0", b"sep/b:0"]
            )
        for name, kernel in zip("ab", kernels):
            weights["sep"].create_dataset(f"sep/{name}:0", data=kernel)
    return path, kernels


def change_config(file, change):
    config = json.loads(file.attrs["model_config"])
    change(config["config"]["layers"][1])
    file.attrs["model_config"] = json.dumps(config)


def test_a_file_of_keras_2_is_read_though_its_optimizer_is_unknown(former):
    """By hand: a depthwise convolution of ones in the middle, and the pointwise factors, then ReLU
    and the mean."""
    path, (depthwise, pointwise) = former
    model = load_keras(path)
    image = np.zeros((1, 4, 4, 1), np.float32)
    image[0, 1, 1] = 1  # its responses are the whole depthwise kernel
    expected = np.maximum(depthwise.reshape(-1, 1) * pointwise.reshape(1, -1), 0).sum(axis=0) / 16
    np.testing.assert_allclose(model(image)[0], expected, rtol=1e-5)
    assert not model.compiled and [layer.name for layer in model.layers] == [
        "input_1",
        "sep",
        "pool",
    ]


@pytest.mark.parametrize("suffix", ["h5", "hdf5"])
def test_a_file_that_keras_3_wrote_is_read(tmp_path, suffix):
    model, path = make_tiny_resnet(), tmp_path / f"a.{suffix}"
    model.compile("adam", "mse")
    model.save(path)
    again = load_keras(path)
    assert all(
        (old == new).all()
        for old, new in zip(model.get_weights(), again.get_weights(), strict=True)
    )


def as_lambda(layer):
    layer |= {
        "class_name": "Lambda",
        "config": {"name": "sep", "function": ["4wAAAA==", None, None]},
    }


def of_a_program(layer):
    layer |= {"class_name": "Mine", "module": "mine", "registered_name": "mine>Mine"}


def external_link(file):
    file["model_weights"]["sep"]["further"] = h5py.ExternalLink("/etc/passwd", "/")


def soft_link(file):
    file["model_weights"]["sep"]["further"] = h5py.SoftLink("/model_weights/pool")


def own_member(file):
    file["model_weights"]["sep"]["again"] = file["model_weights"]


def external_data(file):
    del file["model_weights/sep/sep/b:0"]
    file["model_weights/sep"].create_dataset(
        "sep/b:0", (1, 1, 1, 3), "f4", external=[("/etc/passwd", 0, 12)]
    )


def virtual_data(file):
    del file["model_weights/sep/sep/b:0"]
    layout = h5py.VirtualLayout((1, 1, 1, 3), "f4")
    layout[:] = h5py.VirtualSource("another.h5", "a", (1, 1, 1, 3))
    file["model_weights/sep"].create_virtual_dataset("sep/b:0", layout)


def bomb(file):
    del file["model_weights/sep/sep/b:0"]
    file["model_weights/sep"].create_dataset(
        "sep/b:0", (2**40,), "f4", chunks=(2**20,), compression="gzip"
    )


def huge_layer(file):
    change_config(file, lambda layer: layer["config"].update(filters=10**11))


HOSTILE = {
    "a lambda": (
        lambda file: change_config(file, as_lambda),
        "a Lambda, whose code comes with the file",
    ),
    "a class of a program": (
        lambda file: change_config(file, of_a_program),
        "a mine>Mine, which is not Keras' own",
    ),
    "an unknown class": (
        lambda file: change_config(file, lambda layer: layer.update(class_name="TFOpLambda")),
        "holds a TFOpLambda, which is no layer of Keras 3",
    ),
    "a module for a class": (
        lambda file: change_config(file, lambda layer: layer.update(class_name="os")),
        "holds a os, which is no layer",
    ),
    "an external link": (external_link, "/model_weights/sep/further is a link to another place"),
    "a soft link": (soft_link, "/model_weights/sep/further is a link to another place"),
    "a group within itself": (own_member, "or members within themselves"),
    "external data": (external_data, "the data of /model_weights/sep/sep/b:0 lie in another file"),
    "virtual data": (virtual_data, "the data of /model_weights/sep/sep/b:0 lie in another file"),
    "a bomb": (bomb, "would take 4,398,046,511,104 bytes of memory and has 0 in the file"),
    "a layer larger than its weights": (
        huge_layer,
        "cannot be read as a .h5 file of a whole network",
    ),
    "weights alone": (lambda file: file.attrs.__delitem__("model_config"), "holds weights alone"),
    "no JSON": (
        lambda file: file.attrs.__setitem__("model_config", "{"),
        "cannot be read as a .h5 file",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(former, monkeypatch, case):
    change, message = HOSTILE[case]
    monkeypatch.setattr(h5_files, "MOST_MEMBERS", 1000)
    loaded, real = [], keras.models.load_model

    def load(*args, **kwargs):
        loaded.append(keras.src.backend.common.stateless_scope.in_stateless_scope())
        return real(*args, **kwargs)

    monkeypatch.setattr(keras_files.keras.models, "load_model", load)
    with h5py.File(former[0], "r+") as file:
        change(file)
    with pytest.raises(EkgError, match=message) as error:
        load_keras(former[0])
    assert "\n" not in str(error.value)
    assert loaded == (
        [True] if case == "a layer larger than its weights" else []
    )  # a trial that makes no variable


def test_every_cut_and_many_flips_give_typed_errors_or_the_network(former):
    path, rng = former[0], np.random.default_rng(0)
    data = path.read_bytes()
    for number in range(40):
        damaged = bytearray(data[: rng.integers(len(data))] if number % 3 == 0 else data)
        for _ in range(number % 3):
            damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(damaged))
        try:
            load_keras(path)
        except EkgError as error:
            assert "\n" not in str(error)


def test_nothing_waits_for_its_values_after_a_refusal(former):
    """Variables of a trial that was refused are not filled by the next one who works without
    state."""
    with h5py.File(former[0], "r+") as file:
        huge_layer(file)
    with pytest.raises(EkgError):
        load_keras(former[0])
    dense = layers.Dense(2)
    with keras.StatelessScope():  # it fills what waits as it ends
        dense.build((None, 3))
    assert dense.kernel.shape == (3, 2)


def endless(path):
    """Damages the heap of an HDF5 file: the first text in it is free space of no bytes."""
    data = bytearray(path.read_bytes())
    first = data.index(b"GCOL") + 16
    data[first : first + 2] = bytes(2)
    data[first + 8 : first + 16] = bytes(8)
    path.write_bytes(data)


def test_a_file_whose_reading_never_ends_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(h5_files, "PROBE_SECONDS", 1)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = "{}"
    endless(path)
    message = f"`model` {path}: damaged, reading it has not ended after 1 seconds; put the file"
    with pytest.raises(EkgError, match=message):
        load_keras(path)
    with pytest.raises(EkgError, match="`weights` .*has not ended after 1 seconds"):
        h5_files.load_weights_(make_tiny_resnet(), path)
    archive = tmp_path / "a.keras"
    make_tiny_resnet().save(archive)
    with zipfile.ZipFile(archive) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(archive, "w") as new:
        for name, data in members.items():
            new.writestr(name, path.read_bytes() if name.endswith(".h5") else data)
    with pytest.raises(EkgError, match="`model` .*a.keras: damaged, reading it has not ended"):
        load_keras(archive)


def test_weights_are_read_and_hostile_ones_are_refused(tmp_path):
    model, other = make_tiny_resnet(), make_tiny_resnet()
    path = tmp_path / "m.weights.h5"
    for weight in model.weights:
        weight.assign(weight + 1)
    model.save_weights(path)
    h5_files.load_weights_(other, path)
    for ours, theirs in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with h5py.File(path, "r+") as file:
        file["further"] = h5py.ExternalLink("/etc/passwd", "/")
    with pytest.raises(EkgError, match=f"`weights` {path}: /further is a link to another place"):
        h5_files.load_weights_(other, path)


@pytest.mark.parametrize("name", ["k\udc95ras", "ke\nras", "ke\x1b[31mras"])
def test_unprintable_names_are_escaped(former, name):
    def change(layer):
        layer |= {"class_name": "Mine", "module": name, "registered_name": None}

    with h5py.File(former[0], "r+") as file:
        change_config(file, change)
    with pytest.raises(EkgError, match="which is not Keras' own") as error:
        load_keras(former[0])
    assert str(error.value).isprintable() and "ras.Mine" in str(error.value)
