import dataclasses

import pytest

import ekg
from ekg.errors import EkgError
from ekg.searching.targets import Every, Flops, Params
from tests.helpers.models import make_tiny_resnet


@dataclasses.dataclass(frozen=True)
class Widest(ekg.Target):
    """How many channels the widest group may keep, as a share of its own."""

    most: float
    name = "widest group"

    def cost(self, supernet, subnetwork):
        return max(subnetwork.num_kept(i) / group.size for i, group in enumerate(supernet.groups))


def search(data, **settings):
    supernet = ekg.Supernet(make_tiny_resnet())
    return supernet, ekg.search(supernet, data, search_batch_size=32, **settings).history


@pytest.mark.parametrize(
    ("settings", "target"),
    [
        ({"target_rate": 1.0, "target_params": 0.6}, Params(0.6)),
        ({"target_rate": 0.7, "target_params": 0.4}, Every((Flops(0.7), Params(0.4)))),
        ({"target_rate": 0.4, "target_params": 0.9}, Every((Flops(0.4), Params(0.9)))),
        ({"target_rate": 1.0, "target": Widest(0.5)}, Widest(0.5)),
    ],
)
def test_a_search_ends_where_every_target_is_reached_and_no_earlier(tiny_data, settings, target):
    supernet, history = search(tiny_data, **settings)
    reached = [target.is_reached(supernet, entry.subnetwork) for entry in history]
    assert reached == [False] * (len(history) - 1) + [True]
    ways = [target.way(supernet, entry.subnetwork) for entry in history]
    assert ways[0] == 0 and ways == sorted(ways) and ways[-1] == 1


class Corrected(ekg.Target):
    """A share of the FLOPs, which turns out to be twice what it seemed."""

    name = "corrected FLOPs"

    def __init__(self, most):
        self.most, self.factor = most, 1

    def cost(self, supernet, subnetwork):
        return self.factor * supernet.rate(subnetwork)

    def observe(self, supernet, subnetwork):
        self.factor = 2 if supernet.rate(subnetwork) < 0.95 else 1
        return {}


def test_a_target_that_measurements_move_out_of_reach_is_refused(tiny_data):
    """No channel can go any more, and the cost that was predicted before is too low."""
    supernet = ekg.Supernet(make_tiny_resnet(), min_channels=4)
    least = supernet.rate(supernet.smallest())
    with pytest.raises(EkgError, match=f"cannot be reached: the smallest .* has {2 * least:.4f}"):
        ekg.search(
            supernet,
            tiny_data,
            search_batch_size=32,
            target_rate=1.0,
            target=Corrected(1.4 * least),
            search_step=1.0,
        )


def test_the_last_step_takes_no_more_than_it_must(tiny_data):
    """One channel more in the group that was narrowed last, and the parameters are above their
    target.
    """
    supernet, history = search(tiny_data, target_rate=1.0, target_params=0.55)
    group = supernet.layout.groups.index(
        next(g for g in supernet.groups if g.name == history[-1].group)
    )
    last = history[-1].subnetwork
    wider = last.with_kept(group, last.num_kept(group) + 1)
    assert Params(0.55).cost(supernet, wider) > 0.55 >= Params(0.55).cost(supernet, last)


def test_a_target_is_reached_at_its_cost_and_not_above(tiny_resnet):
    supernet = ekg.Supernet(tiny_resnet)
    half = supernet.whole().with_widths({group.name: 0.5 for group in supernet.groups})
    share = supernet.cut(half).count_params() / tiny_resnet.count_params()
    for factor, is_reached in ((0.999, False), (1, True), (1.001, True)):
        target = Params(factor * share)
        assert target.is_reached(supernet, half) is is_reached
        assert Every((Flops(0.99), target)).is_reached(supernet, half) is is_reached


def test_costs_are_shares_of_the_unpruned_network(tiny_resnet):
    supernet = ekg.Supernet(tiny_resnet)
    half = supernet.whole().with_widths({group.name: 0.5 for group in supernet.groups})
    assert Flops(0.5).cost(supernet, half) == supernet.rate(half)
    assert (
        Params(0.5).cost(supernet, half)
        == supernet.cut(half).count_params() / tiny_resnet.count_params()
    )


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Flops(0.45), "0.45 of the FLOPs"),
        (Every((Flops(1.0), Params(0.4))), "0.4 of the parameters"),
        (
            Every((Flops(1.0), ekg.Latency(ratio=0.6))),
            "0.6 of the latency (litert, batch 1, 1 thread)",
        ),
        (
            Every((Flops(0.5), ekg.Latency(ms=4))),
            "0.5 of the FLOPs and 4 ms (litert, batch 1, 1 thread)",
        ),
        (Widest(0.5), "0.5 of the widest group"),
        (Flops(1.0), ""),
    ],
)
def test_targets_are_described_in_words(target, words):
    assert target.describe() == words
