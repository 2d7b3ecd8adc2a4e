"""A search that was stopped goes on, whatever became of the file in which it kept what it knows;
the report's figures.
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
from ekg.run.folder import RunFolder
from ekg.run.job import Job
from ekg.run.networks import Networks
from ekg.run.phases import SearchPhase
from ekg.run.reporting import ReportPhase
from ekg.searching.objective import Objective
from ekg.settings import JobSettings, RunSettings, SearchSettings
from ekg.train.evaluate import Evaluation
from tests.helpers.comparisons import random_subnetwork
from tests.helpers.damage import flip_bit_of
from tests.helpers.models import make_data, make_tiny_resnet, randomise_

SETTINGS = JobSettings(
    search=SearchSettings(target_rate=0.4, search_batch_size=40, val_per_class=16)
)
STOPPED_BEHIND = 2  # search step
GREEDY = "ekg.searching.greedy"


def search(folder):
    """Runs the search of a run, or what is left of it, and returns the history without the
    seconds.
    """
    history = SearchPhase(Job(SETTINGS, make_data(), None, Compute(), folder)).run(
        Supernet(make_tiny_resnet())
    )
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
        if entry.step == STOPPED_BEHIND:
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
def test_a_search_goes_on_with_its_state_or_without(
    undisturbed, stopped, tmp_path, monkeypatch, caplog, change, is_read, warning
):
    folder, restored, original = RunFolder(tmp_path / "run"), [], Objective.restore_knowledge

    def restore(self, knowledge, num_added):
        restored.append(num_added)
        original(self, knowledge, num_added)

    monkeypatch.setattr(Objective, "restore_knowledge", restore)
    shutil.copytree(stopped.path, folder.path)
    change(folder)
    assert len(folder.history()) == STOPPED_BEHIND + 1 < len(undisturbed[1])
    assert search(folder) == undisturbed[1]
    assert restored == ([STOPPED_BEHIND + 1] if is_read else [])
    messages = [
        record.getMessage()
        for record in caplog.records
        if (record.levelname, record.name) == ("WARNING", GREEDY)
    ]
    assert len(messages) == bool(warning) and all(warning in message for message in messages)
    curves = [files.read_json_lines(run / "curves.jsonl") for run in (folder, undisturbed[0])]
    assert curves[0] == curves[1]


def test_a_finished_search_is_read_and_not_made_again(undisturbed, monkeypatch):
    monkeypatch.setattr("ekg.run.phases.search", None)
    assert search(undisturbed[0]) == undisturbed[1]


@pytest.mark.parametrize("is_rehearsed", [True, False])
def test_networks_of_one_structure_share_an_evaluation_and_have_each_their_own_figures(
    tmp_path, monkeypatch, is_rehearsed, undisturbed
):
    settings = dataclasses.replace(
        SETTINGS, run=RunSettings(val_batch_size=20, runtimes=()), writes_page=False
    )
    networks = Networks(make_tiny_resnet())
    job = Job(settings, make_data(), networks, Compute(), RunFolder.create(tmp_path / "run", {}))
    found = random_subnetwork(networks.supernet, 0)
    rows = {
        name: (tmp_path / f"{name}.pkl", subnetwork)
        for name, subnetwork in (("baseline", None), ("slimmed", found), ("fine-tuned", found))
    }
    for seed, (path, subnetwork) in enumerate(rows.values()):
        model = networks.model if subnetwork is None else networks.supernet.cut(subnetwork)
        networks.save(randomise_(cutting.copy(model), seed), path)
    expected = [
        measure(
            name, Evaluation(networks.load(path, subnetwork), job.test_batches), path.stat().st_size
        )
        for name, (path, subnetwork) in rows.items()
    ]
    assert len({row.loss for row in expected}) == 3
    made = []
    monkeypatch.setattr(
        "ekg.run.reporting.Evaluation", lambda *args: made.append(Evaluation(*args)) or made[-1]
    )
    shutil.copy(undisturbed[0] / "history.jsonl", job.folder.path)
    networks.save(randomise_(cutting.copy(networks.model), 7), job.folder / "supernet_param.pkl")
    searched = Evaluation(networks.load(job.folder / "supernet_param.pkl"), job.val_batches)()
    warned = []
    monkeypatch.setattr(
        "ekg.run.reporting.warn_of_lagging_statistics",
        lambda evaluation, batches, found: warned.append((evaluation(batches=batches), found)),
    )
    phase = ReportPhase(job)
    if is_rehearsed:
        phase.rehearse(networks.model)
    assert phase.run(rows) == expected
    assert warned == [
        (searched, undisturbed[1][0].accuracy)
    ]  # once, with the weights that were searched
    assert [one._step.count_traces() for one in made] == [1, 1]
