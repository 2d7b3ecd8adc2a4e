import pytest

import utils
from ekg.run_folder import OWN_NAMES, RunFolder


def test_a_run_folder_keeps_to_its_arguments(tmp_path):
    folder = RunFolder(tmp_path / "a" / "run", {"seed": 1, "rate": 0.5})
    assert utils.read_json(folder / "arguments.json") == {"seed": 1, "rate": 0.5}
    RunFolder(tmp_path / "a" / "run", {"seed": 1, "rate": 0.5})
    with pytest.raises(utils.UserError, match="other arguments; .*\n  rate: 0.5 there, 0.4 here\n  seed: 1 there, 2 here$"):
        RunFolder(tmp_path / "a" / "run", {"seed": 2, "rate": 0.4})


@pytest.mark.parametrize("overwrite", [False, True])
def test_another_tools_arguments_file_makes_no_run(tmp_path, overwrite):
    (tmp_path / "arguments.json").write_text('{"mine": 1}')
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(utils.UserError, match="not empty and holds no run"):
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
    with pytest.raises(utils.UserError, match="not empty and holds no run"):
        RunFolder(tmp_path, {}, overwrite)
    with pytest.raises(utils.UserError, match="cannot be written"):
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
