"""Losses with one group narrowed; networks that are cut out are the oracle."""

import numpy as np
import pytest

import ekg
from ekg.errors import EkgError
from ekg.searching.criteria import CriterionContext, score_channels
from ekg.searching.objective import Objective
from ekg.searching.sensitivity import measure_sensitivity
from tests.helpers.models import make_data, make_tiny_resnet


@pytest.fixture(scope="module")
def measured():
    supernet, data = ekg.Supernet(make_tiny_resnet()), make_data()
    return supernet, data, measure_sensitivity(supernet, data, shares=(0.25, 0.5))


def loss_of(model, data):
    """Returns the mean cross-entropy of a network on D_val in one batch, by NumPy."""
    split = data.last_of_each_class(32, 0)
    images = data.normalise(split.images)
    logits = np.asarray(model(images, training=True), np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    log_shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -log_shares[np.arange(len(split.labels)), split.labels].mean()


def test_losses_equal_those_of_networks_with_one_group_cut(measured):
    supernet, data, sensitivity = measured
    assert sensitivity.shares == (0.5, 0.25)
    assert [group.name for group in sensitivity.groups] == [group.name for group in supernet.groups]
    assert sensitivity.loss == pytest.approx(loss_of(supernet.cut(supernet.whole()), data), 1e-4)
    batches = data.batches(data.last_of_each_class(32, 0), 96)
    objective = Objective(supernet, batches, "none")
    scores = score_channels("ekg", CriterionContext(objective, supernet.whole(), 0))
    ranked = supernet.whole().ranked(supernet.layout.by_group(scores))
    for index, group in enumerate(sensitivity.groups):
        narrowed = [ranked.with_width(index, share) for share in (0.5, 0.25)]
        assert group.kept == tuple(subnetwork.num_kept(index) for subnetwork in narrowed)
        expected = [loss_of(supernet.cut(subnetwork), data) for subnetwork in narrowed]
        assert group.losses == pytest.approx(expected, rel=1e-4)


def test_the_table_has_a_row_per_group(measured):
    supernet, _, sensitivity = measured
    lines = str(sensitivity).splitlines()
    assert len(lines) == 2 + len(supernet.groups)
    assert "at 0.5" in lines[1] and lines[2].startswith(supernet.groups[0].name)


@pytest.mark.parametrize("shares", [(), (0.5, 1.0), (0.0,)])
def test_shares_out_of_range_are_refused(measured, shares):
    supernet, data, _ = measured
    with pytest.raises(EkgError, match="between 0 and 1"):
        measure_sensitivity(supernet, data, shares=shares)
