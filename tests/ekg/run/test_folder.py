import os

import pytest

from ekg.errors import EkgError
from ekg.io import files
from ekg.process.memory import Peak
from ekg.report.table import Row
from ekg.run import events
from ekg.run.folder import OWN_NAMES, RunFolder, differences
from tests.helpers import runs

# As version 0.2 wrote it.
ROW = {
    "name": "baseline",
    "loss": 0.5,
    "metrics": {"top1": 0.9, "top5": 1.0},
    "params": 10,
    "flops": 20,
    "file_size": 30,
    "latency_1": 1.0,
    "latency_256": 2.0,
}


def test_a_run_folder_that_is_made_as_an_object_is_neither_read_nor_written(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert not folder.path.exists() and not folder.holds_run() and not folder.is_searched()
    assert folder.history() == [] and list(tmp_path.iterdir()) == []


def test_a_run_folder_keeps_to_its_arguments(tmp_path):
    path = tmp_path / "a" / "run"
    folder = RunFolder.prepare(path, {"seed": 1, "rate": 0.5})
    assert (
        files.read_json(path / "arguments.json") == folder.arguments() == {"seed": 1, "rate": 0.5}
    )
    RunFolder.prepare(path, {"seed": 1, "rate": 0.5})
    assert RunFolder.open(path).arguments() == {"seed": 1, "rate": 0.5}
    message = (
        "holds a run with other arguments; repeat those, or ADVICE:\n  rate: 0.5 there, 0.4 "
        "here\n  seed: 1 there"
    )
    for method in (RunFolder.prepare, RunFolder.open):
        with pytest.raises(EkgError, match=f"{message}, 2 here$"):
            method(path, {"seed": 2, "rate": 0.4}, advice="ADVICE")


def test_an_argument_of_only_one_of_two_runs_is_a_difference():
    assert (
        differences({"a": 1, "b": 2}, {"a": 1, "c": 3})
        == "\n  b: 2 there, None here\n  c: None there, 3 here"
    )
    assert differences({"a": [1]}, {"a": [1]}) == ""


def test_a_required_run_that_is_missing_is_reported(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(EkgError, match="is no run folder: there is no arguments.json in it"):
            RunFolder.open(path)
    assert list(tmp_path.iterdir()) == []


def test_a_new_run_needs_an_empty_folder(tmp_path):
    RunFolder.create(tmp_path, {"seed": 1})
    with pytest.raises(EkgError, match="is not empty, it holds a run; name a new folder"):
        RunFolder.create(tmp_path, {"seed": 1})


@pytest.mark.parametrize("overwrite", [False, True])
def test_another_tools_arguments_file_makes_no_run(tmp_path, overwrite):
    (tmp_path / "arguments.json").write_text('{"mine": 1}')
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(EkgError, match="not empty and holds no run"):
        RunFolder.prepare(tmp_path, {}, overwrite)
    assert (tmp_path / "checkpoints").is_dir() and (
        tmp_path / "arguments.json"
    ).read_text() == '{"mine": 1}'


def test_leftovers_of_a_killed_write_are_removed(tmp_path):
    RunFolder.create(tmp_path, {"seed": 1})
    for name in ("arguments.json", "search_state.npz", "search_state.pkl"):
        (tmp_path / f".{name}.abcd").write_text("half")
    RunFolder.open(tmp_path, {"seed": 1})
    assert len(list(tmp_path.iterdir())) == 4  # reading a run removes nothing
    RunFolder.prepare(tmp_path, {"seed": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["arguments.json"]


def test_a_run_killed_while_it_wrote_its_first_file_begins_again(tmp_path):
    (tmp_path / ".arguments.json.abcd").write_text("half")
    RunFolder.prepare(tmp_path, {"seed": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["arguments.json"]


def test_leftovers_of_a_kill_in_a_runs_folders_are_removed(tmp_path):
    RunFolder.create(tmp_path, {"seed": 1})
    gone = [
        "memory_bank/.bank.json.abcd",
        "checkpoints/subset/.ckpt-1.json.abcd",
        "exported/.a.onnx.abcd",
        "checkpoints/subset/ckpt-2_temp/part-0",
    ]
    stays = [
        "memory_bank/bank.json",
        "checkpoints/subset/ckpt-1.json",
        "checkpoints/subset/ckpt-1.data-00000-of-00001",
    ]
    for name in gone + stays:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    RunFolder.prepare(tmp_path, {"seed": 1})
    there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert there == {*stays, "arguments.json"}


@pytest.mark.parametrize("method", [RunFolder.prepare, RunFolder.open])
def test_damaged_arguments_are_named(tmp_path, method):
    folder = RunFolder.create(tmp_path, {"seed": 1})
    (folder / "history.jsonl").write_text("")
    for text in ("", "{}", "[1]"):
        (folder / "arguments.json").write_text(text)
        with pytest.raises(
            EkgError,
            match="arguments.json: damaged, so that the run cannot be resumed; put the file back",
        ):
            method(tmp_path, {"seed": 1})


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_alone(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(EkgError, match="not empty and holds no run"):
        RunFolder.prepare(tmp_path, {}, overwrite)
    with pytest.raises(EkgError, match="cannot be written"):
        RunFolder.prepare(tmp_path / "thesis.txt" / "run", {}, overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "years of work" and len(
        list(tmp_path.iterdir())
    ) == 1


def test_overwriting_removes_the_run_and_nothing_else(tmp_path):
    RunFolder.create(tmp_path, {"seed": 1})
    for name in OWN_NAMES[:-1]:
        if "." in name:
            (tmp_path / name).write_text("old")
        else:
            (tmp_path / name).mkdir()
            (tmp_path / name / "inside").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    folder = RunFolder.prepare(tmp_path, {"seed": 2}, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"arguments.json", "notes.txt"}
    assert folder.arguments() == {"seed": 2}
    RunFolder.prepare(tmp_path, {"seed": 2})


@pytest.mark.parametrize(
    "name", ["slimmed_param.pkl", "trained_param.pkl", "summary.json", "checkpoints/fine-tune"]
)
def test_files_of_later_phases_show_that_the_search_is_finished(tmp_path, name):
    folder = RunFolder.create(tmp_path, {})
    folder.checkpoints("subset").mkdir(parents=True)
    (folder / "history.jsonl").write_text("")
    assert not folder.is_searched()
    (folder / name).mkdir(parents=True)
    assert folder.is_searched()


def test_curves_are_kept_as_lines_and_events(tmp_path):
    folder = RunFolder.create(tmp_path, {})
    folder.log_curves("search", 1, {"loss": 0.5})
    for again in (folder, RunFolder.open(tmp_path, {})):
        again.log_curves("search", 1, {"loss": 0.5})
    assert files.read_json_lines(folder / "curves.jsonl") == [
        {"phase": "search", "step": 1, "loss": 0.5}
    ]
    assert list((tmp_path / "events").glob("events.out.tfevents*"))


def log(path, steps, phase="search"):
    """Logs steps in a process of their own, as far as the folder can see."""
    folder = RunFolder.open(path, {})
    for step in steps:
        folder.log_curves(phase, step, {"loss": 1 / (step + 1), "top1": 0.5})
    return folder


def lose_event(path):
    """The process was killed after the line of the curves, before its event."""
    log(path, [0])
    files.append_json_line(
        path / "curves.jsonl", {"phase": "search", "step": 1, "loss": 0.5, "top1": 0.5}
    )


def cut_event(path):
    """The process was killed within the event."""
    log(path, [0, 1])
    (events,) = (path / "events").iterdir()
    os.truncate(events, events.stat().st_size - 5)


def lose_line(path):
    """The line of the curves is damaged, so it is written again."""
    log(path, [0, 1])
    curves = path / "curves.jsonl"
    curves.write_bytes(curves.read_bytes()[:-5])


def copy_curves(path):
    """The curves of an earlier search are copied, which was stopped, and copied again."""
    for _ in range(2):
        log(path, [0, 1])
        (path / "curves.jsonl").unlink()


def restart(path):
    """The phase and its successors begin again."""
    log(path, [1, 2], "fine-tune")
    log(path, [0, 1]).restart("search")


def find_nothing_new(path):
    """Processes that end before they log anything new."""
    log(path, [0, 1])
    log(path, [1])
    log(path, [1])


@pytest.mark.parametrize(
    "disturb", [lose_event, cut_event, lose_line, copy_curves, restart, find_nothing_new]
)
def test_events_of_a_disturbed_run_are_those_of_an_undisturbed_one(tmp_path, disturb):
    for name in ("undisturbed", "disturbed"):
        RunFolder.create(tmp_path / name, {})
    log(tmp_path / "undisturbed", range(3))
    log(tmp_path / "undisturbed", [1], "fine-tune")
    disturb(tmp_path / "disturbed")
    log(tmp_path / "disturbed", range(3))
    log(tmp_path / "disturbed", [1], "fine-tune")
    shown = runs.read_events(tmp_path / "disturbed")
    assert shown == runs.read_events(tmp_path / "undisturbed")
    assert shown["search/loss"] == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert shown["fine-tune/top1"] == [(1, 0.5)]
    for path in (tmp_path / "disturbed" / "events").iterdir():
        assert "tfevents" in path.name and events.read(path)  # none is left over, none is empty


def test_events_keep_their_time_when_they_are_written_again(tmp_path):
    RunFolder.create(tmp_path, {})
    log(tmp_path, [0, 1])
    (before,) = (tmp_path / "events").iterdir()
    numbers = events.read(before)
    cut_at = before.stat().st_size - 5
    os.truncate(before, cut_at)
    log(tmp_path, [1])
    (after,) = (tmp_path / "events").iterdir()
    assert after.name > before.name and events.read(after)[:3] == numbers[:3]


def test_a_run_continues_without_events_that_cannot_be_written(tmp_path, caplog):
    RunFolder.create(tmp_path, {})
    (tmp_path / "events").write_text("in the way")
    log(tmp_path, [0, 1])
    assert len(files.read_json_lines(tmp_path / "curves.jsonl")) == 2
    assert caplog.text.count("cannot be written") == 1


def test_parts_of_a_phase_are_taken_together(tmp_path):
    folder = RunFolder.create(tmp_path, {})
    for phase, seconds, host, gpu in (
        ("search", 1.04, 10.4, 7),
        ("bank", 2, 30, 0),
        ("search", 3.11, 20.6, 5),
        ("search", 0.5, 5, 0),
    ):
        peak = Peak()
        peak.host_mib, peak.gpu_mib = host, gpu
        folder.log_phase(phase, seconds, peak)
    assert folder.phases() == {
        "search": {"seconds": 4.6, "peak_memory_mib": 21, "peak_gpu_mib": 7},
        "bank": {"seconds": 2, "peak_memory_mib": 30, "peak_gpu_mib": 0},
    }


def test_a_finished_run_is_read_and_others_are_named(tmp_path):
    with pytest.raises(EkgError, match="is no run folder: there is no arguments.json"):
        RunFolder(tmp_path).read_finished()
    folder = RunFolder.create(tmp_path, {"arch": "ResNet-20", "dataset": "DIGITS"})
    folder.log_curves("fine-tune", 1, {"loss": 0.5})
    with pytest.raises(
        EkgError, match="the run is not finished; start it again with the same command"
    ):
        folder.read_finished()
    files.write_json(
        folder / "summary.json",
        {"table": [ROW, ROW, ROW | {"flops": 9}], "phases": {"search": {"seconds": 3.0}}},
    )
    run = folder.read_finished()
    assert (
        run.table[0] == Row.from_json(ROW)
        and run.rate == 0.45
        and run.name == "ResNet-20 on DIGITS"
    )
    assert run.curves == [{"phase": "fine-tune", "step": 1, "loss": 0.5}]
    assert run.seconds("search", "fine-tune") == 3.0  # a phase that was killed each time left none


def test_a_folder_of_an_earlier_version_without_test_data_resumes(tmp_path):
    RunFolder.prepare(tmp_path / "old", {"seed": 0})
    RunFolder.prepare(tmp_path / "old", {"seed": 0, "test_data": {"images": 10}})
    RunFolder.prepare(tmp_path / "new", {"seed": 0, "test_data": {"images": 10}})
    with pytest.raises(EkgError, match="test_data: .'images': 10. there, .'images': 9. here"):
        RunFolder.prepare(tmp_path / "new", {"seed": 0, "test_data": {"images": 9}})
