import numpy as np

import ekg
from ekg.data.dataset import Batches, mixed_order
from ekg.distil.slim import cut_with_statistics, restore_norms_
from ekg.graph.calls import Graph
from ekg.train.batch_norm_statistics import estimate_statistics_
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
    """The pruned network computes what the slimmed one does, but has not its norms yet."""
    supernet = ekg.Supernet(tiny_resnet)
    subnetwork = supernet.whole().with_widths({"stem": 0.5, "b2": 0.5})
    batches = Batches(tiny_data.train, tiny_data.normalise, 32)
    compute = ekg.Compute(ekg.Team(mirrored(2)))
    slimmed = cut_with_statistics(supernet, subnetwork, batches, compute)
    pruned = supernet.cut(subnetwork)
    estimate_statistics_(pruned, batches)
    for weight, expected in zip(slimmed.get_weights(), pruned.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-5, atol=1e-6)
    restore_norms_(slimmed, supernet.graph)
    assert relative_difference(slimmed(images), pruned(images)) < 1e-3
    check_norms_are_those_of(tiny_resnet, slimmed)


def test_the_phase_does_both(tiny_resnet, tiny_data):
    supernet = ekg.Supernet(tiny_resnet)
    subnetwork = supernet.whole().with_widths({"stem": 0.5})
    slimmed = ekg.slim(supernet, subnetwork, tiny_data, search_batch_size=32)
    batches = tiny_data.batches(tiny_data.train, 32, mixed_order(tiny_data.strata))
    expected = cut_with_statistics(supernet, subnetwork, batches)
    restore_norms_(expected, supernet.graph)
    check_norms_are_those_of(tiny_resnet, slimmed)
    for weight, other in zip(slimmed.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(weight, other, rtol=1e-6, atol=1e-7)
