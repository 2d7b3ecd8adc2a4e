"""What holds of every network, and of every criterion: one battery over all of them."""

import json

import numpy as np
import pytest
import tensorflow as tf

import ekg
import nets
import utils
from ekg.data.dataset import Batches
from ekg.graph.complexity import model_complexity
from ekg.searching.criteria import CRITERIA, CriterionContext
from ekg.searching.objective import Objective
from tests.helpers.comparisons import random_subnetwork, relative_difference
from tests.helpers.models import make_tiny_resnet, randomise_

CLASSES, NUM_IMAGES = 10, 3


# Of the networks that differ in nothing but their depth, one.
DEPTHS_ALONE = ("ResNet-32", "ResNet-44", "ResNet-110", "ResNet-34")


@pytest.fixture(scope="module", params=[arch for arch in nets.ARCHS if arch not in DEPTHS_ALONE])
def pruned(request):
    """(arch, supernet of random weights, sub-network, the network cut out, images)."""
    arch = request.param
    shape = nets.ARCHS[arch].SPECS[arch].image_shape
    supernet = ekg.Supernet(randomise_(nets.build(arch, CLASSES)))
    subnetwork = random_subnetwork(supernet, seed=len(supernet.groups))
    images = np.random.default_rng(0).normal(size=(NUM_IMAGES, *shape)).astype(np.float32)
    yield arch, supernet, subnetwork, supernet.cut(subnetwork), images
    tf.keras.backend.clear_session()


def test_every_network_has_names_and_logits(pruned):
    arch, supernet, *_ = pruned
    names = [layer.name for layer in supernet.model.layers]
    assert len(set(names)) == len(names) and supernet.model.output_shape == (None, CLASSES)
    assert {writer for group in supernet.groups for writer in group.writers} == set(
        nets.ARCHS[arch].conv_widths(arch)
    )


def outputs(model, images, training=False):
    """Returns what a model gives; calling it in training would move its statistics."""
    return model.stateless_call(
        model.trainable_variables, model.non_trainable_variables, images, training=training
    )[0]


def test_every_masked_network_equals_the_cut_stored_and_reloaded_one(pruned, tmp_path):
    arch, supernet, subnetwork, cut, images = pruned
    utils.save_params(cut, tmp_path / "params.pkl")
    loaded = nets.from_params(arch, utils.load_params(tmp_path / "params.pkl"), CLASSES)
    arrays = utils.model_params(loaded)
    assert (
        all((arrays.pop(name) == array).all() for name, array in utils.model_params(cut).items())
        and not arrays
    )
    for training in (False, True):
        masked = supernet.logits(images, subnetwork, training=training)
        assert masked.shape == (NUM_IMAGES, CLASSES)
        assert relative_difference(outputs(cut, images, training), masked) < 1e-4


def test_every_networks_complexity_is_that_of_the_network_cut_out(pruned):
    _, supernet, subnetwork, cut, _ = pruned
    assert model_complexity(cut) == supernet.complexity(subnetwork)
    assert cut.count_params() == supernet.complexity(subnetwork).params
    assert supernet.model.count_params() == supernet.complexity(supernet.whole()).params
    assert (
        supernet.rate(subnetwork)
        == model_complexity(cut).flops / model_complexity(supernet.model).flops
        < 1
    )


def test_every_networks_cut_can_be_cut_again(pruned):
    """The cut of a cut keeps what both keep: one channel a group, chosen in two steps, as in
    one.
    """
    _, supernet, subnetwork, cut, images = pruned
    again = ekg.Supernet(cut)
    assert [group.name for group in again.groups] == [group.name for group in supernet.groups]
    assert [group.size for group in again.groups] == [
        subnetwork.num_kept(i) for i in range(len(supernet.groups))
    ]
    smallest = again.cut(again.smallest())
    # The first kept channel in ascending order is what the smallest sub-network of the cut keeps.
    order = [
        sorted(range(group.size), key=lambda channel, i=i: channel != subnetwork.kept(i)[0])
        for i, group in enumerate(supernet.groups)
    ]
    at_once = ekg.Subnetwork(subnetwork.names, tuple(map(tuple, order)), (1,) * len(order))
    assert (
        model_complexity(smallest)
        == supernet.complexity(at_once)
        == supernet.complexity(supernet.smallest())
    )
    assert (
        relative_difference(outputs(smallest, images), outputs(supernet.cut(at_once), images))
        < 1e-4
    )


def test_every_networks_subnetwork_goes_to_json_and_back(pruned):
    _, _, subnetwork, *_ = pruned
    assert ekg.Subnetwork.from_json(json.loads(json.dumps(subnetwork.to_json()))) == subnetwork


# ---------------------------------------------------------------- criteria


def scores_of(model, data, criterion, subnetwork=None):
    supernet = ekg.Supernet(model)
    objective = Objective(supernet, Batches(data.test, data.normalise, 8))
    objective.add_knowledge(supernet.whole())
    return supernet, CRITERIA[criterion](
        CriterionContext(objective, subnetwork or supernet.whole())
    )


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_every_criterion_scores_every_kept_channel_and_no_other(tiny_data, criterion):
    model = make_tiny_resnet()
    subnetwork = random_subnetwork(ekg.Supernet(model), 3)
    supernet, scores = scores_of(model, tiny_data, criterion, subnetwork)
    kept = supernet.mask(subnetwork)[:-1] > 0
    assert scores.shape == kept.shape and scores.dtype == np.float64 and np.isfinite(scores).all()
    assert not scores[~kept].any() and (scores[kept] > 0).mean() > 0.9


# What is drawn for a channel hangs on its number, not on what it computes.
@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "random"])
def test_every_criterion_follows_a_channel_that_moves(tiny_data, criterion):
    """With the filters of a group in another order, and what reads them likewise, the scores are in
    that order.
    """
    model, moved = make_tiny_resnet(), make_tiny_resnet()
    order = np.array([2, 0, 3, 1])
    for name in ("a1", "a1_bn"):
        layer = moved.get_layer(name)
        layer.set_weights([weight[..., order] for weight in layer.get_weights()])
    reader = moved.get_layer("a2")
    reader.set_weights([reader.get_weights()[0][:, :, order]])
    supernet, scores = scores_of(model, tiny_data, criterion)
    _, moved_scores = scores_of(moved, tiny_data, criterion)
    group = [group.name for group in supernet.groups].index("a1")
    for i, (found, expected) in enumerate(
        zip(supernet.layout.by_group(moved_scores), supernet.layout.by_group(scores))
    ):
        np.testing.assert_allclose(
            found, expected[order] if i == group else expected, rtol=2e-3, atol=1e-5
        )


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_every_criterion_searches_to_the_target(tiny_resnet, tiny_data, criterion):
    result = ekg.search(ekg.Supernet(tiny_resnet), tiny_data, target_rate=0.5, criterion=criterion)
    rates = [entry.rate for entry in result.history]
    assert rates == sorted(rates, reverse=True) and rates[-2] > 0.5 >= rates[-1]
