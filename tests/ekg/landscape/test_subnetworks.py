import pytest

import ekg
from ekg.landscape.subnetworks import MaskedLandscapes, Spectra
from tests.helpers import check_landscape_is_that_of_the_cut, evaluation_batches, mirrored, random_subnetwork


@pytest.mark.parametrize(("seed", "parameters"), [(1, "kernels"), (4, "kernels"), (4, "all")])
def test_a_subnetworks_landscape_is_that_of_the_network_cut_out(tiny_resnet, tiny_data, seed, parameters):
    supernet = ekg.Supernet(tiny_resnet)
    masked, cut = check_landscape_is_that_of_the_cut(supernet, random_subnetwork(supernet, seed),
                                                     evaluation_batches(tiny_data), parameters)
    assert int(masked.support.sum()) == cut.dimension
    spectrum, expected = masked.spectrum(tolerance=1e-3), cut.spectrum(tolerance=1e-3)
    assert spectrum.condition == pytest.approx(expected.condition, rel=1e-2)


def test_spectra_are_those_of_single_landscapes_whoever_computes_them(tiny_resnet, tiny_data):
    supernet, batches = ekg.Supernet(tiny_resnet), evaluation_batches(tiny_data)
    subnetworks, landscapes = [random_subnetwork(supernet, seed) for seed in range(3)], MaskedLandscapes(supernet, batches)
    expected = [landscapes(subnetwork).spectrum() for subnetwork in subnetworks]
    for team in (ekg.Team(), ekg.Team(mirrored(2))):
        for spectrum, alone in zip(Spectra(supernet, batches, ekg.Compute(team))(subnetworks), expected):
            values, expected_values = spectrum.to_json(), alone.to_json()
            assert values.pop("parameters") == expected_values.pop("parameters") == "kernels"
            assert values == pytest.approx(expected_values, rel=1e-3, abs=1e-6)


def test_unknown_parameters_are_refused(tiny_resnet, tiny_data):
    with pytest.raises(ekg.EkgError, match="`parameters` must be one of .* received 'biases'"):
        MaskedLandscapes(ekg.Supernet(tiny_resnet), evaluation_batches(tiny_data), parameters="biases")
