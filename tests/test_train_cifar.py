"""The scripts as a user runs them, on data that needs no download."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from ekg.checkpoints import Checkpoints
from ekg.run_folder import RunFolder

import nets
import test as test_script
import train_cifar
import utils
from ekg.errors import EkgError
from tests.helpers import relative_difference

ROOT = Path(__file__).parents[1]
NETWORK = ["--arch", "ResNet-20", "--dataset", "DIGITS", "--target_rate", "0.9", "--no-preflight"]
SHORT = [*NETWORK, "--baseline_epoch", "1", "--train_epoch", "2", "--num_teacher", "2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and the rows of its table. Others run without the preflight: it must not change the result."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, train_cifar.main(train_cifar.parse_args([*SHORT, "--preflight", "--train_path", str(folder)]))


def test_a_run_leaves_everything_in_its_folder(finished):
    folder, rows = finished
    assert [row.name for row in rows] == ["baseline", "slimmed", "fine-tuned"]
    names = {path.name for path in folder.iterdir()}
    assert names >= {"arguments.json", "history.jsonl", "memory_bank", "slimmed_param.pkl", "trained_param.pkl",
                     "trained_param.keras", "baseline_param.pkl", "events", "summary.json"}
    assert list((folder / "events").glob("events.out.tfevents*"))
    baseline, slimmed, tuned = rows
    assert baseline.flops == 41_214_592 and baseline.params == 274_042
    assert slimmed.flops == tuned.flops <= 0.9 * baseline.flops
    assert tuned.file_size == (folder / "trained_param.pkl").stat().st_size < baseline.file_size
    for row in rows:
        assert 0 <= row.top1 <= row.top5 <= 1 and row.latency_1 > 0 and row.latency_256 > 0


def test_the_history_has_a_line_for_every_step(finished):
    folder, rows = finished
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(len(lines))) and len(lines) > 1
    assert lines[0]["group"] is None and lines[0]["rate"] == 1
    for line in lines:
        assert set(line) >= {"group", "widths", "rate", "loss", "accuracy", "reward", "seconds"}
    assert lines[-1]["rate"] == rows[1].flops / rows[0].flops <= 0.9 < lines[-2]["rate"]


def test_curves_hold_every_epoch(finished):
    curves = utils.read_json_lines(finished[0] / "curves.jsonl")
    tuned = [line for line in curves if line["phase"] == "fine-tune"]
    assert [line["step"] for line in tuned] == [1, 2]
    for line in tuned:
        assert line["loss"] == pytest.approx(line["cross_entropy"] + line["distillation"], rel=1e-5)


def test_the_evaluation_script_returns_the_tables_row(finished):
    folder, rows = finished
    row = test_script.main(test_script.parse_args(["--arch", "ResNet-20", "--dataset", "DIGITS", "--trained_param",
                                                   str(folder / "trained_param.pkl")]))
    assert (row.loss, row.top1, row.params, row.flops) == (rows[2].loss, rows[2].top1, rows[2].params, rows[2].flops)


def test_the_keras_file_holds_the_same_network(finished):
    stored = keras.models.load_model(finished[0] / "trained_param.keras", safe_mode=True)
    params = utils.load_params(finished[0] / "trained_param.pkl")
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    assert relative_difference(stored(images), nets.from_params("ResNet-20", params, 10)(images)) < 1e-6


def test_a_finished_run_shows_its_table_again(finished):
    folder, rows = finished
    assert train_cifar.main(train_cifar.parse_args([*SHORT, "--train_path", str(folder)])) == rows


def test_a_stopped_run_goes_on_to_the_same_weights(finished, tmp_path):
    """Stopped after a search step and again after the first epoch of fine-tuning."""
    folder, _ = finished
    other = tmp_path / "run"
    args = train_cifar.parse_args([*SHORT, "--train_path", str(other)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "log_curves", stop_at("search", 2))
        with pytest.raises(KeyboardInterrupt):
            train_cifar.main(args)
    assert len(utils.read_json_lines(other / "history.jsonl")) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ekg.checkpoints.Checkpoints.save", stop_after_saving("fine-tune"))
        with pytest.raises(KeyboardInterrupt):
            train_cifar.main(args)
    train_cifar.main(args)
    curves = [[line | {"images_per_second": 0} for line in utils.read_json_lines(path / "curves.jsonl")]
              for path in (folder, other)]
    assert curves[0] == curves[1]
    for name in ("slimmed_param.pkl", "trained_param.pkl"):
        expected, found = (utils.load_params(path / name) for path in (folder, other))
        assert expected.keys() == found.keys() and all((expected[key] == found[key]).all() for key in expected)


def stop_at(phase, step):
    original = RunFolder.log_curves

    def log_curves(self, name, number, values):
        original(self, name, number, values)
        if (name, number) == (phase, step):
            raise KeyboardInterrupt
    return log_curves


def stop_after_saving(phase):
    original = Checkpoints.save

    def save(self, position):
        original(self, position)
        if self._folder.name == phase:
            raise KeyboardInterrupt
    return save


@pytest.mark.parametrize("teacher", ["single", "none"])
def test_other_teachers_need_no_bank(finished, tmp_path, teacher):
    rows = train_cifar.main(train_cifar.parse_args(
        [*NETWORK, "--target_rate", "0.98", "--train_epoch", "1", "--search_teacher", teacher, "--finetune_teacher", teacher,
         "--accum", "2", "--trained_param", str(finished[0] / "baseline_param.pkl"), "--train_path", str(tmp_path / "run")]))
    assert not (tmp_path / "run" / "memory_bank").exists()
    assert rows[0].top1 == finished[1][0].top1 and rows[2].flops <= 0.98 * rows[0].flops


def test_a_finished_search_is_taken_and_not_made_again(finished, tmp_path, monkeypatch):
    """It ends as a whole run does, which searches itself."""
    folder, rows = finished
    base = [*SHORT[:SHORT.index("--baseline_epoch")], "--train_epoch", "2", "--num_teacher", "2", "--trained_param",
            str(folder / "baseline_param.pkl"), "--train_path"]
    with monkeypatch.context() as patch:
        patch.setattr("ekg.pipeline.search", None)
        found = train_cifar.main(train_cifar.parse_args([*base, str(tmp_path / "taken"), "--search_from", str(folder),
                                                          "--preflight"]))
    assert [(row.loss, row.top1, row.flops) for row in found] == [(row.loss, row.top1, row.flops) for row in rows]
    for name in ("slimmed_param.pkl", "history.jsonl", "trained_param.pkl"):
        assert (tmp_path / "taken" / name).read_bytes() == (folder / name).read_bytes()
    summaries = [utils.read_json(path / "summary.json")["phases"] for path in (tmp_path / "taken", folder)]
    assert summaries[0]["search"] == summaries[1]["search"] and "bank" in summaries[0] and "baseline" not in summaries[0]
    for argv, message in ((["--seed", "1"], "was searched with other arguments.*\n  seed: 0 there, 1 here$"),
                          (["--target_rate", "0.8"], "\n  target_rate: 0.9 there, 0.8 here$")):
        with pytest.raises(EkgError, match=message):
            train_cifar.main(train_cifar.parse_args([*base, str(tmp_path / "new"), *argv, "--search_from", str(folder)]))
    with pytest.raises(EkgError, match="is no run folder"):
        train_cifar.main(train_cifar.parse_args([*base, str(tmp_path / "new"), "--search_from", str(tmp_path)]))
    assert not (tmp_path / "new").exists()
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    data = bytearray((damaged / "slimmed_param.pkl").read_bytes())
    data[1000] ^= 1
    (damaged / "slimmed_param.pkl").write_bytes(data)
    with pytest.raises(EkgError, match="damaged/slimmed_param.pkl"):
        train_cifar.main(train_cifar.parse_args([*base, str(tmp_path / "new"), "--search_from", str(damaged)]))
    (damaged / "slimmed_param.pkl").unlink()
    with pytest.raises(EkgError, match="its search is not finished"):
        train_cifar.main(train_cifar.parse_args([*base, str(tmp_path / "new"), "--search_from", str(damaged)]))


def run(*command):
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300)  # noqa: S603


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    done = run("test.py", "--dataset", "DIGITS", "--trained_param", str(tmp_path / "missing.pkl"))
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2 and lines == [f"error: {tmp_path}/missing.pkl: cannot be read (No such file or directory)."]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("arguments", "message"), [
    (["--target_rate", "1.2"], "target_rate must be in"), (["--target_rate", "0"], "target_rate must be in"),
    (["--arch", "VGG"], "invalid choice"), (["--batch_size", "0"], "batch_size must be at least 1"),
    (["--dataset", "MNIST"], "invalid choice"), (["--decay_points", "30", "60"], "must be fractions"),
    (["--learning_rate", "nan"], "learning_rate must be positive"), (["--seed", "4294967296"], "seed must be from 0"),
    (["--trained_param", "p.pkl", "--baseline_epoch", "3"], "no effect here: --trained_param is given"),
    (["--finetune_teacher", "none", "--num_teacher", "3"], "no effect here: only the memory bank"),
    (["--search_from", "runs/a"], "--search_from needs --trained_param")])
def test_wrong_arguments_are_refused_by_the_parser(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_info:
        train_cifar.parse_args(arguments)
    assert exit_info.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["--target_rate", "0.001"], "cannot be reached"), (["--gpu_id", "99"], "--gpu_id 99: this machine has"),
    (["--batch_size", "30", "--accum", "4"], "multiple of 4"), (["--data_path", "/nowhere"], "leave --data_path out"),
    (["--dataset", "CIFAR10", "--data_path", "/nowhere"], "no such folder or file"),
    (["--batch_size", "2000"], "--batch_size 2000 is larger than the 1438 images"),
    (["--search_batch_size", "2000"], "--search_batch_size 2000 is larger than the")])
def test_mistakes_are_named_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(EkgError, match=message):
        train_cifar.main(train_cifar.parse_args([*SHORT, "--train_path", str(tmp_path / "run"), *arguments]))
    assert not (tmp_path / "run").exists()


def test_overwriting_does_not_remove_the_network_it_prunes(finished):
    path = finished[0] / "baseline_param.pkl"
    with pytest.raises(EkgError, match="--overwrite would remove --trained_param"):
        train_cifar.main(train_cifar.parse_args([*NETWORK, "--trained_param", str(path), "--overwrite", "--train_path",
                                                 str(finished[0])]))
    assert path.exists() and (finished[0] / "summary.json").exists()


def test_the_preflight_names_a_disk_without_room(tmp_path, monkeypatch):
    monkeypatch.setattr("ekg.preflight.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 9_980_000))
    # A bank of 1438 x 2 x 10 float32, and nine copies of 274 042 parameters.
    with pytest.raises(EkgError, match="the run needs 9,980,552 bytes and 9,980,000 are free; make room"):
        train_cifar.main(train_cifar.parse_args([*SHORT, "--preflight", "--train_path", str(tmp_path / "run")]))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"arguments.json"}


def test_a_parameter_file_of_another_net_leaves_no_run_folder(tmp_path):
    utils.save_params(nets.build("ResNet-32", 10), tmp_path / "p.pkl")
    with pytest.raises(EkgError, match="p.pkl: does not fit ResNet-20"):
        train_cifar.main(train_cifar.parse_args([*NETWORK, "--trained_param", str(tmp_path / "p.pkl"), "--train_path",
                                                 str(tmp_path / "run")]))
    assert not (tmp_path / "run").exists()


def test_a_pickle_with_code_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(EkgError, match="it asks for 'io.open'"):
        test_script.main(test_script.parse_args(["--dataset", "DIGITS", "--trained_param", str(tmp_path / "p.pkl")]))
    assert not (tmp_path / "executed").exists()
