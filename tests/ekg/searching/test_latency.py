"""Latency as a target, in a runtime whose time is known."""

import numpy as np
import pytest

import ekg
from ekg.devices.team import Team
from ekg.errors import EkgError
from ekg.io import files
from ekg.latency.timing import Conditions
from ekg.searching.latency import Latency
from ekg.searching.proposals import propose
from tests.helpers import networks, small_jobs
from tests.helpers.made_up_runtime import install, seconds_of
from tests.helpers.models import make_tiny_resnet


@pytest.fixture
def clock(monkeypatch):
    return install(monkeypatch)


def search(data, target, **options):
    supernet = ekg.Supernet(make_tiny_resnet())
    return supernet, ekg.search(
        supernet, data, search_batch_size=32, val_per_class=8, target=target, **options
    ).history


def share(supernet, subnetwork):
    """Returns the latency of a sub-network as a share of the unpruned network's, in the made-up
    runtime.
    """
    return seconds_of(supernet.cut(subnetwork)) / seconds_of(supernet.model)


def test_a_search_ends_at_the_measured_latency_and_no_earlier(clock, tiny_data):
    supernet, history = search(tiny_data, Latency(ratio=0.7))
    shares = [share(supernet, entry.subnetwork) for entry in history]
    assert shares[-1] <= 0.7 < min(shares[:-1])
    last = history[-1].costs["latency"]
    assert (
        last["measured"]["ratio"] == pytest.approx(shares[-1])
        and last["conditions"] == "litert, batch 1, 1 thread"
    )
    predicted = [entry.costs["latency"]["predicted"] for entry in history]
    assert predicted == pytest.approx(shares, rel=0.08) and predicted[0] == pytest.approx(1)


def test_a_target_is_reached_at_its_measured_latency_and_not_above(clock, tmp_path):
    supernet = ekg.Supernet(small_jobs.build(None, 3, widths=(24, 24)))
    half = supernet.whole().with_widths({group.name: 0.5 for group in supernet.groups})
    ratio, whole = share(supernet, half), 1000 * seconds_of(supernet.model)
    assert 0.3 < ratio < 0.7
    for factor, is_reached in ((1.002, True), (0.998, False)):
        for most in ({"ratio": factor * ratio}, {"ms": factor * ratio * whole}):
            # All read one table, so that kernels are timed once.
            latency = Latency(**most, table=tmp_path / "table.json")
            target = latency.prepare(supernet, Team())
            assert "measured" in target.observe(supernet, half)["latency"]
            assert target.is_reached(supernet, half) is is_reached
    assert clock.conditions == {(1, 1)}


def test_all_networks_and_kernels_are_timed_at_the_batch_and_threads_asked_for(clock):
    supernet = ekg.Supernet(small_jobs.build(None, 3))
    target = Latency(ratio=0.99, batch=2, threads=3).prepare(supernet, Team())
    assert "measured" in target.observe(supernet, supernet.smallest())["latency"]
    assert clock.conditions == {(2, 3)}


def test_milliseconds_are_met_too(clock, tiny_data):
    whole = 1000 * seconds_of(make_tiny_resnet())
    supernet, history = search(tiny_data, Latency(ms=0.75 * whole))
    assert share(supernet, history[-1].subnetwork) <= 0.75 < share(supernet, history[-2].subnetwork)


def test_flops_and_latency_are_both_reached(clock, tiny_data):
    supernet, history = search(tiny_data, Latency(ratio=0.9), target_rate=0.5)
    assert history[-1].rate <= 0.5 and share(supernet, history[-1].subnetwork) <= 0.9


def test_every_candidate_saves_as_much_as_a_step_asks_for(clock):
    """r/G of the unpruned latency, with the most channels that do; the candidates differ in what
    they lose alone.
    """
    supernet = ekg.Supernet(networks.resnet())
    target, whole = Latency(ratio=0.2).prepare(supernet, Team()), supernet.whole()
    scores = [float(channel) for group in supernet.groups for channel in range(group.size)]
    present, candidates = propose(supernet, whole, np.array(scores), target, 0.3)
    step = 0.3 / len(supernet.groups)
    assert candidates
    for group, candidate in candidates:
        kept = candidate.num_kept(group)
        assert target.cost(supernet, candidate) <= 1 - step
        assert target.cost(supernet, present.with_kept(group, kept + 1)) > 1 - step


def test_a_resumed_search_uses_earlier_measurements(clock, tiny_data, tmp_path):
    """The same entries, and not one measurement of those that were there."""
    target = Latency(ratio=0.7, table=tmp_path / "table.json")
    supernet, history = search(tiny_data, target)
    _, again = search(tiny_data, target, history=history[:3])
    for old, new in zip(history, again, strict=True):
        differing = {name for name, value in new.to_json().items() if old.to_json()[name] != value}
        assert differing <= {"seconds", "costs"}  # a clock's sums are rounded
        for name in ("predicted", "measured"):
            ours, theirs = (entry.costs["latency"].get(name) for entry in (new, old))
            assert (
                ours == theirs
                or name == "predicted"
                and ours == pytest.approx(theirs)
                or (ours["ratio"] == pytest.approx(theirs["ratio"]))
            )
    assert [ekg.HistoryEntry.from_json(entry.to_json()) for entry in history] == list(history)


def test_an_unreachable_target_is_refused_before_long_measurements(clock):
    supernet = ekg.Supernet(make_tiny_resnet())
    least = share(supernet, supernet.smallest())
    with pytest.raises(
        EkgError,
        match=rf"`target` latency 0.01 cannot be reached: the smallest sub-network of tiny takes "
        rf".* ms, {least:.3f} of .* ms \(litert, batch 1, 1 thread\)",
    ):
        Latency(ratio=0.01).prepare(supernet, Team())
    assert clock.loads == 2
    with pytest.raises(
        EkgError, match="`target` latency 1e.06 ms: the unpruned network takes .* ms already"
    ):
        Latency(ms=1e6).prepare(supernet, Team())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give either `ratio`"),
        ({"ratio": 0.5, "ms": 3}, "give either `ratio`"),
        ({"ratio": 1.0}, "above 0 and below 1"),
        ({"ratio": 0}, "above 0 and below 1"),
        ({"ratio": "half"}, "above 0 and below 1"),
        ({"ms": -1}, "above 0; received -1"),
        ({"ms": 1, "runtime": "tvm"}, "`runtime` must be one of"),
        ({"ms": 1, "batch": 0}, "`batch` of the latency must be"),
        ({"ms": 1, "threads": 1.5}, "`threads` of the latency must be"),
        ({"ms": True, "batch": None}, "`batch`"),
    ],
)
def test_contradictory_latencies_are_refused(given, message):
    with pytest.raises(EkgError, match=message):
        Latency(**given)


def test_a_damaged_table_ends_the_search_before_it_begins(clock, tiny_data, tmp_path):
    (tmp_path / "table.json").write_text("{}")
    with pytest.raises(EkgError, match="damaged; put the file back"):
        search(tiny_data, Latency(ratio=0.7, table=tmp_path / "table.json"))
    assert (tmp_path / "table.json").read_text() == "{}"


def test_a_description_of_a_latency_omits_the_path_of_its_table(tmp_path):
    assert str(Latency(ratio=0.5, table=tmp_path)) == (
        "Latency(ratio=0.5, ms=None, runtime='litert', batch=1, threads=None)"
    )
    assert Latency(ms=1, runtime="tensorflow").conditions == Conditions("tensorflow")
    with pytest.raises(EkgError, match="prepare"):
        Latency(ratio=0.5).cost(None, None)


def test_the_table_of_a_run_is_kept_in_both_files(clock, tmp_path):
    supernet = ekg.Supernet(make_tiny_resnet())
    target = Latency(ratio=0.7, table=tmp_path / "shared.json")
    target.prepare(supernet, Team(), tmp_path / "run.json")
    assert files.read_json(tmp_path / "shared.json") == files.read_json(tmp_path / "run.json")
    loads = clock.loads
    target.prepare(supernet, Team(), tmp_path / "other.json")
    assert clock.loads == loads + 2  # the two networks that say whether it can be reached
