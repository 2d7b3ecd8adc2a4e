import numpy as np
import pytest

import utils
from ekg.errors import EkgError
from ekg.io import files
from ekg.network.subnetwork import Subnetwork
from ekg.process.memory import Peak
from ekg.run import reuse
from ekg.run.folder import RunFolder
from ekg.searching.history import HistoryEntry

TRAINING = ("train_epoch",)  # what the search does not depend on


@pytest.fixture
def searched(tmp_path):
    """The RunFolder of a run that is behind its search and in its fine-tuning."""
    folder = RunFolder.create(
        tmp_path / "searched",
        {"trained_param": "x", "target_rate": 0.5, "seed": 1, "train_epoch": 1},
    )
    for name in ("supernet_param.pkl", "slimmed_param.pkl"):
        utils.save_pickle(folder / name, {"kernel": np.arange(3.0)})
    subnetwork = Subnetwork(("stem",), ((0, 1, 2, 3),), (1.0,))
    for step, (rate, width) in enumerate(((1.0, 1.0), (0.7, 0.75), (0.5, 0.5))):
        folder.append_history(
            HistoryEntry(
                step,
                None if step == 0 else "stem",
                subnetwork.with_width(0, width),
                rate,
                0.1,
                0.9,
                -0.1,
                1,
                0.5,
            )
        )
        folder.log_curves("search", step, {"rate": rate})
    folder.log_curves("fine-tune", 1, {"loss": 0.5})
    for phase in ("search", "slim", "fine-tune"):
        folder.log_phase(phase, 1.0, Peak())
    return folder


def test_a_search_is_taken_over_without_the_training_after_it(searched, tmp_path, monkeypatch):
    """Also if the taking is killed before its end and started again."""
    arguments = {"trained_param": "x", "target_rate": 0.5, "seed": 1, "train_epoch": 9}
    reuse.check_search(searched, arguments, TRAINING)
    folder, original = RunFolder.create(tmp_path / "run", arguments), files.append_json_line

    def dies(path, value):
        if value.get("phase") == "slim":
            raise KeyboardInterrupt
        original(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(files, "append_json_line", dies)
        with pytest.raises(KeyboardInterrupt):
            reuse.take_search(folder, searched)
    assert not folder.is_searched()
    folder = RunFolder.prepare(tmp_path / "run", arguments)
    reuse.take_search(folder, searched)
    assert folder.is_searched()
    assert [line["step"] for line in files.read_json_lines(folder / "curves.jsonl")] == [0, 1, 2]
    assert [line["phase"] for line in files.read_json_lines(folder / "phases.jsonl")] == [
        "search",
        "slim",
    ]
    for name in ("supernet_param.pkl", "history.jsonl", "slimmed_param.pkl"):
        assert (folder / name).read_bytes() == (searched / name).read_bytes()
    assert folder.history() == searched.history()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "curves.jsonl").unlink(), "its search is not finished"),
        (
            lambda folder: (folder / "history.jsonl").write_bytes(
                (folder / "history.jsonl").read_bytes()[:-5]
            ),
            "is cut short",
        ),
        (lambda folder: (folder / "history.jsonl").write_text(""), "is cut short"),
        (
            lambda folder: (folder / "slimmed_param.pkl").write_bytes(b"x"),
            "slimmed_param.pkl: damaged",
        ),
    ],
)
def test_a_search_with_a_damaged_file_is_not_taken_over(searched, damage, message):
    damage(searched)
    with pytest.raises(EkgError, match=message):
        reuse.check_search(searched, searched.arguments(), TRAINING)


def test_the_search_of_another_network_is_not_taken_over(searched):
    message = (
        "`search_from` .*: was searched with other arguments.*\n  trained_param: 'x' there, 'y' "
        "here$"
    )
    with pytest.raises(EkgError, match=message):
        reuse.check_search(
            searched, searched.arguments() | {"trained_param": "y", "train_epoch": 9}, TRAINING
        )


def test_a_run_that_trained_its_network_is_identified_by_the_networks_file(searched):
    arguments = searched.arguments() | {"trained_param": None}
    files.write_json(searched / "arguments.json", arguments)
    (searched / "baseline_param.pkl").write_bytes(b"weights")
    digest = files.sha256(searched / "baseline_param.pkl")
    reuse.check_search(searched, arguments | {"trained_param": digest}, TRAINING)
    with pytest.raises(EkgError, match="trained_param: .* there, 'other' here"):
        reuse.check_search(searched, arguments | {"trained_param": "other"}, TRAINING)


def test_a_path_that_is_no_run_folder_is_named(tmp_path):
    with pytest.raises(EkgError, match="`search_from` .*: is no run folder"):
        reuse.check_search(RunFolder(tmp_path), {}, TRAINING)
