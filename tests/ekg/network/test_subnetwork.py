import json

import pytest

import ekg
from ekg.network.subnetwork import Subnetwork, count_kept

GROUPS = (ekg.ChannelGroup("a", 4, ("a",), ()), ekg.ChannelGroup("b", 10, ("b",), ()))


@pytest.mark.parametrize(
    ("width", "size", "kept"),
    [
        (1.0, 16, 16),
        (0.8, 16, 13),
        (0.5, 16, 8),
        (0.0, 16, 1),
        (0.01, 16, 1),
        (1 - 0.2 - 0.2 - 0.2, 5, 2),
        (0.1 + 0.2, 10, 3),
        (3 / 7, 7, 3),
    ],
)
def test_kept_channels_have_a_rank_below_width_times_size(width, size, kept):
    assert count_kept(width, size) == kept


def test_ranks_follow_scores_and_ties_keep_their_order():
    subnetwork = Subnetwork.whole(GROUPS).ranked([[1, 5, 1, 9], range(10)])
    assert subnetwork.order[0] == (3, 1, 0, 2)
    assert subnetwork.with_width(0, 0.5).kept(0).tolist() == [1, 3]


def test_removed_channels_stay_last_at_any_score():
    subnetwork = Subnetwork.whole(GROUPS).with_widths({"a": 0.5}).ranked([[1, 2, 9, 9], range(10)])
    assert subnetwork.order[0] == (1, 0, 2, 3)


def test_a_subnetwork_is_a_value():
    narrow = Subnetwork.whole(GROUPS).with_widths({"b": 0.3})
    stored = Subnetwork.from_json(json.loads(json.dumps(narrow.to_json())))
    assert narrow == stored and len({narrow, stored}) == 1
    assert narrow != Subnetwork.whole(GROUPS)
    assert str(narrow) == "a 4/4, b 3/10"


def test_wrong_widths_are_named():
    with pytest.raises(
        ekg.EkgError, match="`widths`: no channel group is named \\['c'\\].*\\['a', 'b'\\]"
    ):
        Subnetwork.whole(GROUPS).with_widths({"c": 0.5})
    with pytest.raises(ekg.EkgError, match="`widths` must be in \\[0, 1\\]; received {'a': 1.5}"):
        Subnetwork.whole(GROUPS).with_widths({"a": 1.5})


def test_widths_of_earlier_versions_are_read():
    """They were fractions of nine digits: five sevenths of 7 are five channels."""
    value = {"widths": {"a": 0.25, "b": 0.714285714}, "order": [[0, 1, 2, 3], list(range(7))]}
    assert Subnetwork.from_json(value).kept_counts == (1, 5)
