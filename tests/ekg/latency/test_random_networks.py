"""Kernels of random networks: every one can be made alone, and together they are the network."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings

import ekg
from ekg.devices.team import Team
from ekg.errors import EkgError
from ekg.latency import kernels
from ekg.searching.latency import Latency
from tests.helpers.comparisons import random_subnetwork
from tests.helpers.made_up_runtime import install, seconds_of
from tests.programs.random_graphs import networks


@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
@given(networks(depth=5))
def test_the_kernels_of_any_network_can_be_built_and_add_up(model):
    supernet = supernet_of(model)
    if supernet is None:
        return
    found = kernels.find_kernels(supernet.graph, supernet.layout)
    called = [call for kernel in found for call in kernel.calls]
    assert len(called) == len(set(called)) <= len(supernet.graph.calls)
    mask = supernet.mask(random_subnetwork(supernet, 1)) > 0
    for kernel in found:
        for counts in (kernel.sizes, kernel.counts(mask), [1] * len(kernel.sizes)):
            kernels.part(
                supernet.graph, supernet.layout, kernel, [max(count, 1) for count in counts]
            )
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        target = Latency(ratio=0.999).prepare(supernet, Team())
        for seed in range(3):
            subnetwork = random_subnetwork(supernet, seed)
            expected = seconds_of(supernet.cut(subnetwork)) / seconds_of(supernet.model)
            assert abs(target.cost(supernet, subnetwork) - expected) < 0.15


def supernet_of(model):
    """Returns the Supernet of a network, or None where there is nothing to prune."""
    try:
        return ekg.Supernet(model)
    except EkgError:
        return None
