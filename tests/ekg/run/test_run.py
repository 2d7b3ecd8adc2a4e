"""A job from the top to the bottom: what it asks of its target, and which phases it skips."""

import collections

import pytest

import ekg
from ekg.io import files
from ekg.run.folder import OWN_NAMES, PHASES
from ekg.searching.targets import Flops, Target
from tests.helpers.digits import QUICK, digits, network, softmax


@pytest.fixture
def calls(monkeypatch):
    """Counter of the calls of a target's methods."""
    counts = collections.Counter()

    def count(cls, name):
        original = getattr(cls, name)

        def counting(*args, **options):
            counts[name] += 1
            return original(*args, **options)

        monkeypatch.setattr(cls, name, counting)

    count(Target, "prepare")
    count(Target, "recall")
    count(Flops, "check")
    return counts


def test_a_target_is_checked_and_prepared_once_and_recalls_the_history_once(calls, tmp_path):
    def prune():
        return ekg.prune(
            network(softmax), digits(), target_rate=0.7, epochs=None, run_dir=tmp_path, **QUICK
        )

    result = prune()
    assert calls == {"prepare": 1, "check": 1}
    calls.clear()
    assert prune().subnetwork == result.subnetwork  # it is finished: nothing is searched
    assert calls == {"check": 1}
    calls.clear()
    for name in ("slimmed_param.pkl", "summary.json"):
        (tmp_path / name).unlink()
    assert prune().subnetwork == result.subnetwork
    phases = [line["phase"] for line in files.read_json_lines(tmp_path / "phases.jsonl")]
    assert phases == ["subset", "search", "slim", "report", "slim", "report"]
    assert calls == {"prepare": 1, "check": 1, "recall": len(result.history)}


def test_every_phase_names_its_files_its_end_and_its_advice():
    files = [name for phase in PHASES.values() for name in phase.files]
    assert len(files) == len(set(files)) and set(files) < set(OWN_NAMES)
    assert {phase.last_file for phase in PHASES.values()} < set(files)
    assert all(phase.less_memory.startswith("lower `") for phase in PHASES.values())
    assert [name for name in PHASES if PHASES[name].is_search] == ["subset", "search", "slim"]
