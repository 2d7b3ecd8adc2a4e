"""The promise for small networks of well-known kinds."""

import pytest

import ekg
from ekg.testing import check_prunable
from tests.helpers.networks import check_network, flops_by_hand, regnet, resnet, shufflenet, unet

OUTPUT = "output of the network"


def test_a_resnet_by_operators_is_pruned_to_a_fiftieth():
    supernet = check_network(resnet(), 0.02)
    assert supernet.layout.closed == {"fc": OUTPUT}
    assert [group.name for group in supernet.groups][:2] == ["stem", "s0b0_1"]
    assert next(group for group in supernet.groups if group.name == "stem").writers == (
        "stem",
        "s0b0_2",
        "s0b1_2",
    )


@pytest.mark.parametrize("squeeze", [False, True])
def test_a_regnet_is_pruned_to_a_fiftieth_and_convolution_groups_shrink_equally(squeeze):
    supernet = check_network(regnet(squeeze=squeeze), 0.02)
    assert supernet.layout.closed == {"fc": OUTPUT}
    smallest = supernet.cut(supernet.smallest())
    assert [smallest.get_layer(name).kernel.shape for name in ("s0b0_2", "s1b1_2")] == [
        (3, 3, 1, 2),
        (3, 3, 1, 4),
    ]


@pytest.mark.parametrize("split", ["split", "slice"])
def test_a_shufflenet_is_pruned_where_channels_are_not_shuffled(split):
    supernet = check_network(shufflenet(split), 1)
    inspection = ekg.inspect(supernet.model)
    closed = {
        "down0_0": "read by 'down0_shuffle' (Reshape)",
        "down0_2": "read by 'down0_shuffle' (Reshape)",
        "unit0_2": "read by 'unit0_shuffle' (Reshape)",
        "down1_0": "read by 'down1_shuffle' (Reshape)",
        "down1_2": "read by 'down1_shuffle' (Reshape)",
        "unit1_2": "read by 'unit1_shuffle' (Reshape)",
        "fc": OUTPUT,
    }
    assert inspection.closed == closed
    assert {group.name for group in inspection.groups} == {
        "stem",
        "down0_1",
        "unit0_1",
        "down1_1",
        "unit1_1",
        "last",
    }


def test_a_unet_is_pruned_except_for_its_maps():
    supernet = check_prunable(unet(), subnetworks=1)
    assert ekg.inspect(supernet.model).closed == {"maps": OUTPUT}
    smallest = supernet.cut(supernet.smallest())
    assert flops_by_hand(smallest) == supernet.complexity(supernet.smallest()).flops
    assert (
        smallest.output_shape == (None, 32, 32, 2)
        and smallest.get_layer("skip0").output.shape[-1] == 2
    )
    assert supernet.rate(supernet.smallest()) < 0.02
