import json
import signal
import sys

import numpy as np
import pytest
import tensorflow as tf

from ekg.devices.team import Team
from ekg.errors import EkgError
from ekg.process import stopping
from tests.helpers.comparisons import mirrored


def test_each_member_works_on_its_own_device():
    team = Team(mirrored(3))
    assert (team.size, team.local_members, team.num_workers, team.worker) == (3, range(3), 1, 0)
    assert team.is_chief and team.shard == (0, 1) and team.strategy is mirrored(3)
    values = team.map_members(lambda member: tf.constant(float(member)) + 1)
    assert [float(value) for value in values.values()] == [1, 2, 3]
    assert [value.device[-5:] for value in values.values()] == ["CPU:0", "CPU:1", "CPU:2"]


def test_a_team_without_a_strategy_has_one_member():
    team = Team()
    assert (team.size, team.local_members, team.device) == (1, range(1), None)
    assert team.map_members(lambda member: member) == {0: 0}


def test_a_single_process_agrees_with_itself():
    team, values = Team(mirrored(2)), np.arange(3)
    assert team.sum_over_workers(values) is values and team.gather_texts("é") == ["é"]
    assert team.as_chief_sees(True) and not team.as_chief_sees(False)
    team.check_same({"seed": 1})
    team.wait()
    with pytest.raises(OSError, match="full"):
        team.on_chief(lambda: (_ for _ in ()).throw(OSError("full")))


def test_a_signal_to_this_process_is_noticed():
    team = Team()
    assert team.stop_signal() == 0
    stopping.request(signal.SIGUSR1)
    try:
        assert team.stop_signal() == signal.SIGUSR1
    finally:
        stopping.request(None)


def test_a_worker_started_with_other_settings_is_named(monkeypatch):
    other = json.dumps({"seed": 2, "code": "a"})
    monkeypatch.setattr(Team, "gather_texts", lambda self, text: [text, other])
    with pytest.raises(
        EkgError, match=r"worker 1: was started differently .*\(seed 2 there, 1 at the chief"
    ):
        Team().check_same({"seed": 1, "code": "a"})
    Team().check_same({"seed": 2, "code": "a"})


def test_a_long_message_of_the_chief_reaches_all_in_pieces(monkeypatch):
    """The chief's texts, one after the other, are what the other worker gets."""
    monkeypatch.setattr(sys.modules["ekg.devices.team"], "MAX_TEXT", 10)
    chief, other, said = Team(), Team(), []
    for worker, team in enumerate((chief, other)):
        team.num_workers, team.worker = 2, worker
    chief.gather_texts = lambda text: said.append(text) or [text, ""]
    value = {"table": ["ü" * 30, 1.5], "none": None}
    assert chief.from_chief(lambda: value) == value and max(map(len, said)) <= 10 < len(said) * 10
    other.gather_texts = lambda text: [said.pop(0), text]
    assert other.from_chief(lambda: 1 / 0) == value and said == []


def test_an_error_of_the_chief_ends_all_workers():
    def fail():
        raise EkgError("no table")

    with pytest.raises(EkgError, match="no table"):
        Team().from_chief(fail)


def test_a_worker_lost_after_the_last_exchange_does_not_matter():
    """It may end while this one still reads the result of that exchange."""
    team, said = Team(), []
    team.num_workers = 2

    def lose(text):
        said.append(text)
        raise tf.errors.UnavailableError(None, None, "Socket closed")

    team.gather_texts = lose
    with team.sharing_failures():
        pass
    assert said == [""]
    with pytest.raises(tf.errors.UnavailableError), team.sharing_failures():
        team.gather_texts("in the middle")
    assert said == ["", "in the middle"]
