import numpy as np
import pytest

import ekg
from ekg.errors import EkgError
from ekg.run.folder import RunFolder
from ekg.run.job import Job
from ekg.run.settings import JobSettings
from tests.helpers.comparisons import random_subnetwork
from tests.helpers.models import make_data


def make_job(model, path, **choices):
    supernet = ekg.Supernet(model, **choices)
    return Job(JobSettings(), make_data(), supernet, ekg.Compute(), RunFolder(path))


def test_networks_are_written_and_read_whole_or_cut(tiny_resnet, tmp_path):
    job = make_job(tiny_resnet, tmp_path)
    subnetwork = random_subnetwork(job.supernet, 0)
    for chosen, model in ((None, tiny_resnet), (subnetwork, job.supernet.cut(subnetwork))):
        bias = model.get_layer("fc").bias
        job.save(model, "p.pkl")
        expected = model.get_weights()
        bias.assign([1, 2, 3])  # what is read does not depend on what the network has become
        loaded = job.load(tmp_path / "p.pkl", chosen)
        assert loaded is not model
        assert all((a == b).all() for a, b in zip(loaded.get_weights(), expected, strict=True))
        assert [layer.name for layer in loaded.layers] == [
            layer.name for layer in tiny_resnet.layers
        ]
        job.load_(model, tmp_path / "p.pkl")
        assert all((a == b).all() for a, b in zip(model.get_weights(), expected, strict=True))


def test_a_file_of_another_subnetwork_is_refused(tiny_resnet, tmp_path):
    job = make_job(tiny_resnet, tmp_path)
    job.save(tiny_resnet, "p.pkl")
    with pytest.raises(EkgError, match="p.pkl: does not fit tiny, "):
        job.load(tmp_path / "p.pkl", job.supernet.smallest())


def test_a_phase_that_is_over_is_not_run_again(tiny_resnet, tmp_path):
    job, runs = make_job(tiny_resnet, tmp_path), []

    def make():
        runs.append("baseline")
        job.save(tiny_resnet, "baseline_param.pkl")

    assert not job.is_done("baseline")
    for _ in range(2):
        job.once("baseline", make)
    assert runs == list(job.folder.phases()) == ["baseline"] and job.is_done("baseline")
    (tmp_path / "baseline_param.pkl").unlink()
    job.once("baseline", make)
    assert len(runs) == 2


def test_choices_reach_every_supernet(tiny_resnet):
    supernet = ekg.Supernet(tiny_resnet, exclude="a1", multiple_of=2)
    remade = supernet.remade(tiny_resnet)
    assert "a1" not in [group.name for group in remade.groups]
    assert supernet.choices == remade.choices
    assert np.all(supernet.whole() == remade.whole())
    assert all(group.multiple == 2 for group in remade.groups)
