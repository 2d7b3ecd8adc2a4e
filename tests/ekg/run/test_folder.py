import numpy as np
import pytest
from ekg.run_folder import OWN_NAMES, RunFolder

import utils
from ekg.errors import EkgError
from ekg import run_folder


def test_a_run_folder_keeps_to_its_arguments(tmp_path):
    folder = RunFolder(tmp_path / "a" / "run", {"seed": 1, "rate": 0.5})
    assert utils.read_json(folder / "arguments.json") == {"seed": 1, "rate": 0.5}
    RunFolder(tmp_path / "a" / "run", {"seed": 1, "rate": 0.5})
    with pytest.raises(EkgError, match="other arguments; .*\n  rate: 0.5 there, 0.4 here\n  seed: 1 there, 2 here$"):
        RunFolder(tmp_path / "a" / "run", {"seed": 2, "rate": 0.4})


@pytest.mark.parametrize("overwrite", [False, True])
def test_another_tools_arguments_file_makes_no_run(tmp_path, overwrite):
    (tmp_path / "arguments.json").write_text('{"mine": 1}')
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(EkgError, match="not empty and holds no run"):
        RunFolder(tmp_path, {}, overwrite)
    assert (tmp_path / "checkpoints").is_dir() and (tmp_path / "arguments.json").read_text() == '{"mine": 1}'


def test_what_a_kill_left_of_a_file_is_removed(tmp_path):
    (tmp_path / ".arguments.json.abcd").write_text("half")
    RunFolder(tmp_path, {"seed": 1})
    (tmp_path / ".search_state.pkl.abcd").write_text("half")
    RunFolder(tmp_path, {"seed": 1}, cleans=False)
    assert (tmp_path / ".search_state.pkl.abcd").exists()
    RunFolder(tmp_path, {"seed": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["arguments.json"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_alone(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(EkgError, match="not empty and holds no run"):
        RunFolder(tmp_path, {}, overwrite)
    with pytest.raises(EkgError, match="cannot be written"):
        RunFolder(tmp_path / "thesis.txt" / "run", {}, overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "years of work" and len(list(tmp_path.iterdir())) == 1


def test_overwriting_removes_the_run_and_nothing_else(tmp_path):
    RunFolder(tmp_path, {"seed": 1})
    for name in OWN_NAMES[1:]:
        if "." in name:
            (tmp_path / name).write_text("old")
        else:
            (tmp_path / name).mkdir()
            (tmp_path / name / "inside").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    folder = RunFolder(tmp_path, {"seed": 2}, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"arguments.json", "notes.txt"}
    assert utils.read_json(folder / "arguments.json") == {"seed": 2}
    RunFolder(tmp_path, {"seed": 2})


def test_curves_are_kept_as_lines_and_events(tmp_path):
    folder = RunFolder(tmp_path, {})
    folder.log_curves("search", 1, {"loss": 0.5})
    for again in (folder, RunFolder(tmp_path, {})):
        again.log_curves("search", 1, {"loss": 0.5})
    assert utils.read_json_lines(folder / "curves.jsonl") == [{"phase": "search", "step": 1, "loss": 0.5}]
    assert list((tmp_path / "events").glob("events.out.tfevents*"))


@pytest.fixture
def searched(tmp_path):
    """The folder of a run that is behind its search and in its fine-tuning."""
    folder = RunFolder(tmp_path / "searched", {"trained_param": "x", "target_rate": 0.5, "seed": 1, "train_epoch": 1})
    for name in ("supernet_param.pkl", "slimmed_param.pkl"):
        utils.save_pickle(folder / name, {"kernel": np.arange(3.0)})
    for step, rate in enumerate((1.0, 0.7, 0.5)):
        utils.append_json_line(folder / "history.jsonl", {"step": step, "rate": rate})
        folder.log_curves("search", step, {"rate": rate})
    folder.log_curves("fine-tune", 1, {"loss": 0.5})
    for phase in ("search", "slim", "fine-tune"):
        utils.append_json_line(folder / "phases.jsonl", {"phase": phase, "seconds": 1.0})
    return folder.path


def test_a_search_that_is_taken_comes_without_the_training_behind_it(searched, tmp_path, monkeypatch):
    """Also if the taking is killed before its end and started again."""
    arguments = {"trained_param": "x", "target_rate": 0.5, "seed": 1, "train_epoch": 9}
    run_folder.check_search(searched, arguments)
    folder, original = RunFolder(tmp_path / "run", arguments), utils.append_json_line

    def dies(path, value):
        if value.get("phase") == "slim":
            raise KeyboardInterrupt
        original(path, value)
    with monkeypatch.context() as patch:
        patch.setattr(utils, "append_json_line", dies)
        with pytest.raises(KeyboardInterrupt):
            folder.take_search(searched)
    assert not run_folder.is_searched(folder.path)
    folder = RunFolder(tmp_path / "run", arguments)
    folder.take_search(searched)
    assert run_folder.is_searched(folder.path)
    assert [line["step"] for line in utils.read_json_lines(folder / "curves.jsonl")] == [0, 1, 2]
    assert [line["phase"] for line in utils.read_json_lines(folder / "phases.jsonl")] == ["search", "slim"]
    for name in ("supernet_param.pkl", "history.jsonl", "slimmed_param.pkl"):
        assert (folder / name).read_bytes() == (searched / name).read_bytes()


@pytest.mark.parametrize(("damage", "message"), [
    (lambda folder: (folder / "curves.jsonl").unlink(), "its search is not finished"),
    (lambda folder: (folder / "phases.jsonl").write_text("{}\n"), "phases.jsonl: line 1 is damaged"),
    (lambda folder: (folder / "history.jsonl").write_bytes((folder / "history.jsonl").read_bytes()[:-5]), "is cut short"),
    (lambda folder: (folder / "history.jsonl").write_text(""), "is cut short"),
    (lambda folder: (folder / "slimmed_param.pkl").write_bytes(b"x"), "slimmed_param.pkl")])
def test_a_search_with_a_damaged_file_is_not_taken(searched, damage, message):
    damage(searched)
    with pytest.raises(EkgError, match=message):
        run_folder.check_search(searched, utils.read_json(searched / "arguments.json"))


def test_the_search_of_another_network_is_not_taken(searched):
    with pytest.raises(EkgError, match="other arguments.*\n  trained_param: 'x' there, 'y' here$"):
        run_folder.check_search(searched, utils.read_json(searched / "arguments.json") | {"trained_param": "y"})
