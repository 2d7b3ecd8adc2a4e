import keras
import numpy as np
from keras import layers

import ekg
from ekg.graph.complexity import model_complexity


def test_complexity_by_hand(tiny_resnet):
    """Stem 6, a1 4, b1 5, b2 8 channels of 8x8 and 4x4 images; then half of each."""
    supernet = ekg.Supernet(tiny_resnet)

    def by_hand(stem, a1, b1, b2):
        convs = [
            (64, 9, 3, stem),
            (64, 9, stem, a1),
            (64, 9, a1, stem),
            (16, 9, stem, b1),
            (16, 9, b1, b2),
            (16, 1, stem, b2),
        ]
        norms = [(64, stem), (64, a1), (64, stem), (16, b1), (16, b2), (16, b2)]
        flops = (
            sum(p * k * i * o for p, k, i, o in convs) + sum(2 * p * c for p, c in norms) + b2 * 3
        )
        params = sum(k * i * o for _, k, i, o in convs) + sum(4 * c for _, c in norms) + b2 * 3 + 3
        return ekg.Complexity(params, flops)

    assert (
        supernet.complexity(supernet.whole())
        == model_complexity(tiny_resnet)
        == by_hand(6, 4, 5, 8)
    )
    half = supernet.whole().with_widths({group.name: 0.5 for group in supernet.groups})
    assert supernet.complexity(half) == model_complexity(supernet.cut(half)) == by_hand(3, 2, 3, 4)
    assert supernet.complexity(supernet.smallest()) == by_hand(1, 1, 1, 1)
    assert supernet.rate(half) == by_hand(3, 2, 3, 4).flops / by_hand(6, 4, 5, 8).flops


def test_each_filter_of_a_depthwise_or_grouped_convolution_reads_a_part_of_the_channels():
    inputs = keras.Input((8, 8, 6))
    depthwise = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(inputs)
    assert model_complexity(keras.Model(inputs, depthwise)) == ekg.Complexity(
        9 * 6 * 2 + 12, 64 * 9 * 6 * 2
    )
    grouped = layers.Conv2D(4, 3, padding="same", groups=2)(inputs)
    assert model_complexity(keras.Model(inputs, grouped)) == ekg.Complexity(
        9 * 3 * 4 + 4, 64 * 9 * 3 * 4
    )


def test_a_layer_that_is_called_twice_costs_twice_and_is_stored_once():
    inputs = keras.Input((8, 8, 4))
    conv = layers.Conv2D(4, 1, use_bias=False)
    assert model_complexity(keras.Model(inputs, conv(conv(inputs)))) == ekg.Complexity(
        16, 2 * 64 * 16
    )


def test_the_parameters_of_an_unknown_layer_count_and_its_missing_flops_are_reported(caplog):
    inputs = keras.Input((8, 8, 4))
    outputs = layers.SpectralNormalization(layers.Dense(2, use_bias=False), name="mixer")(
        layers.Conv2D(5, 1, use_bias=False)(inputs)
    )
    assert model_complexity(keras.Model(inputs, outputs)) == ekg.Complexity(20 + 10 + 2, 64 * 20)
    assert (
        "the FLOPs of 'mixer' (SpectralNormalization) in " in caplog.text
        and "are not counted" in caplog.text
    )


def test_leaving_out_channels_saves_at_most_the_sum_of_their_limits(tiny_resnet):
    """The limit of a channel of the first group, by hand; then random choices of channels."""
    supernet = ekg.Supernet(tiny_resnet)
    most = supernet.table.most_saved(np.ones(supernet.layout.num_channels + 1))
    # Group "stem" of 6 channels: written by stem (3 channels read) and a2 (4), read by a1 (4
    # written), b1 (5) and b3 (8), with two norms.
    flops = 64 * 9 * (3 + 4) + 64 * 9 * 4 + 16 * 9 * 5 + 16 * 8 + 2 * 2 * 64
    params = 9 * (3 + 4) + 9 * (4 + 5) + 8 + 2 * 4
    stem = supernet.layout.channels(0)
    assert most.flops[stem].tolist() == [flops] * 6 and most.params[stem].tolist() == [params] * 6
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = np.append(rng.random(supernet.layout.num_channels) < 0.8, 1).astype(float)
        fewer = mask * np.append(rng.random(supernet.layout.num_channels) < 0.8, 1)
        before, after = supernet.table.count(mask), supernet.table.count(fewer)
        limit, removed = supernet.table.most_saved(mask), (mask > fewer)[:-1]
        assert before.flops - after.flops <= limit.flops[removed].sum() + 1e-6
        assert before.params - after.params <= limit.params[removed].sum() + 1e-6
