import json
import os
import shutil
import subprocess

import numpy as np
import pytest

import ekg
from ekg.commands import train_script
from ekg.errors import EkgError
from ekg.run import arguments
from ekg.run.folder import RunFolder
from ekg.run.job import Job
from ekg.run.settings import JobSettings, RunSettings
from ekg.searching.settings import SearchSettings
from tests.helpers.models import make_data


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize("state", ["branch", "packed", "detached"])
def test_the_revision_is_that_of_the_checkout(state, tmp_path):
    def git(*command):
        return subprocess.run(
            ["git", "-C", str(tmp_path), *command],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ
            | {
                "GIT_AUTHOR_NAME": "a",
                "GIT_AUTHOR_EMAIL": "a",
                "GIT_COMMITTER_NAME": "a",
                "GIT_COMMITTER_EMAIL": "a",
            },
        ).stdout.strip()

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "first")
    if state == "packed":
        git("pack-refs", "--all")
    elif state == "detached":
        git("checkout", "--quiet", "--detach")
    assert arguments._revision(tmp_path / ".git") == git("rev-parse", "HEAD")


def test_a_program_outside_a_checkout_has_no_revision(tmp_path):
    assert arguments._revision(tmp_path / ".git") is None
    assert set(arguments.origin()) == {"revision", "machine", "cores"}


def test_the_hash_of_the_code_is_of_every_source_file(tmp_path):
    """Workers compare it: a change in any folder of the sources is noticed, one beside them is
    not.
    """
    sources = (
        "op_utils.py",
        "ekg/io/files.py",
        "ekg/graph/calls.py",
        "nets/resnet.py",
        "dataloader/cifar.py",
    )
    for name in (*sources, "tests/test_op_utils.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    hashes = [arguments.hash_code(tmp_path, train_script.SOURCES)]
    for name in sources:
        (tmp_path / name).write_text("two")
        hashes.append(arguments.hash_code(tmp_path, train_script.SOURCES))
    (tmp_path / "tests/test_op_utils.py").write_text("two")
    assert (
        len(set(hashes)) == 6 and arguments.hash_code(tmp_path, train_script.SOURCES) == hashes[-1]
    )


def make_job(tiny_resnet, path, **settings):
    supernet = ekg.Supernet(tiny_resnet)
    return Job(JobSettings(**settings), make_data(), supernet, ekg.Compute(), RunFolder(path))


def scores(context):
    return context.supernet.layout.num_channels * [1.0]


def test_arguments_are_plain_values_and_texts_of_all_others(tiny_resnet, tmp_path):
    class Own(ekg.Target):
        """Costs nothing."""

    settings = {"search": SearchSettings(criterion=scores), "run": RunSettings(val_batch_size=64)}
    job = make_job(tiny_resnet, tmp_path, **settings)
    found, unknown = arguments.of_job(job, {"epochs": 3, "target": Own(), "augment": None})
    assert json.loads(json.dumps(found)) and not unknown
    assert found["criterion"].startswith("scores ") and found["target"].split()[0].endswith("Own")
    assert (found["epochs"], found["augment"], found["seed"]) == (3, None, 0)
    assert "val_batch_size" not in found  # nothing in the result depends on it
    assert {"data", "test_data", "use_xla", "versions", "results_version"} <= set(found)


def test_workers_share_every_setting_even_those_that_leave_the_result_alone(tiny_resnet, tmp_path):
    """Evaluations of other batch sizes would wait for each other without end."""
    one, other = (
        arguments.started_with(
            make_job(tiny_resnet, tmp_path, run=RunSettings(val_batch_size=size)), {"epochs": 3}
        )
        for size in (64, 128)
    )
    assert {name for name in one if one[name] != other[name]} == {"val_batch_size"}
    assert one["epochs"] == "3" and one["target_rate"] == "0.45"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda data: np.roll(data.train.labels, 1), "data labels"),
        (lambda data: data.train.images[0] + 1, "data sample"),
        (lambda data: np.roll(data.test.labels, 1), "test_data labels"),
    ],
)
def test_workers_with_other_examples_or_labels_are_refused(monkeypatch, change, name):
    data, other, sent = make_data(), make_data(), []
    part = other.test if name.startswith("test_data") else other.train
    array = part.labels if name.endswith("labels") else part.images[0]
    array[:] = change(other)
    with monkeypatch.context() as patch:
        patch.setattr(ekg.Team, "gather_texts", lambda _, text: sent.append(text) or sent)
        ekg.Team().check_same(arguments.describe(other, False))
    monkeypatch.setattr(ekg.Team, "gather_texts", lambda _, text: [text, *sent])
    ekg.Team().check_same(arguments.describe(other, False))
    expected = rf"worker 1: .* \({name} '\w+' there, '\w+' at the chief\)"
    with pytest.raises(EkgError, match=expected):
        ekg.Team().check_same(arguments.describe(data, False))


def test_a_search_depends_on_no_setting_of_the_training(tiny_resnet, tmp_path):
    names = arguments.training_names(make_job(tiny_resnet, tmp_path))
    assert {"train_epoch", "precision", "repair"} <= set(names)
    assert not {"weight_decay", "target_rate", "val_batch_size"} & set(names)
