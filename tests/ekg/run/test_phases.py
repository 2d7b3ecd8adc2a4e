"""A search that was stopped resumes even if the file with its knowledge is damaged; the report's
figures.
"""

import dataclasses
import io
import shutil
import signal

import numpy as np
import pytest

import utils
from ekg.devices.compute import Compute
from ekg.graph import cutting
from ekg.io import files
from ekg.network.supernet import Supernet
from ekg.process import stopping
from ekg.report.measure import measure
from ekg.run import phases, preflight
from ekg.run.folder import RunFolder
from ekg.run.job import Job
from ekg.run.reporting import report
from ekg.run.settings import JobSettings, RunSettings
from ekg.searching.objective import Objective
from ekg.searching.settings import SearchSettings
from ekg.train.evaluate import Evaluation
from tests.helpers.comparisons import random_subnetwork
from tests.helpers.damage import flip_bit_of
from tests.helpers.models import make_data, make_tiny_resnet, randomise_

SETTINGS = JobSettings(
    search=SearchSettings(target_rate=0.4, search_batch_size=40, val_per_class=16)
)
STOPPED_AFTER = 2  # search step
GREEDY = "ekg.searching.greedy"


def search(folder):
    """Runs the search of a run, or what is left of it, and returns the history without the
    seconds.
    """
    supernet = Supernet(make_tiny_resnet())
    job = Job(SETTINGS, make_data(), supernet, Compute(), folder)
    history = phases.search(job, supernet, SETTINGS.targets())
    return [dataclasses.replace(entry, seconds=0) for entry in history]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(RunFolder, history) of a search that nothing disturbed."""
    folder = RunFolder.create(tmp_path_factory.mktemp("undisturbed"), {})
    return folder, search(folder)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The RunFolder of a search that was asked to end."""
    folder, original = (
        RunFolder.create(tmp_path_factory.mktemp("stopped"), {}),
        RunFolder.append_history,
    )

    def append(self, entry):
        original(self, entry)
        if entry.step == STOPPED_AFTER:
            stopping.request(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "append_history", append)
        with pytest.raises(stopping.Stopped):
            search(folder)
    stopping.request(None)
    return folder


def leave(_):
    """The state stays as it is."""


def cut_short(folder):
    state = folder / "search_state.npz"
    state.write_bytes(state.read_bytes()[:-100])


def put_former_state(folder):
    """Keeps the state as a run of an earlier version did."""
    state = np.load(io.BytesIO(files.read_sealed(folder / "search_state.npz")))
    utils.save_pickle(
        folder / "search_state.pkl",
        {"knowledge": state["knowledge"], "num_learned": int(state["num_added"])},
    )
    (folder / "search_state.npz").unlink()


@pytest.mark.parametrize(
    ("change", "is_read", "warning"),
    [
        (leave, True, ""),
        (
            lambda folder: flip_bit_of(folder / "search_state.npz"),
            False,
            "search_state.npz: damaged",
        ),
        (cut_short, False, "search_state.npz: damaged"),
        (
            lambda folder: (folder / "search_state.npz").write_bytes(b""),
            False,
            "search_state.npz: damaged",
        ),
        (lambda folder: (folder / "search_state.npz").unlink(), False, ""),
        (put_former_state, False, ""),
    ],
)
def test_a_search_resumes_with_its_state_or_without(
    undisturbed, stopped, tmp_path, monkeypatch, caplog, change, is_read, warning
):
    folder, restored, original = RunFolder(tmp_path / "run"), [], Objective.restore_knowledge

    def restore(self, knowledge, num_added):
        restored.append(num_added)
        original(self, knowledge, num_added)

    monkeypatch.setattr(Objective, "restore_knowledge", restore)
    shutil.copytree(stopped.path, folder.path)
    change(folder)
    assert len(folder.history()) == STOPPED_AFTER + 1 < len(undisturbed[1])
    assert search(folder) == undisturbed[1]
    assert restored == ([STOPPED_AFTER + 1] if is_read else [])
    messages = [
        record.getMessage()
        for record in caplog.records
        if (record.levelname, record.name) == ("WARNING", GREEDY)
    ]
    assert len(messages) == bool(warning) and all(warning in message for message in messages)
    curves = [files.read_json_lines(run / "curves.jsonl") for run in (folder, undisturbed[0])]
    assert curves[0] == curves[1]


def test_a_finished_search_is_read_and_not_made_again(undisturbed, monkeypatch):
    monkeypatch.setattr("ekg.searching.greedy.search_toward", None)
    assert search(undisturbed[0]) == undisturbed[1]


@pytest.mark.parametrize("is_rehearsed", [True, False])
def test_networks_of_one_structure_share_an_evaluation_but_not_figures(
    tmp_path, monkeypatch, is_rehearsed, undisturbed
):
    settings = dataclasses.replace(
        SETTINGS, run=RunSettings(val_batch_size=20, runtimes=()), writes_page=False
    )
    supernet = Supernet(make_tiny_resnet())
    job = Job(settings, make_data(), supernet, Compute(), RunFolder.create(tmp_path / "run", {}))
    found = random_subnetwork(supernet, 0)
    rows = {
        name: (tmp_path / f"{name}.pkl", subnetwork)
        for name, subnetwork in (("baseline", None), ("slimmed", found), ("fine-tuned", found))
    }
    for seed, (path, subnetwork) in enumerate(rows.values()):
        model = job.model if subnetwork is None else supernet.cut(subnetwork)
        utils.save_params(randomise_(cutting.copy(model), seed), path)
    expected = [
        measure(name, Evaluation(job.load(path, subnetwork), job.test_batches), path.stat().st_size)
        for name, (path, subnetwork) in rows.items()
    ]
    assert len({row.loss for row in expected}) == 3
    made = []
    for module in ("reporting", "preflight"):
        monkeypatch.setattr(
            f"ekg.run.{module}.Evaluation", lambda *args: made.append(Evaluation(*args)) or made[-1]
        )
    shutil.copy(undisturbed[0] / "history.jsonl", job.folder.path)
    job.save(randomise_(cutting.copy(job.model), 7), "supernet_param.pkl")
    searched = Evaluation(job.load(job.folder / "supernet_param.pkl"), job.val_batches)()
    warned = []
    monkeypatch.setattr(
        "ekg.run.reporting.warn_of_lagging_statistics",
        lambda evaluation, batches, found: warned.append((evaluation(batches=batches), found)),
    )
    ready = preflight.rehearse_report(job) if is_rehearsed else None
    assert report(job, rows, ready) == expected
    assert warned == [
        (searched, undisturbed[1][0].accuracy)
    ]  # once, with the weights that were searched
    assert [one._step.count_traces() for one in made] == [1, 1]
