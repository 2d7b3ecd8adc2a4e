"""With `min_channels=0` a group may lose all its channels, and the branch of a block with them."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import ekg
from ekg.graph import constants, removal
from ekg.testing import check_prunable
from tests.helpers.models import conv_bn, make_tiny_resnet, randomise_

CLASSES, TOKENS = 3, 5


def images(size=8, channels=3, seed=0):
    return np.random.default_rng(seed).normal(size=(6, size, size, channels)).astype(np.float32)


def classified(inputs, x):
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return randomise_(keras.Model(inputs, layers.Dense(CLASSES, name="fc")(x), name="small"))


def without(supernet, *names):
    """Returns the sub-network without these groups, all other channels kept."""
    return supernet.whole().with_widths(dict.fromkeys(names, 0.0))


def vanishing(supernet):
    return {group.name for group in supernet.groups if group.counts[0] == 0}


def names_of(model):
    return {layer.name for layer in model.layers if not isinstance(layer, layers.InputLayer)}


def worst_difference(supernet, subnetwork, networks, inputs):
    """Returns the largest difference of networks from the masked one, in inference and in training,
    as a share of the largest output.
    """
    worst = 0.0
    for training in (False, True):
        masked = supernet.logits(inputs, subnetwork, training=training)
        for network in networks:
            difference = np.abs(masked - network(inputs, training=training)).max()
            worst = max(worst, float(difference / np.abs(masked).max()))
    return worst


# ---------------------------------------------------------------- blocks of residual networks


def test_a_block_of_a_residual_network_goes_masked_cut_and_reloaded_alike(tmp_path):
    model = make_tiny_resnet()
    supernet = ekg.Supernet(model, min_channels=0)
    assert vanishing(supernet) == {"a1", "b1"}
    subnetwork = without(supernet, "a1")
    assert subnetwork.kept_counts == (6, 0, 5, 8) and subnetwork.width[1] == 0
    assert ekg.Subnetwork.from_json(subnetwork.to_json()) == subnetwork
    cut = supernet.cut(subnetwork)
    assert names_of(model) - names_of(cut) == {"a1", "a1_bn", "a1_relu"}
    # what is left of the branch is the zero that its last norm reads
    assert type(cut.get_layer("a2")) is constants.Constant and not cut.get_layer("a2").weights
    cut.save(tmp_path / "cut.keras")
    reloaded = keras.models.load_model(tmp_path / "cut.keras")
    assert worst_difference(supernet, subnetwork, [cut, reloaded], images()) < 1e-6
    whole, left = supernet.whole_complexity, supernet.complexity(subnetwork)
    # two convolutions of 3x3 on 64 positions, and the norm between them
    assert whole.flops - left.flops == 64 * (9 * 6 * 4 + 2 * 4 + 9 * 4 * 6)
    assert whole.params - left.params == 9 * 6 * 4 + 4 * 4 + 9 * 4 * 6
    assert left.params == cut.count_params()


def test_every_choice_of_vanished_blocks_is_exact():
    supernet = check_prunable(make_tiny_resnet(), min_channels=0, subnetworks=1)
    assert vanishing(supernet) == {"a1", "b1"}
    smallest = supernet.smallest()
    assert smallest.kept_counts == (1, 0, 0, 1)
    # stem, projection and classifier of one channel, and the norms, on 64 and 16 positions
    by_hand = 64 * (9 * 3 + 2 + 2) + 16 * (1 + 2 + 2) + CLASSES
    assert supernet.complexity(smallest).flops == by_hand


def test_the_default_keeps_a_channel():
    supernet = ekg.Supernet(make_tiny_resnet())
    assert vanishing(supernet) == set() and supernet.layout.staying == {}
    assert supernet.smallest().kept_counts == (1, 1, 1, 1)
    assert supernet.whole().steps == ()


def test_inner_layers_of_a_bottleneck_go_with_its_last_ones():
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(inputs, 6, "stem")
    y = conv_bn(conv_bn(conv_bn(x, 4, "one", size=1), 5, "two"), 6, "three", size=1, relu=False)
    supernet = ekg.Supernet(classified(inputs, x + y), min_channels=0)
    assert vanishing(supernet) == {"one", "two"}
    before, between = {"one", "one_bn", "one_relu"}, {"two_bn", "two_relu"}
    for gone, names, most in (
        ("two", before | {"two"} | between, 1e-6),
        # the last norm takes the mean of equal numbers away, whose rounding it enlarges
        ("one", before, 1e-3),
    ):
        subnetwork = without(supernet, gone)
        cut = supernet.cut(subnetwork)
        assert names_of(supernet.model) - names_of(cut) == names
        assert supernet.complexity(subnetwork).params == cut.count_params()
        assert worst_difference(supernet, subnetwork, [cut], images()) < most
    # without the second group, the first one no longer matters, and costs nothing
    assert supernet.idle_groups(without(supernet, "two")) == {1, 2}
    assert supernet.idle_groups(without(supernet, "one")) == {1}
    saved = [supernet.complexity(without(supernet, *own)) for own in (["two"], ["one", "two"])]
    assert saved[0] == saved[1]


def inverted_residual(inputs):
    x = conv_bn(inputs, 6, "stem")
    y = conv_bn(x, 8, "expand", size=1)
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)
    s = layers.GlobalAveragePooling2D(keepdims=True, name="mean")(y)
    s = layers.Conv2D(2, 1, activation="relu", name="reduce")(s)
    s = layers.Conv2D(8, 1, activation="sigmoid", name="gate")(s)
    y = layers.Multiply(name="gated")([y, s])
    return x + conv_bn(y, 6, "project", size=1, relu=False)


def test_an_inverted_residual_goes_with_its_gate():
    inputs = keras.Input((8, 8, 3))
    supernet = check_prunable(
        classified(inputs, inverted_residual(inputs)), min_channels=0, subnetworks=0
    )
    assert vanishing(supernet) == {"expand", "reduce"}
    cut = supernet.cut(without(supernet, "expand"))
    assert names_of(cut) == {
        "stem",
        "stem_bn",
        "stem_relu",
        "project",
        "project_bn",
        "pool",
        "fc",
    } | ({layer.name for layer in cut.layers if layer.name.startswith("add")})
    # without what the gate computes from, the gate is the same for every image
    gate = supernet.cut(without(supernet, "reduce")).get_layer("gate")
    assert type(gate) is constants.Constant and gate.get_config()["activation"] == "sigmoid"


# ---------------------------------------------------------------- transformers


def transformer(use_bias, grouped=False):
    inputs = keras.Input((TOKENS, 3))
    x = layers.Dense(8, name="embed")(inputs)
    y = layers.LayerNormalization(name="norm")(x)
    if grouped:
        attention = layers.GroupQueryAttention(3, 4, 2, use_bias=use_bias, name="attention")
    else:
        attention = layers.MultiHeadAttention(4, 3, use_bias=use_bias, name="attention")
    x = layers.Add(name="first")([attention(y, y), x])
    y = layers.LayerNormalization(name="next")(x)
    y = layers.Dense(12, activation="gelu", name="up")(y)
    y = layers.LayerNormalization(name="inner")(y)
    y = layers.Dropout(0.1, name="drop")(layers.Dense(8, use_bias=use_bias, name="down")(y))
    x = layers.Add(name="second")([x, y])
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return randomise_(keras.Model(inputs, layers.Dense(CLASSES, name="fc")(x), name="words"))


@pytest.mark.parametrize("grouped", [False, True])
def test_attention_and_mlp_vanish_without_a_trace_where_they_have_no_bias(grouped):
    model = transformer(use_bias=False, grouped=grouped)
    supernet = check_prunable(model, min_channels=0, subnetworks=0)
    assert vanishing(supernet) == {"attention/query", "up"}
    subnetwork = without(supernet, "attention/query", "up")
    assert names_of(supernet.cut(subnetwork)) == {"embed", "pool", "fc"}
    flops = supernet.complexity(subnetwork).flops
    assert flops == TOKENS * 3 * 8 + 8 * CLASSES


def test_attention_and_mlp_leave_their_biases():
    model = transformer(use_bias=True)
    supernet = check_prunable(model, min_channels=0, subnetworks=0)
    cut = supernet.cut(without(supernet, "attention/query", "up"))
    assert names_of(model) - names_of(cut) == {"norm", "next", "up", "inner"}
    for name, bias in (
        ("attention", model.get_layer("attention")._output_dense.bias),
        ("down", model.get_layer("down").bias),
    ):
        np.testing.assert_array_equal(cut.get_layer(name).bias, bias)
        assert cut.get_layer(name).trainable_variables == [cut.get_layer(name).bias]
    # the residual stream is pruned as before when the rest of the network is pruned again
    again = check_prunable(cut, min_channels=0, subnetworks=1, reload=False)
    assert [group.name for group in again.groups] == ["embed"]


# ---------------------------------------------------------------- other structures


def test_a_part_of_stacked_channels_goes():
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(inputs, 4, "stem")
    both = [layers.Conv2D(5, 3, padding="same", name="left")(x), x]
    y = layers.Concatenate(name="stack")(both)
    three = [layers.Conv2D(2, 1, name="one")(y), layers.Conv2D(2, 1, name="two")(y), y]
    y = layers.Conv2D(4, 1, name="mix")(ops.concatenate(three, axis=-1))
    supernet = check_prunable(classified(inputs, y), min_channels=0, subnetworks=0)
    # not the last channels on the way from the input to the output
    assert vanishing(supernet) == {"left", "one", "two"}
    assert "stack" not in names_of(supernet.cut(without(supernet, "left")))
    cut = supernet.cut(without(supernet, "one"))
    assert "stack" in names_of(cut) and "one" not in names_of(cut)


def test_a_chain_keeps_its_channels_and_says_why():
    inputs = keras.Input((8, 8, 3))
    model = classified(inputs, conv_bn(conv_bn(inputs, 4, "one"), 5, "two"))
    supernet = ekg.Supernet(model, min_channels=0)
    reason = "then an output of the network would not depend on its input"
    assert vanishing(supernet) == set()
    assert supernet.layout.staying == {"one": reason, "two": reason}
    assert "one  then an output" in str(ekg.inspect(model, min_channels=0))
    message = f"`min_channels`: channel group 'two' cannot vanish, {reason}; let it keep 1."
    with pytest.raises(ekg.EkgError, match=message):
        ekg.Supernet(model, min_channels={"two": 0})


def test_patterns_choose_which_groups_may_vanish():
    supernet = ekg.Supernet(make_tiny_resnet(), min_channels={"^a": 0, "stem": 3}, multiple_of=2)
    assert [group.counts for group in supernet.groups] == [
        (4, 6),
        (0, 2, 4),
        (2, 4, 5),
        (2, 4, 6, 8),
    ]


def inside(name, *made):
    return keras.Sequential([*made], name=name)


@keras.saving.register_keras_serializable("test_vanishing")
class Normalised(layers.Layer):
    """A convolution and its norm in one layer."""

    def __init__(self, filters, **options):
        super().__init__(**options)
        self.filters = filters
        self.conv = layers.Conv2D(filters, 3, padding="same", use_bias=False, name="conv")
        self.norm = layers.BatchNormalization(name="norm")

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build((*shape[:-1], self.filters))

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.filters)

    def call(self, x, training=False):
        return self.norm(self.conv(x), training=training)


def test_layers_and_models_that_hold_parts_of_a_branch():
    inputs = keras.Input((8, 8, 3))
    x = Normalised(6, name="stem")(inputs)
    # the writer in one composite layer, the reader in another one
    x = ops.relu(x + Normalised(6, name="back")(ops.relu(Normalised(4, name="there")(x))))
    block = inside(
        "block", layers.Conv2D(3, 1, activation="relu", name="in"), layers.Conv2D(6, 1, name="out")
    )
    block.build((None, 8, 8, 6))
    x = x + block(x)
    supernet = check_prunable(classified(inputs, x), min_channels=0, subnetworks=1)
    assert vanishing(supernet) == {"there/conv", "block/in"}
    cut = supernet.cut(without(supernet, "there/conv", "block/in"))
    assert "there" not in names_of(cut)
    kinds = {name: type(cut.get_layer(name)) for name in ("back", "block")}
    assert kinds["block"] is keras.Model or issubclass(kinds["block"], keras.Model)
    assert [layer.name for layer in cut.get_layer("block").layers[1:]] == ["out"]
    assert [layer.name for layer in cut.get_layer("back").layers[1:]] == ["conv", "norm"]


def test_units_of_a_recurrent_branch_go():
    inputs = keras.Input((TOKENS, 3))
    x = layers.Dense(6, name="stem")(inputs)
    y = layers.GRU(4, return_sequences=True, name="units")(x)
    x = x + layers.Dense(6, name="mix")(y)
    # a recurrent layer changes from step to step even if it reads zeros
    y = layers.LSTM(6, return_sequences=True, name="reader")(layers.Dense(3, name="read")(x))
    x = layers.GlobalAveragePooling1D()(x + layers.Dense(6, name="last")(y))
    model = randomise_(keras.Model(inputs, layers.Dense(CLASSES, name="fc")(x)))
    supernet = check_prunable(model, min_channels=0, subnetworks=0)
    assert vanishing(supernet) == {"units", "reader"}
    assert supernet.layout.staying["read"] == (
        "read by 'reader' (LSTM), which does not write a constant where it reads zeros"
    )


# ---------------------------------------------------------------- what is refused


def block_of(make, inputs=None):
    """Returns a network with one block around what make() writes of six channels."""
    inputs = keras.Input((8, 8, 3)) if inputs is None else inputs
    x = layers.Conv2D(6, 1, name="stem")(inputs)
    return classified(inputs, x + make(layers.Conv2D(4, 1, name="begin")(x)))


def twice(x):
    conv = layers.Conv2D(6, 1, name="end")
    small = layers.AveragePooling2D(2, name="small")(x)
    return conv(x) + layers.UpSampling2D(name="large")(conv(small))


def windows(x):
    parts = ops.reshape(x, (-1, 4, 8, x.shape[-1]))  # two parts of each image as rows of the batch
    return ops.reshape(layers.Conv2D(6, 1, name="end")(parts), (-1, 8, 8, 6))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (twice, "read by 'end' (Conv2D), which is called for several sizes"),
        (windows, "read by 'end' (Conv2D), where positions are rows of the batch"),
        (
            layers.Conv2D(6, 1, activity_regularizer="l2", name="end"),
            "read by 'end' (Conv2D), which has an activity regularizer",
        ),
        (
            lambda x: layers.Conv2D(6, 1)(layers.TimeDistributed(layers.Dense(5), name="end")(x)),
            "read by 'end' (TimeDistributed), which does not write a constant where it reads zeros",
        ),
    ],
)
def test_what_cannot_do_without_its_channels_keeps_one(make, reason):
    supernet = ekg.Supernet(block_of(make), min_channels=0)
    assert supernet.layout.staying["begin"] == reason


def test_maps_of_any_size_keep_a_channel():
    model = block_of(layers.Conv2D(6, 1, name="end"), keras.Input((None, None, 3)))
    supernet = ekg.Supernet(model, min_channels=0, input_shape=(8, 8, 3))
    assert supernet.layout.staying["begin"] == (
        "read by 'end' (Conv2D), which writes maps of any size"
    )


def test_where_keras_passes_a_mask_a_channel_stays():
    inputs = keras.Input((TOKENS,), dtype="int32")
    x = layers.Embedding(9, 6, mask_zero=True, name="words")(inputs)
    x = x + layers.Dense(6, name="end")(layers.Dense(4, name="begin")(x))
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    model = randomise_(keras.Model(inputs, layers.Dense(CLASSES, name="fc")(x)))
    supernet = ekg.Supernet(model, min_channels=0)
    reason = "read by 'end' (Dense), which a mask of Keras passes"
    assert supernet.layout.staying["begin"] == reason


def test_an_input_that_nothing_would_read_is_needed():
    image, number = keras.Input((8, 8, 3), name="image"), keras.Input((2,), name="number")
    x = layers.Conv2D(6, 1, name="stem")(image)
    gate = layers.Dense(6, name="gate")(layers.Dense(4, activation="relu", name="beside")(number))
    x = x * layers.Reshape((1, 1, 6))(gate)
    model = classified([image, number], x)
    supernet = ekg.Supernet(model, min_channels=0)
    assert supernet.layout.staying["beside"] == "then nothing would read the input 'number'"


# ---------------------------------------------------------------- planted faults


@pytest.mark.parametrize("fault", ["bias", "activation", "shape", "silent"])
def test_a_fault_in_what_takes_a_layers_place_is_found(fault, monkeypatch):
    original = constants.Constant.of.__func__

    def wrong(cls, layer, name, shape, axis, bias):
        constant = original(cls, layer, name, shape, axis, bias)
        if fault == "bias":
            constant.bias.assign(0 * bias)
        elif fault == "activation":
            constant.activation = keras.activations.linear
        elif fault == "shape":
            constant.shape = (shape[0], 1, shape[2])
        return constant

    model = block_of(layers.Conv2D(6, 1, activation="silu", name="end"))
    if fault == "silent":
        model, wrong = with_own_layer(monkeypatch), original
    monkeypatch.setattr(constants.Constant, "of", classmethod(wrong))
    with pytest.raises(ekg.EkgError, match="'end'|the cut network|does not run|cannot be cut"):
        check_prunable(model, min_channels=0, subnetworks=0)


@pytest.mark.parametrize("fault", ["keeps_zero", "_is_plain_sum"])
def test_a_fault_in_what_counts_as_adding_nothing_is_found(fault, monkeypatch):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 1, name="stem")(inputs)
    y = layers.Conv2D(4, 1, name="begin")(x)
    half = layers.Conv2D(6, 1, activation="sigmoid", use_bias=False, name="half")(y)
    none = layers.Conv2D(6, 1, use_bias=False, name="none")(y)
    model = classified(inputs, layers.Average(name="mean")([x + half, none]))
    check_prunable(model, min_channels=0, subnetworks=0)  # a half and a mean are no nothing
    monkeypatch.setattr(removal, fault, lambda *given: len(getattr(given[-1], "inputs", "ab")) > 1)
    with pytest.raises(ekg.EkgError, match="differs from the masked one|does not run"):
        check_prunable(model, min_channels=0, subnetworks=0)


class Shifted(layers.Dense):
    """Adds one to what a dense layer writes, whose record does not say so."""

    def call(self, x):
        return super().call(x) + 1.0


def with_own_layer(monkeypatch):
    from ekg.graph.registry import RECORDS

    monkeypatch.setitem(RECORDS, Shifted, RECORDS[layers.Dense])
    return block_of(Shifted(6, name="end"))
