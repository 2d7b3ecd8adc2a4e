import keras
import numpy as np
import pytest
from keras import layers

import ekg
from ekg.landscape.subnetworks import MaskedLandscapes, Spectra
from tests.helpers.comparisons import (
    check_landscape_is_that_of_the_cut,
    evaluation_batches,
    mirrored,
    random_subnetwork,
)
from tests.helpers.models import conv_bn, randomise_


@pytest.mark.parametrize(("seed", "parameters"), [(1, "kernels"), (4, "kernels"), (4, "all")])
def test_a_subnetworks_landscape_equals_the_cut_networks(tiny_resnet, tiny_data, seed, parameters):
    supernet = ekg.Supernet(tiny_resnet)
    masked, cut = check_landscape_is_that_of_the_cut(
        supernet, random_subnetwork(supernet, seed), evaluation_batches(tiny_data), parameters
    )
    assert int(masked.support.sum()) == cut.dimension
    spectrum, expected = masked.spectrum(tolerance=1e-3), cut.spectrum(tolerance=1e-3)
    assert spectrum.condition == pytest.approx(expected.condition, rel=1e-2)


def test_kernels_that_a_batch_norm_follows_have_the_norm_of_the_whole_network(
    tiny_resnet, tiny_data
):
    supernet = ekg.Supernet(tiny_resnet)
    half = supernet.whole().with_widths({group.name: 0.5 for group in supernet.groups})
    masked = MaskedLandscapes(supernet, evaluation_batches(tiny_data))(half)
    kernels = [
        variable.numpy() for variable in tiny_resnet.trainable_variables if len(variable.shape) > 1
    ]
    parts = np.split(masked.point, np.cumsum([kernel.size for kernel in kernels])[:-1])
    assert [np.linalg.norm(part) for part in parts] == pytest.approx(
        [np.linalg.norm(kernel) for kernel in kernels], rel=1e-5
    )
    assert all(np.count_nonzero(part) < kernel.size for part, kernel in zip(parts, kernels))


def loss_of(supernet, subnetwork, batches):
    """Returns the masked network's mean cross-entropy with statistics of the batch, by Keras."""
    losses = []
    for number, images in enumerate(batches.images()):
        logits = supernet.logits(batches.normalise(images), subnetwork)
        losses.append(
            keras.losses.sparse_categorical_crossentropy(
                batches.labels(number), logits, from_logits=True
            )
        )
    return float(np.concatenate(losses).mean())


@pytest.mark.parametrize("frozen", [(), ("two_bn",), ("two_bn", "two")])
def test_restoring_kernel_norms_keeps_the_loss_even_before_frozen_batch_norms(tiny_data, frozen):
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(conv_bn(inputs, 6, "one"), 4, "two")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = randomise_(keras.Model(inputs, layers.Dense(3, name="fc")(x), name="partly"))
    # so small that what the batch norm makes of it depends on its epsilon, and on the factor
    model.get_layer("two").kernel.assign(0.003 * model.get_layer("two").kernel)
    for name in frozen:
        model.get_layer(name).trainable = False
    supernet, batches = ekg.Supernet(model), evaluation_batches(tiny_data)
    subnetwork = supernet.whole().with_kept(0, 2)
    masked, _ = check_landscape_is_that_of_the_cut(supernet, subnetwork, batches)
    expected = loss_of(supernet, subnetwork, batches)
    assert masked.loss(masked.point) == pytest.approx(expected, rel=1e-4)


def test_spectra_equal_single_landscapes_on_any_number_of_members(tiny_resnet, tiny_data):
    supernet, batches = ekg.Supernet(tiny_resnet), evaluation_batches(tiny_data)
    subnetworks, landscapes = (
        [random_subnetwork(supernet, seed) for seed in range(3)],
        MaskedLandscapes(supernet, batches),
    )
    expected = [landscapes(subnetwork).spectrum() for subnetwork in subnetworks]
    for team in (ekg.Team(), ekg.Team(mirrored(2))):
        for spectrum, alone in zip(
            Spectra(supernet, batches, ekg.Compute(team))(subnetworks), expected
        ):
            values, expected_values = spectrum.to_json(), alone.to_json()
            assert values.pop("parameters") == expected_values.pop("parameters") == "kernels"
            assert values == pytest.approx(expected_values, rel=1e-3, abs=1e-6)


def test_unknown_parameters_are_refused(tiny_resnet, tiny_data):
    with pytest.raises(ekg.EkgError, match="`parameters` must be one of .* received 'biases'"):
        MaskedLandscapes(
            ekg.Supernet(tiny_resnet), evaluation_batches(tiny_data), parameters="biases"
        )
