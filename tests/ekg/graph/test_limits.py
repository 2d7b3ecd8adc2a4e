"""What a user keeps from being pruned, and in which steps channels go."""

import re

import keras
import numpy as np
import pytest
from keras import layers

import ekg
from ekg.searching import proposals
from ekg.searching.targets import Flops
from tests.helpers.models import conv_bn, make_tiny_resnet, randomise_


def make_chain():
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(conv_bn(conv_bn(inputs, 16, "one"), 20, "two"), 6, "three")
    x = layers.Dense(3, name="fc")(layers.GlobalAveragePooling2D(name="pool")(x))
    return randomise_(keras.Model(inputs, x, name="chain"))


def names_of(supernet):
    return [group.name for group in supernet.groups]


@pytest.mark.parametrize(
    "exclude",
    [
        "^two$",
        ["^two$"],
        lambda layer: layer.name == "two",
        "^two_relu$",  # what carries the channels keeps them, too
    ],
)
def test_an_excluded_layer_keeps_its_channels(exclude):
    supernet = ekg.Supernet(make_chain(), exclude=exclude)
    assert names_of(supernet) == ["one", "three"] and "is excluded" in supernet.layout.closed["two"]
    assert supernet.cut(supernet.smallest()).get_layer("two").filters == 20


def test_a_layer_itself_may_be_excluded():
    model = make_chain()
    assert names_of(ekg.Supernet(model, exclude=[model.get_layer("one"), "three"])) == ["two"]


def test_the_name_of_a_nested_model_excludes_all_its_layers():
    inputs = keras.Input((8, 8, 3))
    inside = keras.Input((8, 8, 4))
    inner = keras.Model(inside, conv_bn(inside, 5, "deep"), name="backbone")
    x = conv_bn(inner(conv_bn(inputs, 4, "stem")), 6, "next")
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    assert names_of(ekg.Supernet(model)) == ["stem", "backbone/deep", "next"]
    assert names_of(ekg.Supernet(model, exclude="^backbone$")) == ["stem", "next"]


def test_excluded_layers_must_exist():
    with pytest.raises(ekg.EkgError, match="`exclude`: no layer of 'chain' is 'fourth'"):
        ekg.Supernet(make_chain(), exclude="fourth")
    with pytest.raises(ekg.EkgError, match=r"`exclude`: '\(' is no regular expression"):
        ekg.Supernet(make_chain(), exclude="(")
    with pytest.raises(ekg.EkgError, match="`exclude`: no layer of 'chain' is 'other'"):
        ekg.Supernet(make_chain(), exclude=layers.Dense(3, name="other"))


def test_a_network_with_everything_excluded_is_refused_with_the_reasons():
    with pytest.raises(
        ekg.EkgError,
        match="nothing in `model` 'chain' can be pruned: one: 'one' is excluded; two: ",
    ):
        ekg.Supernet(make_chain(), exclude=".")


def test_widths_are_multiples_and_the_whole():
    supernet = ekg.Supernet(make_chain(), multiple_of=8)
    assert [group.counts for group in supernet.groups] == [(8, 16), (8, 16, 20), (6,)]
    assert supernet.smallest().kept_counts == (8, 8, 6)
    half = supernet.whole().with_widths({"one": 0.4, "two": 0.5, "three": 0.1})
    assert half.kept_counts == (8, 16, 6)
    assert ekg.Subnetwork.from_json(half.to_json()) == half
    assert (
        half.with_width(1, 0.1).kept_counts
        == ekg.Subnetwork.from_json(half.to_json()).with_width(1, 0.1).kept_counts
    )


def test_limits_may_differ_from_group_to_group():
    supernet = ekg.Supernet(make_chain(), multiple_of={"^t": 4, "two": 5}, min_channels={"one": 3})
    assert {group.name: (group.least, group.multiple) for group in supernet.groups} == {
        "one": (3, 1),
        "two": (1, 5),
        "three": (1, 4),
    }
    assert supernet.smallest().kept_counts == (3, 5, 4)
    with pytest.raises(
        ekg.EkgError,
        match="`min_channels`: no channel group fits 'four'; the groups are .'one', 'two'",
    ):
        ekg.Supernet(make_chain(), min_channels={"four": 2})


@pytest.mark.parametrize("value", [-1, 2.5, True, {"one": -1}])
@pytest.mark.parametrize(("name", "first"), [("min_channels", 0), ("multiple_of", 1)])
def test_numbers_of_channels_are_whole_and_not_negative(name, first, value):
    message = f"`{name}` must be whole numbers from {first} on; received "
    with pytest.raises(ekg.EkgError, match=message + re.escape(repr(value))):
        ekg.Supernet(make_chain(), **{name: value})


def test_channels_cannot_be_multiples_of_zero():
    with pytest.raises(ekg.EkgError, match="`multiple_of` must be whole numbers from 1 on"):
        ekg.Supernet(make_chain(), multiple_of={"one": 0})


def test_multiples_count_channels_where_several_go_at_once():
    """A grouped convolution of 4 groups loses 4 channels at once: multiples of 8 channels are every
    second step.
    """
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.Conv2D(32, 3, groups=4, name="grouped")(conv_bn(inputs, 32, "stem")))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    supernet = ekg.Supernet(model, multiple_of=8, min_channels=10)
    assert [(group.size, group.counts) for group in supernet.groups] == [
        (8, (4, 6, 8)),
        (8, (4, 6, 8)),
    ]
    cut = supernet.cut(supernet.smallest())
    assert (
        cut.get_layer("stem").filters == cut.get_layer("grouped").filters == 16
        and cut.get_layer("grouped").groups == 4
    )


def test_every_step_of_a_search_keeps_to_the_limits(tiny_data):
    supernet = ekg.Supernet(make_tiny_resnet(), multiple_of=2, min_channels={"^b2$": 3})
    result = ekg.search(supernet, tiny_data, target_rate=0.4)
    allowed = [set(group.counts) for group in supernet.groups]
    assert all(
        kept in counts
        for entry in result.history
        for kept, counts in zip(entry.subnetwork.kept_counts, allowed)
    )
    rates = [entry.rate for entry in result.history]
    assert rates == sorted(rates, reverse=True) and rates[-2] > 0.4 >= rates[-1]


def test_a_step_narrows_by_one_multiple_at_least():
    group = ekg.ChannelGroup("g", 20, ("g",), (), least=4, multiple=4)
    assert proposals.step_of(group, 0.05) * 20 == 4 and proposals.step_of(group, 0.5) * 20 == 10
    assert [
        proposals.next_kept(1 - k * proposals.step_of(group, 0.05), group, 0.05) for k in range(4)
    ] == [16, 12, 8, 4]


def test_a_candidate_at_the_target_has_the_widest_allowed_width():
    supernet = ekg.Supernet(make_chain(), multiple_of=4)
    scores = np.ones(supernet.layout.num_channels)
    scores[supernet.layout.channels(1)] = 0.01  # the threshold leaves this group to be tried
    target = supernet.rate(supernet.whole().with_kept(1, 12)) + 1e-6
    _, candidates = proposals.propose(
        supernet, supernet.whole(), scores, Flops(target), search_step=0.9
    )
    by_group = {
        supernet.groups[group].name: candidate.kept_counts for group, candidate in candidates
    }
    assert by_group["two"] == (16, 12, 6)


def test_a_frozen_layer_keeps_its_channels_unless_asked():
    model = make_chain()
    model.get_layer("two").trainable = False
    supernet = ekg.Supernet(model)
    assert (
        names_of(supernet) == ["one", "three"]
        and supernet.layout.closed["two"] == "'two' is frozen"
    )
    cut = supernet.cut(supernet.smallest())
    assert not cut.get_layer("two").trainable and cut.get_layer("two").kernel.shape == (3, 3, 1, 20)
    assert names_of(ekg.Supernet(model, prune_frozen=True)) == ["one", "two", "three"]


def test_the_refusal_of_a_frozen_network_names_the_setting_that_prunes_it():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, name="one")(inputs)
    model = keras.Model(inputs, layers.Dense(3, name="fc")(layers.Flatten()(x)), name="net")
    model.trainable = False
    with pytest.raises(
        ekg.EkgError,
        match="nothing in `model` 'net' can be pruned: .*'one' is frozen.*`prune_frozen`=True",
    ):
        ekg.Supernet(model)
    assert [group.name for group in ekg.Supernet(model, prune_frozen=True).groups] == ["one"]
    model.trainable = True
    with pytest.raises(ekg.EkgError) as refused:
        ekg.Supernet(model, exclude="one")
    assert "prune_frozen" not in str(refused.value)
