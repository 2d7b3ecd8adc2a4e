"""A finished run whose result or numbers are gone or damaged: what can be made again is, the rest
is named.
"""

import shutil

import keras
import numpy as np
import pytest

import train_cifar
import utils
from ekg.errors import EkgError
from ekg.io import files
from ekg.run.folder import RunFolder
from tests.helpers import small_jobs
from tests.helpers.damage import flip_bit_of
from tests.helpers.models import randomise_


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder of a finished run, its arguments, its data)."""
    place = tmp_path_factory.mktemp("finished")
    utils.save_params(randomise_(small_jobs.build(None, 3)), place / "p.pkl")
    argv = [
        "--trained_param",
        place / "p.pkl",
        "--target_rate",
        "0.6",
        "--train_epoch",
        1,
        "--num_teacher",
        2,
        "--runtimes",
    ]
    data = small_jobs.make_large_data()
    small_jobs.run(train_cifar, data, *argv, "--train_path", place / "run")
    return place / "run", argv, data


@pytest.fixture
def again(finished, tmp_path):
    """(copy of the folder, function that gives the same command again and returns the table's
    rows).
    """
    source, argv, data = finished
    folder = tmp_path / "run"
    shutil.copytree(source, folder)
    return folder, lambda: small_jobs.run(train_cifar, data, *argv, "--train_path", folder)


def remove(path):
    path.unlink()


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-30])


def phases_of(folder):
    """Returns the names of the phases that have run, in order."""
    return [line["phase"] for line in files.read_json_lines(folder / "phases.jsonl")]


def check_same(folder, source):
    """The same parameters, a .keras file of them, and the same figures but for time."""
    ours, theirs = (utils.load_params(place / "trained_param.pkl") for place in (folder, source))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    stored, expected = (
        keras.models.load_model(place / "trained_param.keras") for place in (folder, source)
    )
    np.testing.assert_array_equal(stored(images), expected(images))
    rows = [RunFolder.open(place).table() for place in (folder, source)]
    assert [(row.loss, row.metrics, row.flops) for row in rows[0]] == [
        (row.loss, row.metrics, row.flops) for row in rows[1]
    ]


@pytest.mark.parametrize("damage", [remove, cut_short, flip_bit_of])
@pytest.mark.parametrize("name", ["trained_param.pkl", "trained_param.keras", "summary.json"])
def test_a_missing_or_damaged_result_is_rebuilt(finished, again, name, damage, caplog):
    folder, run = again
    damage(folder / name)
    before = phases_of(folder)
    rows = run()
    assert [row.name for row in rows] == ["baseline", "slimmed", "fine-tuned"]
    if name == "summary.json":  # the networks are there
        assert phases_of(folder) == [*before, "report"]
    check_same(folder, finished[0])
    assert name in caplog.text or (name, damage) == ("summary.json", remove)


@pytest.mark.rendered
@pytest.mark.parametrize("name", ["report.html", "report.png"])
def test_a_missing_report_is_drawn_again(again, name):
    folder, run = again
    before = (folder / name).stat().st_size
    (folder / name).unlink()
    run()
    assert (folder / name).stat().st_size == pytest.approx(before, rel=0.1)


def test_a_complete_run_is_not_touched(again):
    folder, run = again
    before = {path: path.stat().st_mtime for path in folder.rglob("*") if path.name != ".lock"}
    run()
    assert {
        path: path.stat().st_mtime for path in folder.rglob("*") if path.name != ".lock"
    } == before


def test_files_that_cannot_be_rebuilt_are_named_and_nothing_is_lost(again):
    folder, run = again
    (folder / "trained_param.pkl").unlink()
    shutil.rmtree(folder / "checkpoints")
    before = {path.name for path in folder.iterdir()} | {".lock"}
    with pytest.raises(
        EkgError,
        match=r"trained_param.pkl: is gone, and so are the files that it could be rebuilt from "
        r"\(fine-tune\); put",
    ):
        run()
    assert {path.name for path in folder.iterdir()} | {".lock"} == before


def test_files_removed_to_save_space_are_not_needed(again):
    folder, run = again
    shutil.rmtree(folder / "memory_bank")
    shutil.rmtree(folder / "checkpoints")
    assert run()[2].name == "fine-tuned" and not (folder / "memory_bank").exists()


def test_irrelevant_damage_is_reported_and_the_table_still_shown(again, caplog):
    folder, run = again
    names = ("supernet_param.pkl", "slimmed_param.pkl", "history.jsonl", "memory_bank/logits.npy")
    for name in names:
        flip_bit_of(folder / name)
    before = (folder / "summary.json").stat().st_mtime
    assert run()[2].name == "fine-tuned" and (folder / "summary.json").stat().st_mtime == before
    for name in names:
        said = [record.message for record in caplog.records if str(folder / name) in record.message]
        assert any("damaged" in text for text in said) and any(
            "does not need it" in text for text in said
        ), (name, said)


@pytest.mark.parametrize("name", ["curves.jsonl", "phases.jsonl"])
def test_damaged_logs_never_stop_a_run(finished, again, name, caplog):
    """A flipped bit in a line, before the result is made again and the report drawn."""
    folder, run = again
    flip_bit_of(folder / name)
    (folder / "trained_param.pkl").unlink()
    run()
    check_same(folder, finished[0])
    assert f"{name}: " in caplog.text and "skipping damaged line" in caplog.text
    assert (folder / "report.html").exists()


def test_restarting_a_phase_repeats_it_and_all_later_ones(finished, again):
    """Every checkpoint of fine-tuning damaged: the message says what to do, and that does it."""
    folder, _ = again
    argv, data = finished[1:]
    for name in ("trained_param.pkl", "summary.json"):
        (folder / name).unlink()
    for path in (folder / "checkpoints" / "fine-tune").glob("ckpt-*.index"):
        flip_bit_of(path)

    def run(*more):
        return small_jobs.run(train_cifar, data, *argv, "--train_path", folder, *more)

    with pytest.raises(
        EkgError,
        match="every checkpoint there is damaged; put them back, or start this phase again with "
        "`restart` fine-tune",
    ):
        run()
    before = (folder / "slimmed_param.pkl").stat().st_mtime
    run("--restart", "fine-tune")
    check_same(folder, finished[0])
    assert (folder / "slimmed_param.pkl").stat().st_mtime == before
    curves = [
        line
        for line in files.read_json_lines(folder / "curves.jsonl")
        if line["phase"] == "fine-tune"
    ]
    assert [line["step"] for line in curves] == [1]
    run("--restart", "search")
    check_same(folder, finished[0])
    assert (folder / "slimmed_param.pkl").stat().st_mtime > before


def test_a_given_baseline_cannot_be_restarted(finished, capsys):
    with pytest.raises(SystemExit):
        train_cifar.parse_args([*map(str, finished[1]), "--restart", "baseline"])
    assert "--restart baseline has no effect here" in capsys.readouterr().err


def test_a_diverging_loss_says_how_to_continue(finished, tmp_path):
    _, argv, data = finished
    message = (
        "became non-finite in epoch 1.*The search is intact; resume after it with "
        "--trained_param .*p.pkl --search_from .*run, a new --train_path and a lower "
        "--learning_rate"
    )
    with pytest.raises(FloatingPointError, match=message):
        small_jobs.run(
            train_cifar, data, *argv, "--train_path", tmp_path / "run", "--learning_rate", 1e30
        )
    small_jobs.run(
        train_cifar,
        data,
        *argv,
        "--train_path",
        tmp_path / "new",
        "--search_from",
        tmp_path / "run",
    )
    check_same(tmp_path / "new", finished[0])
