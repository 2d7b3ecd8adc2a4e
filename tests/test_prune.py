"""The script that prunes a user's own network, as a user runs it."""

import types
from pathlib import Path

import keras
import numpy as np
import pytest

import ekg
import prune
from ekg.errors import EkgError
from ekg.io import files
from ekg.pruning import PruneResult
from ekg.run.folder import RunFolder
from tests.helpers import runs
from tests.helpers.digits import as_folder, digits, network, softmax
from tests.helpers.made_up_runtime import install

QUICK = [
    "--target_rate",
    "0.7",
    "--search_step",
    "1.0",
    "--val_per_class",
    "4",
    "--subset_per_class",
    "6",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folder with a network, a folder of images and an .npz of the same."""
    folder = tmp_path_factory.mktemp("own")
    network(softmax).save(folder / "my.keras")
    images, labels = digits(90)
    images = np.round(images * 255)
    as_folder(folder / "images", images / 255, labels)
    order = np.argsort(labels, kind="stable")
    np.savez(folder / "digits.npz", x=images[order].astype(np.uint8), y=labels[order])
    return folder


def run(place, *argv):
    return prune.main(prune.parse_args(["--model", str(place / "my.keras"), *map(str, argv)]))


def test_a_folder_is_pruned_like_the_same_images_in_an_array(place, tmp_path, capsys):
    result = run(
        place,
        "--data_path",
        place / "images",
        "--train_path",
        tmp_path / "run",
        *QUICK,
        "--rescale",
        -1,
        1,
        "--train_epoch",
        1,
        "--num_teacher",
        2,
        "--augment",
        "flip",
        "--val_path",
        place / "images",
    )
    assert "| fine-tuned |" in capsys.readouterr().out and result.rate <= 0.7
    stored = keras.models.load_model(tmp_path / "run" / "trained_param.keras", safe_mode=True)
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    np.testing.assert_allclose(stored(images), result.model(images), rtol=1e-6)
    np.testing.assert_allclose(stored(images).numpy().sum(axis=1), 1, rtol=1e-5)
    again = run(
        place,
        "--data_path",
        place / "digits.npz",
        "--train_path",
        tmp_path / "other",
        *QUICK,
        "--rescale",
        -1,
        1,
        "--train_epoch",
        1,
        "--num_teacher",
        2,
        "--augment",
        "flip",
        "--val_path",
        place / "digits.npz",
    )
    assert again.subnetwork == result.subnetwork and again.table[2].loss == pytest.approx(
        result.table[2].loss, rel=1e-5
    )


def test_a_search_alone_leaves_the_network_that_was_cut_out(place, tmp_path):
    result = run(
        place,
        "--data_path",
        place / "digits.npz",
        "--train_path",
        tmp_path / "run",
        *QUICK,
        "--search_only",
    )
    stored = keras.models.load_model(tmp_path / "run" / "slimmed_param.keras", safe_mode=True)
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    np.testing.assert_allclose(stored(images), result.model(images), rtol=1e-6)
    assert [row.name for row in result.table] == ["baseline", "slimmed"]
    assert (
        "slimmed" in (tmp_path / "run" / "report.html").read_text()
        and (tmp_path / "run" / "report.png").exists()
    )


@pytest.fixture
def taken(monkeypatch):
    """Dict of the keyword arguments that ekg.prune, ekg.front or ekg.inspect is called with."""
    arguments = {}

    def take(*_, **given):
        arguments.update(given)
        return PruneResult(*[()] * 4, "", None, None, None, None)

    for name in ("prune", "front", "inspect"):
        monkeypatch.setattr(ekg, name, take)
    for name in ("summary", "report", "__str__"):
        monkeypatch.setattr(PruneResult, name, lambda *_: "")
    return arguments


def test_a_flag_that_is_named_counts_even_at_its_default(place, tmp_path, taken):
    """Defaults of ekg.prune suit the data: one that the command line repeats is not taken for one
    left out.
    """
    run(
        place,
        "--data_path",
        place / "digits.npz",
        "--train_path",
        tmp_path,
        "--batch_size",
        128,
        "--temperature",
        4,
        "--val_per_class",
        32,
        "--accum",
        1,
    )
    assert taken["fine_tune"] == {"batch_size": 128, "temperature": 4.0} and taken["search"] == {
        "val_per_class": 32
    }
    assert (
        taken["run"] == {"accum": 1} and taken["epochs"] == 20 and taken["target"] == {"flops": 0.5}
    )


LIMITS = {
    "exclude": (["--exclude", "one", "two"], ["one", "two"]),
    "min_channels": (["--min_channels", 3], 3),
    "multiple_of": (["--multiple_of", 4], 4),
    "prune_frozen": (["--prune_frozen"], True),
    "task": (["--task", "regression"], "regression"),
    "may_lose": (["--may_lose", "depth"], ["depth"]),
    "seed": (["--seed", 7], 7),
}
OF_THE_JOB = {
    "epochs": (["--train_epoch", 3], 3),
    "repair": (["--no-repair"], False),
    "augment": (["--augment", "flip"], "flip"),
    "run_dir": (["--train_path", "somewhere"], Path("somewhere")),
    "verbose": (["--quiet"], False),
}
OF_ONE_TARGET = {
    "restart": (["--restart", "slim"], "slim"),
    "search_from": (["--search_from", "earlier"], Path("earlier")),
    "target": (["--target_params", 0.4, "--target_rate", 0.6], {"flops": 0.6, "params": 0.4}),
}


@pytest.mark.parametrize(
    ("flags", "more"),
    [
        (LIMITS | OF_THE_JOB | OF_ONE_TARGET, []),
        (LIMITS | OF_THE_JOB, ["--target_rates", 0.6, 0.4]),
        (LIMITS, ["--inspect"]),
    ],
    ids=["prune", "front", "inspect"],
)
def test_flags_reach_the_argument_of_their_name(place, taken, flags, more):
    argv = [part for words, _ in flags.values() for part in words]
    run(place, "--data_path", place / "digits.npz", *argv, *more)
    assert {name: taken[name] for name in flags} == {
        name: value for name, (_, value) in flags.items()
    }


def test_a_search_alone_takes_the_weight_decay_of_its_epoch(place, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise EkgError("a report needs matplotlib")

    monkeypatch.setattr(PruneResult, "report", refuse)
    run(
        place,
        "--data_path",
        place / "digits.npz",
        "--train_path",
        tmp_path / "run",
        *QUICK,
        "--search_only",
        "--weight_decay",
        "0.25",
    )
    assert files.read_json(tmp_path / "run" / "arguments.json")["weight_decay"] == 0.25
    assert (
        "no report is drawn: a report needs matplotlib" in caplog.text
    )  # and the network is there


def test_an_inspection_prints_the_prunable_groups(place, capsys):
    run(place, "--inspect", "--exclude", "two")
    text = capsys.readouterr().out
    assert "one" in text and "two  'two' is excluded" in text


def test_a_size_of_images_that_the_network_does_not_take_is_refused(place):
    with pytest.raises(
        EkgError, match="`image_size` 9 9: the network takes images of . x .; leave it out"
    ):
        run(place, "--inspect", "--image_size", 9, 9)


def test_names_that_are_not_utf8_are_refused_before_the_work(place, tmp_path, capsys):
    path = f"{tmp_path}/r\udcffn"  # as Python gives a name of other bytes
    with pytest.raises(SystemExit) as error:
        prune.parse_args(["--model", "m.keras", "--data_path", "x", "--train_path", path])
    said = capsys.readouterr().err
    assert (
        error.value.code == 2
        and r"r\udcffn is not valid UTF-8; rename the file" in said
        and said.count("\n") == 1
    )
    for action in (
        lambda: RunFolder.create(path, {}),
        lambda: RunFolder(path).locked().__enter__(),
    ):
        with pytest.raises(
            EkgError, match=r"r.udcffn: its name is not valid UTF-8; choose another folder"
        ) as error:
            action()
        str(error.value).encode()
    assert not RunFolder(path).path.exists()


def test_networks_of_keras_are_known_by_name(tmp_path, capsys):
    model = keras.applications.MobileNetV2(
        (32, 32, 3), alpha=1.0, weights=None, classes=3, classifier_activation=None
    )
    model.save_weights(tmp_path / "m.weights.h5")
    args = ["--model", "MobileNetV2", "--classes", "3", "--image_size", "32", "32", "--inspect"]
    inspection = prune.main(prune.parse_args([*args, "--weights", str(tmp_path / "m.weights.h5")]))
    assert inspection.smallest_rate < 0.01
    with pytest.raises(EkgError, match="`weights` [^ ]*nowhere.weights.h5: there is no plain file"):
        prune.main(prune.parse_args([*args, "--weights", str(tmp_path / "nowhere.weights.h5")]))


def test_a_mistake_is_one_line_and_exit_code_2(place):
    ((code, output),) = runs.finish(
        runs.start("prune.py", "--model", place / "my.keras", "--data_path", "/nowhere")
    )
    assert code == 2 and runs.error_line(output) == (
        "error: --data_path /nowhere: no such folder with one subfolder per class, no .npz file, "
        "and not tfds:NAME."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data_path is needed"),
        (["--data_path", "x", "--rescale", "1"], "--rescale takes 2 numbers"),
        (
            ["--data_path", "x", "--classes", "3"],
            "--weights and --classes are for a network of keras.applications",
        ),
        (
            ["--data_path", "x", "--search_only", "--train_epoch", "20"],
            "--train_epoch has no effect here: --search_only ends",
        ),
        (
            ["--data_path", "x", "--sync_bn", "--accum", "2"],
            "--sync_bn and --accum exclude each other",
        ),
        (["--data_path", "x", "--task", "detection"], "invalid choice: 'detection'"),
        (
            ["--data_path", "x", "--target_rate", "2"],
            "--target_rate must be in (0, 1]; received 2.",
        ),
    ],
)
def test_wrong_arguments_are_refused_by_the_parser(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_info:
        prune.parse_args(["--model", "m.keras", *arguments])
    assert exit_info.value.code == 2 and message in capsys.readouterr().err


def test_files_that_are_something_else_are_named(place, tmp_path):
    (tmp_path / "broken.keras").write_bytes((place / "my.keras").read_bytes()[:500])
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "others.npz", a=np.zeros(3))
    np.savez(tmp_path / "small.npz", x=np.zeros((20, 5, 5, 1)), y=np.arange(20) % 10)
    (tmp_path / "one_class" / "only").mkdir(parents=True)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    data = ["--data_path", place / "digits.npz"]
    for argv, message in (
        (["--model", tmp_path / "nowhere.keras", *data], "nowhere.keras: no such file"),
        (
            ["--model", tmp_path / "broken.keras", *data],
            "broken.keras: cannot be read as a .keras file",
        ),
        (["--data_path", tmp_path / "broken.npz"], "broken.npz: cannot be read"),
        (["--data_path", tmp_path / "others.npz"], "holds .'a'.; it needs the arrays x"),
        (["--data_path", tmp_path / "one_class"], "holds no images"),
        (["--data_path", tmp_path / "empty"], "holds no images"),
        (["--data_path", place], "holds 1 subfolders"),
        ([*data, "--val_path", place / "images"], "its classes are"),
        (["--data_path", tmp_path / "small.npz"], "^`data_path` has examples of shape"),
    ):
        with pytest.raises(EkgError, match=message):
            run(place, "--train_path", tmp_path / "run", *argv)
    (place / "images" / "0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    try:
        with pytest.raises(EkgError, match="0/broken.png: cannot be read as an image"):
            run(place, "--data_path", place / "images", "--train_path", tmp_path / "run", *QUICK)
    finally:
        (place / "images" / "0" / "broken.png").unlink()
    assert not (tmp_path / "run").exists()


def test_a_latency_is_reached_and_the_result_is_exported(place, tmp_path, monkeypatch, capsys):
    clock = install(monkeypatch)
    result = run(
        place,
        "--data_path",
        place / "digits.npz",
        "--train_path",
        tmp_path / "run",
        *QUICK[2:],
        "--search_only",
        "--target_latency",
        "0.8",
        "--latency_table",
        tmp_path / "table.json",
        "--runtimes",
        "litert",
        "--exports",
        "onnx",
    )
    assert result.history[-1].costs["latency"]["measured"]["ratio"] <= 0.8 and clock.loads > 20
    out = capsys.readouterr().out
    assert "ms, litert, batch 1, 1 thread" in out and "onnx KiB" in out
    assert (tmp_path / "table.json").exists() and (
        tmp_path / "run" / "exported" / "slimmed.onnx"
    ).exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--target_latency", "1.0"], "--target_latency must be in (0, 1); received 1"),
        (
            ["--target_latency", "0.5", "--target_ms", "3"],
            "--target_latency and --target_ms exclude each other",
        ),
        (
            ["--latency_runtime", "litert"],
            "--latency_runtime has no effect here: no latency is aimed at",
        ),
        (
            ["--multiple_of", "0"],
            "--multiple_of must be auto or a whole number of at least 1; received 0",
        ),
        (
            ["--multiple_of", "auto", "--inspect"],
            "--multiple_of auto is measured when a network is pruned",
        ),
        (["--exports", "pytorch"], "--exports: invalid choice"),
    ],
)
def test_mistakes_about_latency_are_one_line(place, argv, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        prune.parse_args(["--model", str(place / "my.keras"), "--data_path", "x.npz", *argv])
    assert exit_info.value.code == 2 and message in capsys.readouterr().err


def test_a_target_gives_the_run_folder_its_name():
    for argv, name in (
        ([], "my_0.5"),
        (["--target_latency", "0.6"], "my_latency0.6"),
        (["--target_ms", "4"], "my_ms4"),
        (["--target_rate", "0.5", "--target_params", "0.3"], "my_0.5_params0.3"),
        (["--target_rate", "1"], "my_1"),
        (["--max_drop", "1.5"], "my_drop1.5"),
    ):
        args = prune.parse_args(["--model", "my.keras", "--data_path", "x.npz", *argv])
        assert str(args.train_path) == f"runs/{name}"


def test_the_inputs_that_views_move_are_named(place, monkeypatch):
    given, result = [], types.SimpleNamespace(summary=str, report=lambda _: None)
    monkeypatch.setattr(ekg, "prune", lambda *_, **options: given.append(options) or result)
    data = ["--data_path", place / "digits.npz", "--augment", "flip"]
    for flags in ([], ["--augment_inputs", "left", "right"]):
        run(place, *data, *flags)
    assert [options["augment"] for options in given] == ["flip", {"left": "flip", "right": "flip"}]


def test_a_goal_in_points_leaves_a_run_folder_per_rate(place, tmp_path, capsys):
    options = ["--data_path", place / "digits.npz", "--train_path", tmp_path / "goal", *QUICK[2:]]
    options += ["--search_only", "--max_drop", 99, "--lowest_rate", 0.9, "--held_out", 0.2]
    result = run(place, *options)
    assert "goal: at most 99 points less top-1, on 18 held-out" in capsys.readouterr().out
    assert isinstance(result, PruneResult) and result.rate <= 0.9
    folders = {path.name for path in (tmp_path / "goal").iterdir() if path.is_dir()}
    assert folders == {"search", "probe_0.9", "final_0.9"}
    with pytest.raises(EkgError, match="`max_drop`: 18 held-out .* `held_out` or `max_drop`"):
        run(place, *[1 if option == 99 else option for option in options])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--max_drop", "0"], "max_drop must be in"),
        (["--max_drop", "1", "--target_rate", "0.5"], "max_drop and --target_rate exclude"),
        (["--max_drop", "1", "--search_from", "run"], "max_drop and --search_from exclude"),
        (["--probe_epochs", "2"], "probe_epochs has no effect here: there is no accuracy goal"),
        (["--augment_inputs", "image"], "--augment_inputs has no effect here: there are no views"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        prune.parse_args(["--model", "my.keras", "--data_path", "images", *flags])
    assert message in capsys.readouterr().err
