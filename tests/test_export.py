"""export.py: what it takes, what it prints, and how it refuses."""

import keras
import numpy as np
import pytest
from keras import layers

import dataloader
import export
import nets
import prune
import utils
from ekg.data.dataset import Dataset
from ekg.errors import EkgError
from ekg.run.folder import RunFolder
from tests.helpers.models import make_data, randomise_


def run(*argv):
    return export.main(export.parse_args(list(map(str, argv))))


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    """Parameter file of a pruned ResNet-8."""
    path = tmp_path_factory.mktemp("params") / "pruned.pkl"
    import ekg

    supernet = ekg.Supernet(randomise_(nets.build("ResNet-8", 10)))
    utils.save_params(
        supernet.cut(supernet.whole().with_widths({group.name: 0.5 for group in supernet.groups})),
        path,
    )
    return path


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """(.keras file of a small network, .npz of data for it)."""
    folder = tmp_path_factory.mktemp("own")
    entry = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3)(entry)))
    model = randomise_(
        keras.Model(
            entry, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x))
        )
    )
    model.save(folder / "own.keras")
    generator = np.random.default_rng(0)
    np.savez(
        folder / "data.npz",
        x=generator.normal(size=(150, 8, 8, 3)).astype(np.float32),
        y=generator.integers(0, 3, 150),
    )
    return folder / "own.keras", folder / "data.npz", model


def test_a_parameter_file_is_exported_and_measured_in_its_runtime(
    params, tmp_path, monkeypatch, capsys
):
    data = make_data(60, 30, 10, size=32)
    monkeypatch.setattr(
        dataloader,
        "load",
        lambda *_: Dataset("CIFAR10", 10, data.train, data.test, data.mean, data.std),
    )
    result, measured = run(
        "--model",
        params,
        "--arch",
        "ResNet-8",
        "--out",
        tmp_path / "a.tflite",
        "--dataset",
        "CIFAR10",
    )
    model = nets.from_params("ResNet-8", utils.load_params(params), 10)
    hits = (
        np.asarray(model(data.normalise(data.test.read(np.arange(30))), training=False)).argmax(-1)
        == data.test.labels
    )
    assert measured["top1"] == pytest.approx(hits.mean()) and result.format == "litert"
    out = capsys.readouterr().out
    assert (
        f"top-1 % {100 * hits.mean():.2f}" in out
        and "on 30 test examples, in its own runtime" in out
    )
    assert "ms for one example [" in out and "greatest difference" in out


@pytest.mark.parametrize("name", ["a.tflite", "a.onnx"])
def test_a_keras_file_is_exported_with_the_users_data(own, tmp_path, name, capsys):
    path, data, model = own
    result, measured = run("--model", path, "--out", tmp_path / name, "--data_path", data)
    with np.load(data) as arrays:
        right = np.asarray(model(arrays["x"], training=False)).argmax(-1) == arrays["y"]
    assert measured["top1"] == pytest.approx(right.mean()) and result.agreement == 1
    assert "on 150 training examples" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["own.h5", "own.hdf5"])
def test_a_file_of_keras_2_is_taken_by_the_scripts(own, tmp_path, name):
    own[2].save(tmp_path / name)
    arguments = ["--model", str(tmp_path / name)]
    exported, _ = export.load_model(export.parse_args([*arguments, "--out", "a.onnx"]))
    pruned = prune.load_model(prune.parse_args([*arguments, "--inspect"]))
    for model in (exported, pruned):
        for mine, value in zip(own[2].get_weights(), model.get_weights(), strict=True):
            np.testing.assert_array_equal(mine, value)


def test_int8_takes_its_ranges_from_the_data(own, tmp_path):
    path, data, _ = own
    result, measured = run(
        "--model", path, "--out", tmp_path / "a.tflite", "--quantize", "int8", "--data_path", data
    )
    assert result.quantize == "int8" and result.agreement > 0.9 and 0 <= measured["top1"] <= 1


def test_a_run_folder_gives_its_pruned_network(own, tmp_path):
    folder = RunFolder.create(tmp_path / "run", {"arch": "own", "dataset": "arrays"})
    with pytest.raises(EkgError, match="the run left no .keras file; is it finished?"):
        run("--model", folder.path, "--out", tmp_path / "a.onnx")
    own[2].save(folder / "trained_param.keras")
    result, measured = run("--model", folder.path, "--out", tmp_path / "a.onnx")
    assert result.difference < 1e-5 and measured == {}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--out", "a.onnx"], "required: --model"),
        (["--model", "m.keras"], "required: --out"),
        (
            ["--model", "m.keras", "--out", "a.tflite", "--quantize", "int8"],
            "--quantize int8 takes its ranges from data",
        ),
        (
            ["--model", "m.keras", "--out", "a.tflite", "--quantize", "int4"],
            "--quantize: invalid choice",
        ),
        (["--model", "m.keras", "--out", "a.onnx", "--rescale", "1"], "--rescale takes 2 numbers"),
        (
            ["--model", "m.keras", "--out", "a.onnx", "--tolerance", "-1"],
            "--tolerance must be positive",
        ),
    ],
)
def test_a_usage_error_is_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        export.parse_args(argv)
    assert exit_info.value.code == 2 and message in capsys.readouterr().err


def test_mistakes_are_reported_and_leave_no_files(own, params, tmp_path):
    path, data, _ = own
    (tmp_path / "broken.keras").write_bytes(path.read_bytes()[:500])
    before = sorted(tmp_path.iterdir())
    for argv, message in [
        (["--model", tmp_path / "nothing.keras", "--out", tmp_path / "a.onnx"], "no such file"),
        (
            ["--model", tmp_path / "broken.keras", "--out", tmp_path / "a.onnx"],
            "cannot be read as a .keras file",
        ),
        (["--model", tmp_path, "--out", tmp_path / "a.onnx"], "is no run folder"),
        (["--model", params, "--out", tmp_path / "a.onnx"], "needs the name of its network"),
        (["--model", path, "--out", tmp_path / "a.pt"], "unknown ending"),
        (
            ["--model", path, "--out", tmp_path / "a.onnx", "--data_path", tmp_path / "no.npz"],
            "there is no plain file of that name",
        ),
        (["--model", path, "--out", tmp_path / "a.onnx", "--dataset", "DIGITS"], "has images of"),
    ]:
        with pytest.raises(EkgError, match=message):
            run(*argv)
    assert sorted(tmp_path.iterdir()) == before
