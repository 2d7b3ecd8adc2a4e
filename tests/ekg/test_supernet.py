import numpy as np
import tensorflow as tf

import ekg
from ekg import cutting
from tests.helpers import random_subnetwork, relative_difference


def test_complexity_by_hand(tiny_resnet):
    """Stem 6, a1 4, b1 5, b2 8 channels of 8x8 and 4x4 images; then half of each."""
    supernet = ekg.Supernet(tiny_resnet)

    def by_hand(stem, a1, b1, b2):
        convs = [(64, 9, 3, stem), (64, 9, stem, a1), (64, 9, a1, stem),
                 (16, 9, stem, b1), (16, 9, b1, b2), (16, 1, stem, b2)]
        norms = [(64, stem), (64, a1), (64, stem), (16, b1), (16, b2), (16, b2)]
        flops = sum(p * k * i * o for p, k, i, o in convs) + sum(2 * p * c for p, c in norms) + b2 * 3
        params = sum(k * i * o for _, k, i, o in convs) + sum(4 * c for _, c in norms) + b2 * 3 + 3
        return ekg.Complexity(params, flops)
    assert supernet.complexity(supernet.whole()) == by_hand(6, 4, 5, 8)
    half = supernet.whole().with_widths({group.name: 0.5 for group in supernet.groups})
    assert supernet.complexity(half) == by_hand(3, 2, 3, 4)
    assert supernet.complexity(supernet.smallest()) == by_hand(1, 1, 1, 1)
    assert supernet.rate(half) == by_hand(3, 2, 3, 4).flops / by_hand(6, 4, 5, 8).flops


def test_the_whole_subnetwork_is_the_model(tiny_resnet, images):
    supernet = ekg.Supernet(tiny_resnet)
    assert relative_difference(supernet.logits(images, supernet.whole(), training=False), tiny_resnet(images)) < 1e-5


def test_masked_and_cut_networks_agree_and_nothing_is_changed(tiny_resnet, images):
    supernet = ekg.Supernet(tiny_resnet)
    before = tiny_resnet.get_weights()
    for seed in range(10):
        subnetwork = random_subnetwork(supernet, seed)
        cut = supernet.cut(subnetwork)
        for training in (False, True):  # training=True moves the cut network's statistics, so it comes last
            masked = supernet.logits(images, subnetwork, training=training)
            assert relative_difference(cut(images, training=training), masked) < 1e-4
    assert all((old == new).all() for old, new in zip(before, tiny_resnet.get_weights()))


def test_the_classifier_keeps_its_norm(tiny_resnet):
    supernet = ekg.Supernet(tiny_resnet)
    cut = supernet.cut(supernet.whole().with_widths({"b2": 0.4}))
    kernel, whole = cut.get_layer("fc").kernel.numpy(), tiny_resnet.get_layer("fc").kernel.numpy()
    assert kernel.shape == (4, 3)
    np.testing.assert_allclose(kernel, whole[:4] * np.linalg.norm(whole) / np.linalg.norm(whole[:4]), rtol=1e-6)


def test_one_trace_serves_all_subnetworks(tiny_resnet, images):
    supernet = ekg.Supernet(tiny_resnet)
    for seed in range(5):
        supernet.logits(images, random_subnetwork(supernet, seed))
    assert supernet._forward.experimental_get_tracing_count() == 1


def test_a_stretch_of_the_program_goes_on_where_another_ended(tiny_resnet, images):
    supernet = ekg.Supernet(tiny_resnet)
    weights, mask = supernet.weights(), tf.constant(supernet.mask(random_subnetwork(supernet, 1)))
    expected = supernet.forward(weights, mask, tf.constant(images))
    for group in range(len(supernet.groups)):
        position = supernet.first_gate(group)
        live = supernet.run(weights, mask, {0: tf.constant(images)}, stop=position)
        state = {tensor: live[tensor] for tensor in supernet.live_at(position)}
        logits = supernet.run(weights, mask, state, start=position)[supernet.graph.output]
        np.testing.assert_array_equal(logits, expected)


def test_restored_norms_leave_the_function_as_it_is(tiny_resnet, images):
    supernet = ekg.Supernet(tiny_resnet)
    cut = supernet.cut(supernet.whole().with_widths({"stem": 0.5, "b2": 0.5}))
    expected = cut(images).numpy()
    cutting.restore_norms_(cut, tiny_resnet)
    assert relative_difference(cut(images), expected) < 1e-3
    for name in ("stem", "a1", "a2", "b1", "b2", "b3"):
        norms = [np.linalg.norm(model.get_layer(name).kernel.numpy()) for model in (cut, tiny_resnet)]
        np.testing.assert_allclose(*norms, rtol=1e-5)
