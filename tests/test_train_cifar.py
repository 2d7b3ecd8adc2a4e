"""The scripts as a user runs them, on data that needs no download."""

import dataclasses
import functools
import pickle
import shutil

import keras
import numpy as np
import pytest

import dataloader
import ekg
import nets
import test as test_script
import train_cifar
import utils
from ekg.distil import bank_files
from ekg.errors import EkgError
from ekg.goal import Drop, hold_out
from ekg.io import files
from ekg.report import measure
from ekg.run.folder import RunFolder
from ekg.run.lock import LOCK
from ekg.train.checkpoints import Checkpoints
from tests.helpers import runs, small_jobs
from tests.helpers.comparisons import relative_difference
from tests.helpers.damage import flip_bit_of

NETWORK = ["--arch", "ResNet-8", "--dataset", "DIGITS", "--target_rate", "0.9", "--no-preflight"]
SHORT = [*NETWORK, "--baseline_epoch", "1", "--train_epoch", "2", "--num_teacher", "2"]


def train(*argv):
    return train_cifar.main(train_cifar.parse_args([str(value) for value in argv]))


def evaluate(*argv):
    return test_script.main(test_script.parse_args([str(value) for value in argv]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and the rows of its table. Others run without the preflight: it must not
    change the result.
    """
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "LEAST_SECONDS", 0.05)
        return folder, train(*SHORT, "--preflight", "--train_path", folder)


def test_a_run_leaves_everything_in_its_folder(finished):
    folder, rows = finished
    assert [row.name for row in rows] == ["baseline", "slimmed", "fine-tuned"]
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "arguments.json",
        "history.jsonl",
        "memory_bank",
        "slimmed_param.pkl",
        "trained_param.pkl",
        "trained_param.keras",
        "baseline_param.pkl",
        "events",
        "summary.json",
    }
    assert list((folder / "events").glob("events.out.tfevents*"))
    baseline, slimmed, tuned = rows
    assert baseline.flops == 12_673_664 and baseline.params == 78_714
    assert slimmed.flops == tuned.flops <= 0.9 * baseline.flops
    assert tuned.file_size == (folder / "trained_param.pkl").stat().st_size < baseline.file_size
    for row in rows:
        assert 0 <= row.top1 <= row.top5 <= 1
        in_litert = ["litert, batch 1, 1 thread"]
        in_tensorflow = ["tensorflow, batch 1", "tensorflow, batch 256"]
        assert list(row.latencies) == in_tensorflow + in_litert
        assert all(
            timing["milliseconds"] > 0
            and timing["ratio_low"] <= timing["ratio"] <= timing["ratio_high"]
            for timing in row.latencies.values()
        )


def test_the_history_has_a_line_for_every_step(finished):
    folder, rows = finished
    lines = files.read_json_lines(folder / "history.jsonl")
    assert [line["step"] for line in lines] == list(range(len(lines))) and len(lines) > 1
    assert lines[0]["group"] is None and lines[0]["rate"] == 1
    for line in lines:
        assert set(line) >= {"group", "kept", "rate", "loss", "accuracy", "reward", "seconds"}
    assert lines[-1]["rate"] == rows[1].flops / rows[0].flops <= 0.9 < lines[-2]["rate"]


def test_curves_hold_every_epoch(finished):
    tuned = [line for line in runs.read_curves(finished[0]) if line["phase"] == "fine-tune"]
    assert [line["step"] for line in tuned] == [1, 2]
    for line in tuned:
        assert line["loss"] == pytest.approx(line["cross_entropy"] + line["distillation"], rel=1e-5)


def test_the_evaluation_script_returns_the_tables_row(finished):
    folder, rows = finished
    row = evaluate(
        "--arch", "ResNet-8", "--dataset", "DIGITS", "--trained_param", folder / "trained_param.pkl"
    )
    assert (row.loss, row.top1, row.params, row.flops) == (
        rows[2].loss,
        rows[2].top1,
        rows[2].params,
        rows[2].flops,
    )


def test_the_keras_file_holds_the_same_network(finished):
    stored = keras.models.load_model(finished[0] / "trained_param.keras", safe_mode=True)
    params = utils.load_params(finished[0] / "trained_param.pkl")
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    assert (
        relative_difference(stored(images), nets.from_params("ResNet-8", params, 10)(images)) < 1e-6
    )


def test_a_finished_run_shows_its_table_again(finished):
    folder, rows = finished
    assert train(*SHORT, "--train_path", folder) == rows


@pytest.mark.rendered
def test_a_finished_run_writes_its_page_again_if_it_is_gone(finished):
    folder, rows = finished
    page = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    assert (
        train(*SHORT, "--train_path", folder) == rows
        and (folder / "report.html").read_text() == page
    )


SMALL = (
    "--baseline_epoch",
    "1",
    "--train_epoch",
    "2",
    "--num_teacher",
    "2",
    "--batch_size",
    "40",
    "--subset_per_class",
    "40",
    "--search_batch_size",
    "60",
    "--val_batch_size",
    "40",
)


def train_small(folder, *argv):
    return small_jobs.run(
        train_cifar, small_jobs.make_large_data(), *SMALL, *argv, "--train_path", folder
    )


def test_a_stopped_run_resumes_to_the_same_weights(tmp_path):
    """Stopped after a search step and again after the first epoch of fine-tuning."""
    folder, other = tmp_path / "undisturbed", tmp_path / "run"
    train_small(folder, "--target_rate", "0.5")
    for owner, name, function in (
        (RunFolder, "log_curves", stop_at("search", 2)),
        (Checkpoints, "save", stop_after_saving("fine-tune")),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, function)
            with pytest.raises(KeyboardInterrupt):
                train_small(other, "--target_rate", "0.5")
        assert len(runs.read_history(other)) >= 3
    train_small(other, "--target_rate", "0.5")
    assert runs.read_curves(folder) == runs.read_curves(other)
    for name in ("slimmed_param.pkl", "trained_param.pkl"):
        expected, params = (utils.load_params(path / name) for path in (folder, other))
        assert expected.keys() == params.keys() and all(
            (expected[key] == params[key]).all() for key in expected
        )


def test_an_accuracy_goal_is_met_by_the_network_of_a_single_run(tmp_path, capsys):
    """The job is stopped in the fine-tuning and resumes."""
    goal = ["--max_drop", "90", "--lowest_rate", "0.95", "--held_out", "0.2", "--runtimes"]
    goal += ["--probe_epochs", "0", "--train_path", tmp_path / "goal"]
    data, run = small_jobs.make_large_data(), functools.partial(small_jobs.run, train_cifar)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "log_curves", stop_at("fine-tune", 1))
        with pytest.raises(KeyboardInterrupt):
            run(data, *SMALL, *goal)
    rows = run(data, *SMALL, *goal)
    printed = capsys.readouterr().out
    found = {path.name for path in (tmp_path / "goal").iterdir()}
    assert found == {"search", "probe_0.95", "final_0.95"}

    # Nothing sees what is held out, not even the training of the network that is pruned.
    held, kept = hold_out(data.train.labels, 0.2, seed=0)
    assert len(held) == 168
    for name in found:
        arguments = files.read_json(tmp_path / "goal" / name / "arguments.json")
        assert arguments["data"] == bank_files.fingerprint(data.train.take(kept), data.task)
    baseline = tmp_path / "goal" / "search" / "baseline_param.pkl"
    alone = run(
        dataclasses.replace(data, train=data.train.take(kept)),
        *SMALL[2:],
        *("--trained_param", baseline, "--target_rate", "0.95", "--runtimes"),
        *("--train_path", tmp_path / "alone"),
    )
    assert [(row.loss, row.top1) for row in rows] == [(row.loss, row.top1) for row in alone]
    images, right = data.normalise(data.train.images[held]), []
    for path in (baseline, tmp_path / "alone" / "trained_param.pkl"):
        model = small_jobs.from_params(None, utils.load_params(path), data.num_classes, path)
        right.append(np.argmax(model(images), axis=1) == data.train.labels[held])
    assert "goal: at most 90 points less top-1, on 168 held-out training examples; met" in printed
    assert f"met, with {Drop.between(*right)} points" in printed


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
def test_other_teachers_need_no_bank(tmp_path, teacher):
    rows = small_jobs.run(
        train_cifar,
        small_jobs.make_large_data(),
        *SMALL[:4],
        *SMALL[6:],
        "--target_rate",
        "0.8",
        "--search_teacher",
        teacher,
        "--finetune_teacher",
        teacher,
        "--accum",
        "2",
        "--train_path",
        tmp_path / "run",
    )
    assert not (tmp_path / "run" / "memory_bank").exists()
    assert [row.name for row in rows] == ["baseline", "slimmed", "fine-tuned"] and rows[
        2
    ].flops <= 0.8 * rows[0].flops


@pytest.fixture
def base(finished):
    """What a run needs that takes the search of the finished one."""
    return [
        *NETWORK,
        "--train_epoch",
        "2",
        "--num_teacher",
        "2",
        "--trained_param",
        finished[0] / "baseline_param.pkl",
    ]


def test_a_finished_search_is_taken_over(finished, base, tmp_path, monkeypatch):
    """It ends as a whole run does, which searches itself."""
    (folder, rows), taken = finished, tmp_path / "taken"
    with monkeypatch.context() as patch:
        patch.setattr("ekg.searching.greedy.search_toward", None)
        again = train(*base, "--train_path", taken, "--search_from", folder, "--preflight")
    assert [(row.loss, row.top1, row.flops) for row in again] == [
        (row.loss, row.top1, row.flops) for row in rows
    ]
    for name in ("slimmed_param.pkl", "history.jsonl", "trained_param.pkl"):
        assert (taken / name).read_bytes() == (folder / name).read_bytes()
    summaries = [files.read_json(path / "summary.json")["phases"] for path in (taken, folder)]
    assert (
        summaries[0]["search"] == summaries[1]["search"]
        and "bank" in summaries[0]
        and "baseline" not in summaries[0]
    )


def test_another_or_damaged_search_is_not_taken_over(finished, base, tmp_path):
    folder, damaged = finished[0], tmp_path / "damaged"
    base = [*base, "--train_path", tmp_path / "new", "--search_from"]
    for argv, message in (
        (["--seed", "1"], "was searched with other arguments.*\n  seed: 0 there, 1 here$"),
        (["--criterion", "l1"], "\n  criterion: 'ekg' there, 'l1' here$"),
    ):
        with pytest.raises(EkgError, match=message):
            train(*base, folder, *argv)
    with pytest.raises(EkgError, match="is no run folder"):
        train(*base, tmp_path)
    assert not (tmp_path / "new").exists()
    shutil.copytree(folder, damaged)
    flip_bit_of(damaged / "slimmed_param.pkl", offset=1000, bit=0)
    with pytest.raises(EkgError, match="damaged/slimmed_param.pkl"):
        train(*base, damaged)
    (damaged / "slimmed_param.pkl").unlink()
    with pytest.raises(EkgError, match="its search is not finished"):
        train(*base, damaged)
    assert not (tmp_path / "new").exists()


def test_a_mistake_is_one_line_and_exit_code_2():
    ((code, output),) = runs.finish(
        runs.start("test.py", "--dataset", "DIGITS", "--trained_param", "/nowhere/missing.pkl")
    )
    assert code == 2
    assert (
        runs.error_line(output)
        == "error: /nowhere/missing.pkl: cannot be read (No such file or directory)."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target_rate", "1.2"], "--target_rate must be in (0, 1]; received 1.2."),
        (["--target_rate", "0"], "--target_rate must be in (0, 1]; received 0."),
        (["--arch", "VGG"], "invalid choice"),
        (["--batch_size", "0"], "--batch_size must be at least 1; received 0."),
        (["--dataset", "MNIST"], "invalid choice"),
        (["--decay_points", "30", "60"], "--decay_points must be in (0, 1); received 30."),
        (
            ["--decay_points", "0.8", "0.3"],
            "error: --decay_points must rise; received 0.8 0.3. --help lists all arguments.",
        ),
        (["--decay_points", "0.3", "0.3"], "--decay_points must rise; received 0.3 0.3."),
        (
            ["--warmup_epoch", "200"],
            "--warmup_epoch 200 is longer than the training, --train_epoch 100; make it shorter.",
        ),
        (["--learning_rate", "nan"], "--learning_rate must be positive; received nan."),
        (["--seed", "4294967296"], "--seed must be from 0 to 4294967295; received 4294967296."),
        (
            ["--trained_param", "p.pkl", "--baseline_epoch", "3"],
            "--baseline_epoch has no effect here: --trained_param is given",
        ),
        (
            ["--finetune_teacher", "none", "--num_teacher", "3"],
            "--num_teacher has no effect here: only the memory bank has teachers",
        ),
        (
            ["--shortlist", "5"],
            "--shortlist has no effect here: --reward is not condition_number; leave it out.",
        ),
        (["--sync_bn", "--accum", "2"], "--sync_bn and --accum exclude each other"),
        (
            ["--virtual_devices", "2", "--gpu_id", "0"],
            "--virtual_devices and --gpu_id exclude each other",
        ),
        (["--search_from", "runs/a"], "--search_from needs --trained_param"),
        (["--max_drop", "0"], "--max_drop must be in (0, 100); received 0."),
        (["--max_drop", "1", "--target_rate", "0.5"], "--max_drop and --target_rate exclude"),
        (["--max_drop", "1", "--overwrite"], "--max_drop and --overwrite exclude each other"),
        (["--held_out", "0.2"], "--held_out has no effect here: there is no accuracy goal"),
        (
            ["--max_drop", "1", "--probe_epochs", "2", "--warmup_epoch", "3"],
            "--probe_epochs 2: --warmup_epoch 3 is longer than the training, --train_epoch 2",
        ),
    ],
)
def test_wrong_arguments_are_refused_by_the_parser(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_info:
        train_cifar.parse_args(arguments)
    assert exit_info.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target_rate", "0.001"], "`target_rate` 0.001 cannot be reached"),
        (["--gpu_id", "99"], "`gpu_id` 99: this machine has"),
        (["--batch_size", "30", "--accum", "4"], "multiple of 4"),
        (["--data_path", "/nowhere"], "leave `data_path` out"),
        (
            ["--dataset", "CIFAR10", "--data_path", "/nowhere"],
            "^`data_path` /nowhere: no such folder or file; name the folder with the python "
            "batches, or cifar-10-python.tar.gz.$",
        ),
        (["--precision", "float16"], "`precision` float16: needs a GPU"),
        (["--batch_size", "2000"], "`batch_size` 2000 is larger than the 1438 images"),
        (["--search_batch_size", "2000"], "`search_batch_size` 2000 is larger than the"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(EkgError, match=message):
        train(*SHORT, "--train_path", tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--max_drop", "0.1"],
            "^`max_drop`: 144 held-out examples cannot resolve a drop of 0.1 points, .* raise "
            "`held_out` or `max_drop`.$",
        ),
        (["--max_drop", "9", "--batch_size", "1400"], "^`batch_size` 1400 is larger than the 1294"),
    ],
)
def test_goals_that_do_not_fit_the_data_are_refused_before_anything_is_written(
    tmp_path, arguments, message
):
    with pytest.raises(EkgError, match=message):
        train(*NETWORK[:4], "--train_path", tmp_path / "run", *arguments)
    assert not (tmp_path / "run").exists()


def test_overwriting_does_not_remove_the_network_it_prunes(finished):
    path = finished[0] / "baseline_param.pkl"
    with pytest.raises(EkgError, match="`overwrite` would remove `trained_param`"):
        train(*NETWORK, "--trained_param", path, "--overwrite", "--train_path", finished[0])
    assert path.exists() and (finished[0] / "summary.json").exists()


@pytest.mark.rehearsed
def test_the_preflight_names_a_disk_without_room(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ekg.run.preflight.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 2_948_743)
    )
    with pytest.raises(
        EkgError, match="the run needs [0-9,]+ bytes and 2,948,743 are free; make room"
    ):
        train(*SHORT, "--preflight", "--train_path", tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "arguments.json",
        "environments.jsonl",
        LOCK,
    }


def test_a_parameter_file_of_another_net_leaves_no_run_folder(tmp_path):
    utils.save_params(nets.build("ResNet-32", 10), tmp_path / "p.pkl")
    with pytest.raises(EkgError, match="p.pkl: does not fit ResNet-8"):
        train(*NETWORK, "--trained_param", tmp_path / "p.pkl", "--train_path", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pickle_with_code_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    (tmp_path / "p.pkl").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(EkgError, match="it asks for '_?io.open'"):
        evaluate("--dataset", "DIGITS", "--trained_param", tmp_path / "p.pkl")
    assert not (tmp_path / "executed").exists()


def test_the_library_gives_the_same_result_as_the_script(finished, tmp_path):
    folder, rows = finished
    model = nets.from_params("ResNet-8", utils.load_params(folder / "baseline_param.pkl"), 10)
    result = ekg.prune(
        model,
        dataloader.load("DIGITS"),
        target_rate=0.9,
        epochs=2,
        repair=False,
        bank={"num_teacher": 2},
        run_dir=tmp_path / "run",
        verbose=False,
    )
    assert runs.read_history(tmp_path / "run") == runs.read_history(folder)
    expected, params = (
        utils.load_params(path / "trained_param.pkl") for path in (folder, tmp_path / "run")
    )
    assert expected.keys() == params.keys() and all(
        (expected[key] == params[key]).all() for key in expected
    )
    for row, expected in zip(result.table, rows, strict=True):
        assert (row.name, row.loss, row.metrics) == (expected.name, expected.loss, expected.metrics)
