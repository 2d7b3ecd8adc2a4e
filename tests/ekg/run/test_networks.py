import numpy as np
import pytest

from ekg.errors import EkgError
from ekg.run.networks import Networks
from tests.helpers.comparisons import random_subnetwork


def test_networks_are_written_and_read_whole_or_cut(tiny_resnet, tmp_path):
    networks = Networks(tiny_resnet)
    subnetwork = random_subnetwork(networks.supernet, 0)
    for chosen, model in ((None, tiny_resnet), (subnetwork, networks.supernet.cut(subnetwork))):
        bias = model.get_layer("fc").bias
        networks.save(model, tmp_path / "p.pkl")
        expected = model.get_weights()
        bias.assign([1, 2, 3])  # what is read does not depend on what the network has become
        loaded = networks.load(tmp_path / "p.pkl", chosen)
        assert loaded is not model
        assert all((a == b).all() for a, b in zip(loaded.get_weights(), expected, strict=True))
        assert [layer.name for layer in loaded.layers] == [
            layer.name for layer in tiny_resnet.layers
        ]


def test_a_file_of_another_subnetwork_is_refused(tiny_resnet, tmp_path):
    networks = Networks(tiny_resnet)
    networks.save(tiny_resnet, tmp_path / "p.pkl")
    with pytest.raises(EkgError, match="p.pkl: does not fit tiny, "):
        networks.load(tmp_path / "p.pkl", networks.supernet.smallest())


def test_choices_reach_every_supernet(tiny_resnet):
    networks = Networks(tiny_resnet, {"exclude": "a1"})
    assert "a1" not in [group.name for group in networks.supernet.groups]
    assert "a1" not in [group.name for group in networks.make_supernet(tiny_resnet).groups]
    assert np.all(networks.supernet.whole() == networks.make_supernet(tiny_resnet).whole())
