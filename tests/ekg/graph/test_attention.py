"""Heads of attention layers, and numbers within heads, are pruned like channels; FLOPs by hand."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers, ops

import ekg
from ekg.testing import check_prunable
from tests.helpers.models import randomise_

TOKENS, WIDTH, HIDDEN, CLASSES = 5, 8, 12, 3


def transformer(attend, memory=None):
    """A block of attention and one of an MLP on TOKENS tokens of 3 numbers.

    Args:
        attend: function of (query, value) symbols.
        memory: channels of other tokens, twice as many, that are attended to; None for none.
    """
    inputs = keras.Input((TOKENS, 3))
    x = layers.Dense(WIDTH, name="embed")(inputs)
    y = layers.LayerNormalization(name="norm", epsilon=1e-3)(x)
    if memory is None:
        z = y
    else:
        twice = ops.concatenate([inputs, inputs], axis=1)
        z = layers.Dense(memory, activation="relu", name="memory")(twice)
    x = x + attend(y, z)
    y = layers.Dense(HIDDEN, activation="gelu", name="up")(x)
    x = layers.GlobalAveragePooling1D(name="pool")(x + layers.Dense(WIDTH, name="down")(y))
    return randomise_(keras.Model(inputs, layers.Dense(CLASSES, name="fc")(x), name="transformer"))


def flops_by_hand(heads, groups, width, hidden, sizes, memory=None, gates=0):
    """Multiply-accumulates of the transformer.

    Args:
        heads, groups: numbers of heads of the queries and of the keys.
        width, hidden: channels of the residual stream and of the MLP.
        sizes: numbers of a head in queries and keys, and in values.
        memory: channels of other tokens.
        gates: numbers of a head's gate.
    """
    size, value = sizes
    met, read = (TOKENS, width) if memory is None else (2 * TOKENS, memory)
    flops = TOKENS * 3 * width + 2 * TOKENS * width + (0 if memory is None else met * 3 * memory)
    flops += TOKENS * width * heads * (size + gates) + met * read * groups * (size + value)
    flops += TOKENS * met * heads * (size + value) + TOKENS * heads * value * width
    return flops + 2 * TOKENS * width * hidden + width * CLASSES


def check(model, groups, by_hand):
    """Checks the promise, that these groups of a model are there, and its FLOPs by hand."""
    supernet = check_prunable(model, subnetworks=1)
    sizes = {group.name: group.size for group in supernet.groups}
    assert set(sizes) == {"embed", "up", *groups}
    rng = np.random.default_rng(0)
    random = {name: int(rng.integers(1, size, endpoint=True)) for name, size in sizes.items()}
    for counts in (sizes, dict.fromkeys(sizes, 1), random):
        kept = dataclasses.replace(supernet.whole(), kept_counts=tuple(counts.values()))
        assert supernet.complexity(kept).flops == by_hand(counts)
    return supernet


MHA = ("mha/query", "mha/key_dim", "mha/value_dim")


def dims_of(kept):
    """Numbers of a head in queries and keys, and in values."""
    return kept["mha/key_dim"], kept["mha/value_dim"]


@pytest.mark.parametrize(
    ("options", "call", "sizes"),
    [
        ({}, {}, (3, 3)),
        ({}, {"use_causal_mask": True}, (3, 3)),
        ({"value_dim": 5, "use_gate": True, "use_bias": False, "dropout": 0.2}, {}, (3, 5)),
    ],
)
def test_query_key_value_and_output_lose_the_same_heads(options, call, sizes):
    layer = layers.MultiHeadAttention(4, 3, name="mha", **options)
    model = transformer(lambda q, v: layer(q, v, **call))
    supernet = check(
        model,
        MHA,
        lambda kept: flops_by_hand(
            kept["mha/query"],
            kept["mha/query"],
            kept["embed"],
            kept["up"],
            dims_of(kept),
            gates=kept["mha/value_dim"] * ("use_gate" in options),
        ),
    )
    found = {group.name: group.size for group in supernet.groups}
    assert (found["mha/key_dim"], found["mha/value_dim"]) == sizes
    [heads] = [group for group in supernet.groups if group.name == "mha/query"]
    gate = {"mha/gate"} if "use_gate" in options else set()
    assert set(heads.writers) == {"mha/query", "mha/key", "mha/value"} | gate
    assert heads.sites == ("mha/attention",) and heads.size == 4
    cut = supernet.cut(supernet.whole().with_widths({heads.name: 0.5})).get_layer("mha")
    assert type(cut) is layers.MultiHeadAttention and cut.get_config()["num_heads"] == 2


def test_heads_of_cross_attention_with_a_mask_and_another_output():
    layer = layers.MultiHeadAttention(4, 3, output_shape=WIDTH, name="mha")
    mask = np.tril(np.ones((1, TOKENS, 2 * TOKENS), bool), 3)
    model = transformer(lambda q, v: layer(q, v, key=ops.relu(v), attention_mask=mask), memory=6)
    supernet = check(
        model,
        (*MHA, "memory"),
        lambda kept: flops_by_hand(
            kept["mha/query"],
            kept["mha/query"],
            kept["embed"],
            kept["up"],
            dims_of(kept),
            memory=kept["memory"],
        ),
    )
    assert {group.name: group.size for group in supernet.groups}["memory"] == 6


def test_grouped_queries_keep_their_ratio():
    layer = layers.GroupQueryAttention(3, 6, 2, use_gate=True, name="gqa")
    supernet = check(
        transformer(layer, memory=WIDTH),
        ("gqa/query", "gqa/head_dim"),
        lambda kept: flops_by_hand(
            3 * kept["gqa/query"],
            kept["gqa/query"],
            kept["embed"],
            kept["up"],
            (kept["gqa/head_dim"], kept["gqa/head_dim"]),
            memory=kept["embed"],
            gates=kept["gqa/head_dim"],
        ),
    )
    assert {group.name: group.size for group in supernet.groups} == {
        "embed": 8,
        "gqa/head_dim": 3,
        "gqa/query": 2,
        "up": 12,
    }
    config = supernet.cut(supernet.smallest()).get_layer("gqa").get_config()
    assert [config[f"num_{of}_heads"] for of in ("query", "key_value")] == [3, 1]
    assert config["head_dim"] == 1


def test_a_layer_called_twice_loses_the_same_heads_at_both_calls():
    layer = layers.MultiHeadAttention(3, 4, name="mha")
    model = transformer(lambda q, v: layer(layer(q, v), v))
    supernet = check_prunable(model, subnetworks=1)
    assert supernet.complexity(supernet.whole()).params == model.count_params()


def test_choices_keep_heads():
    model = transformer(layers.MultiHeadAttention(4, 3, name="mha"))
    least = ekg.Supernet(model, min_channels={"^mha/": 2}, exclude="up")
    assert {group.name: group.counts[0] for group in least.groups} == {
        "embed": 1,
        **dict.fromkeys(MHA, 2),
    }
    kept = ekg.Supernet(model, exclude=layers.MultiHeadAttention)
    assert [group.name for group in kept.groups] == ["up"]
    assert kept.layout.closed["mha/query"] == "'mha/query' is excluded"


def test_attention_that_returns_its_scores_stays_whole_and_is_counted():
    for layer, heads in (
        (layers.MultiHeadAttention(4, 3, name="mha"), 4),
        (layers.GroupQueryAttention(3, 4, 2, name="gqa"), 2),
    ):
        model = transformer(lambda q, v, layer=layer: layer(q, v, return_attention_scores=True)[0])
        supernet = check_prunable(model, subnetworks=1)
        assert [group.name for group in supernet.groups] == ["up"]
        assert supernet.complexity(supernet.whole()).flops == flops_by_hand(
            4, heads, WIDTH, HIDDEN, (3, 3)
        )


def test_a_mask_of_the_query_that_keras_ignores_is_ignored():
    """Keras takes it from the tensor alone, so that one of the call's arguments has no effect."""
    layer, none = layers.MultiHeadAttention(4, 3, name="mha"), np.zeros((2, TOKENS), bool)
    inputs = keras.Input((TOKENS, 3))
    mask = ops.greater(ops.abs(inputs[:, :, :1]), ops.transpose(inputs[:, :, 1:2], (0, 2, 1)))
    x = layers.Dense(WIDTH, name="embed")(inputs)
    x = layers.Dense(4, name="mix")(
        layer(x, x, query_mask=inputs[:, :, 0] > 0.5, attention_mask=mask)
    )
    model = keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x)))
    supernet = check_prunable(randomise_(model), subnetworks=1)
    assert {group.name: group.size for group in supernet.groups}["mha/query"] == 4
    read = np.ones((2, TOKENS, WIDTH), np.float32)
    np.testing.assert_array_equal(layer(read, read, query_mask=none), layer(read, read))


def test_a_layer_that_returns_its_scores_once_stays_whole_everywhere():
    layer = layers.MultiHeadAttention(3, 4, name="mha")
    model = transformer(lambda q, v: layer(layer(q, v), v, return_attention_scores=True)[0])
    assert [group.name for group in check_prunable(model, subnetworks=1).groups] == ["up"]


def test_a_cut_makes_up_for_the_scale_of_the_products():
    """With half of key_dim Keras divides by a root half as large, and the products must stay."""
    layer = layers.MultiHeadAttention(2, 8, value_dim=3, name="mha")
    model = transformer(layer)
    supernet = ekg.Supernet(model)
    cut = supernet.cut(supernet.whole().with_widths({"mha/key_dim": 0.25})).get_layer("mha")
    config = cut.get_config()
    assert (config["key_dim"], config["value_dim"], config["num_heads"]) == (2, 3, 2)
    for name, factor in (("query", 0.5), ("key", 1), ("value", None)):
        whole, part = (getattr(one, f"_{name}_dense") for one in (layer, cut))
        kept = slice(None) if factor is None else slice(2)
        np.testing.assert_array_equal(part.kernel, whole.kernel[..., kept] * (factor or 1))
        np.testing.assert_array_equal(part.bias, whole.bias[..., kept] * (factor or 1))
    assert cut._inverse_sqrt_key_dim == pytest.approx(2**-0.5)


def test_numbers_of_a_head_stay_where_they_are_excluded_or_the_layer_is_frozen():
    layer = layers.MultiHeadAttention(4, 3, value_dim=2, name="mha")
    model = transformer(layer)
    names = {"embed", "up", *MHA}
    for excluded, closed in (
        ("mha/key_dim", {"mha/key_dim"}),
        ("mha/value$", {"mha/query", "mha/value_dim"}),  # the projection and the numbers
        ("mha/attention$", {"mha/query"}),
    ):
        supernet = ekg.Supernet(model, exclude=excluded)
        assert {group.name for group in supernet.groups} == names - closed
    multiple = ekg.Supernet(model, multiple_of={"key_dim": 2}, min_channels={"value_dim": 2})
    counts = {group.name: group.counts for group in multiple.groups}
    assert (counts["mha/key_dim"], counts["mha/value_dim"]) == ((2, 3), (2,))
    layer.trainable = False
    assert {group.name for group in ekg.Supernet(model).groups} == {"up"}
    assert {group.name for group in ekg.Supernet(model, prune_frozen=True).groups} == names


def random_attention(rng):
    """Returns (layer, arguments of its call) of random settings."""
    size, options = int(rng.integers(1, 6)), {"use_bias": bool(rng.integers(2)), "name": "layer"}
    options["use_gate"] = bool(rng.integers(2))
    options["dropout"] = float(rng.choice([0.0, 0.3]))
    call = {"use_causal_mask": True} if rng.integers(2) else {}
    if rng.integers(2):
        groups, ratio = rng.integers(1, 4, 2).tolist()
        return layers.GroupQueryAttention(size, groups * ratio, groups, **options), call
    options["value_dim"] = int(rng.integers(1, 6))
    options["output_shape"] = [None, WIDTH][rng.integers(2)]
    return layers.MultiHeadAttention(int(rng.integers(1, 5)), size, **options), call


@pytest.mark.parametrize("seed", range(8))
def test_attention_of_random_settings_is_pruned_exactly(seed):
    rng = np.random.default_rng(seed)
    layer, call = random_attention(rng)
    if rng.integers(2):  # one after the other, of which the second reads other tokens
        other, _ = random_attention(rng)
        other.name = "other"
        model = transformer(lambda q, v: other(layer(q, q, **call), v), memory=WIDTH)
    else:
        model = transformer(lambda q, v: layer(q, v, **call))
    supernet = check_prunable(model, subnetworks=2, seed=seed, tolerance=1e-6, batch_tolerance=1e-6)
    sizes = "head_dim" if type(layer) is layers.GroupQueryAttention else "key_dim"
    assert f"layer/{sizes}" in {group.name for group in supernet.groups}


def test_a_head_that_nothing_reads_can_be_removed():
    model = transformer(layers.MultiHeadAttention(4, 3, name="mha"))
    output = model.get_layer("mha")._output_dense.kernel
    output.assign(output * np.array([1, 0, 1, 1.0]).reshape(4, 1, 1))
    supernet = ekg.Supernet(model)
    x = np.random.default_rng(0).normal(size=(4, TOKENS, 3)).astype(np.float32)
    names = [group.name for group in supernet.groups]
    order = [range(group.size) for group in supernet.groups]
    losses = {}
    for head in range(4):
        order[names.index("mha/query")] = [h for h in range(4) if h != head] + [head]
        counts = [group.size - (group.name == "mha/query") for group in supernet.groups]
        dropped = ekg.Subnetwork(tuple(names), tuple(map(tuple, order)), tuple(counts))
        logits = supernet.logits(x, dropped, training=False)
        losses[head] = float(np.abs(logits - model(x)).max())
    assert losses[1] < 1e-5 and all(losses[head] > 1e-2 for head in (0, 2, 3))
