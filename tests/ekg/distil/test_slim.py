import numpy as np

import ekg
from ekg.data.dataset import Batches
from ekg.distil.slim import restore_norms_, slim
from ekg.graph.calls import Graph
from ekg.train.evaluate import estimate_statistics_
from tests.helpers.comparisons import mirrored, relative_difference

CONVOLUTIONS = ("stem", "a1", "a2", "b1", "b2", "b3")


def check_norms_are_those_of(original, model):
    for name in CONVOLUTIONS:
        norms = [
            np.linalg.norm(network.get_layer(name).kernel.numpy()) for network in (model, original)
        ]
        np.testing.assert_allclose(*norms, rtol=1e-5)


def test_restored_norms_leave_the_function_as_it_is(tiny_resnet, images):
    supernet = ekg.Supernet(tiny_resnet)
    cut = supernet.cut(supernet.whole().with_widths({"stem": 0.5, "b2": 0.5}))
    expected = cut(images).numpy()
    restore_norms_(cut, Graph(tiny_resnet))
    assert relative_difference(cut(images), expected) < 1e-3
    check_norms_are_those_of(tiny_resnet, cut)


def test_slimming_cuts_then_takes_statistics_then_restores_norms(tiny_resnet, tiny_data, images):
    """The network kept in between is the one that is pruned: its function, but not yet its norms,
    is that of the result.
    """
    supernet, kept = ekg.Supernet(tiny_resnet), []
    subnetwork = supernet.whole().with_widths({"stem": 0.5, "b2": 0.5})
    batches = Batches(tiny_data.train, tiny_data.normalise, 32)

    def keep(make):
        kept.append(make())
        kept.append([weights.copy() for weights in kept[0].get_weights()])
        return kept[0]

    slimmed = slim(supernet, subnetwork, batches, ekg.Compute(ekg.Team(mirrored(2))), keep)
    pruned = supernet.cut(subnetwork)
    estimate_statistics_(pruned, batches)
    for weight, expected in zip(kept[1], pruned.get_weights()):
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)
    assert relative_difference(slimmed(images), pruned(images)) < 1e-3
    check_norms_are_those_of(tiny_resnet, slimmed)


def test_a_pruned_network_stored_earlier_is_not_made_again(tiny_resnet, tiny_data, images):
    supernet = ekg.Supernet(tiny_resnet)
    stored = supernet.cut(supernet.whole().with_widths({"stem": 0.5}))
    expected = stored(images).numpy()
    batches = Batches(tiny_data.train, tiny_data.normalise, 32)
    slimmed = slim(supernet, supernet.smallest(), batches, keep=lambda make: stored)
    assert relative_difference(slimmed(images), expected) < 1e-3
    check_norms_are_those_of(tiny_resnet, slimmed)
