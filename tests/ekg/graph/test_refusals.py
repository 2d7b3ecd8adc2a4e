"""Networks that look harmless and are not: pruned correctly all the same, or refused."""

import functools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import ekg
from ekg.graph.complexity import model_complexity
from ekg.testing import check_prunable
from tests.helpers.models import randomise_


def image():
    return keras.Input((8, 8, 3))


def conv(filters, **options):
    return layers.Conv2D(filters, 3, padding="same", activation="relu", **options)


def classified(inputs, x):
    x = layers.GlobalAveragePooling2D()(x) if len(x.shape) == 4 else layers.Flatten()(x)
    return randomise_(keras.Model(inputs, layers.Dense(3, name="fc")(x), name="own"))


def chained(inner, width=6):
    """A network with an inner part between two convolutions."""
    inputs = image()
    return classified(inputs, conv(5, name="last")(inner(conv(width, name="first")(inputs))))


def folded(x):
    x = ops.concatenate([layers.Reshape((6, 1))(x)] * 4, axis=-1)
    return ops.reshape(layers.Dense(3)(ops.reshape(x, (-1, 6))), (-1, 4, 3))


def drawn(x):
    return layers.EinsumDense("ab,bcd->acd", (4, 4), activation="relu")(
        layers.GlobalAveragePooling2D()(x)
    )


def rows_of_channels(x):
    x = layers.Dense(5, activation="relu")(ops.reshape(x, (-1, 8 * 6)))
    return layers.GlobalAveragePooling1D()(ops.reshape(x, (-1, 8, 5)))


def moved(layer):
    return lambda x: layers.Permute((2, 3, 1))(layer(layers.Permute((3, 1, 2))(x)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: classified(
            i := image(), layers.Flatten(data_format="channels_first")(conv(4)(conv(5)(i)))
        ),
        lambda: classified(i := image(), drawn(conv(4)(i))),
        lambda: classified(i := image(), rows_of_channels(conv(6)(i))),
        lambda: classified(i := keras.Input((8,)), folded(layers.Dense(6, activation="relu")(i))),
        lambda: chained(layers.Resizing(12, 16, pad_to_aspect_ratio=True, fill_value=2.0)),
        lambda: chained(
            lambda x: ops.image.resize(x, (12, 16), pad_to_aspect_ratio=True, fill_value=2.0)
        ),
        lambda: chained(lambda x: x + np.arange(8, dtype="float32").reshape(8, 1, 1), 16),
        lambda: chained(lambda x: layers.Softmax(axis=1)(x, mask=ops.abs(x) > 0.1)),
        lambda: chained(lambda x: layers.BatchNormalization()(inputs=x)),
        lambda: chained(moved(layers.PReLU())),
        lambda: chained(layers.PReLU()),
        lambda: chained(lambda x: layers.Conv2D(4, 1, strides=2)(inputs=x)),
        lambda: chained(layers.Dropout(0.5, noise_shape=(None, 1, 1, 6))),
        lambda: chained(lambda x: ops.expand_dims(ops.squeeze(x[:, :1]), 1)),
        lambda: chained(
            lambda x: ops.sum(
                layers.EinsumDense("abcx,xde->abcde", (8, 8, 2, 3), bias_axes="ed")(x), axis=3
            )
        ),
    ],
)
def test_networks_with_known_traps_are_pruned_correctly(make):
    check_prunable(make(), reload=False)


class Block(layers.Layer):
    """A convolution and a batch norm in one layer."""

    def __init__(self, **options):
        super().__init__(**options)
        self.conv, self.norm = (
            layers.Conv2D(4, 3, padding="same"),
            layers.BatchNormalization(name="inside"),
        )

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build((*shape[:-1], 4))

    def call(self, x, training=None):
        return self.norm(self.conv(x), training=training)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Block(name="block"),
        lambda: Holding(lambda inner: lambda x: inner(x), name="holding"),
        lambda: Holding(
            lambda inner: functools.partial(lambda x, _: inner(x), _=0), name="holding"
        ),
    ],
)
def test_state_that_a_copy_could_not_take_over_is_right_in_an_opened_layer(make):
    check_prunable(chained(make()), subnetworks=1)


class Bound(layers.Layer):
    """Computes by a method of its own that it keeps in an attribute."""

    def __init__(self, **options):
        super().__init__(**options)
        self.function = self.compute

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), name="kernel")

    def compute(self, x):
        return x @ self.kernel

    def call(self, x):
        return self.function(x)


class Tied(layers.Layer):
    """Computes with the weights of another layer, the other way round, as a decoder does."""

    def __init__(self, dense, **options):
        super().__init__(**options)
        self.dense = dense

    def call(self, x):
        return x @ ops.transpose(self.dense.kernel)


def tied():
    inputs, encoder = keras.Input((12,)), layers.Dense(6, name="encoder")
    x = layers.Dense(6)(layers.Dense(9, activation="relu")(encoder(inputs)))
    return classified(inputs, Tied(encoder, name="decoder")(x))


class Holding(layers.Layer):
    """Computes by a function that it keeps in an attribute."""

    def __init__(self, wrap, **options):
        super().__init__(**options)
        self.inner = layers.Dense(4)
        self.function = wrap(self.inner)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return (self.function[0] if isinstance(self.function, list) else self.function)(x)


class Weighing(keras.Model):
    """Has a weight beside those of its layers."""

    def __init__(self, inputs, outputs, **options):
        super().__init__(inputs=inputs, outputs=outputs, **options)
        self.temperature = self.add_weight(name="temperature", shape=(), initializer="ones")


def weighing():
    inputs = image()
    return Weighing(
        inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(conv(4)(inputs))), name="weighing"
    )


def words(attention, nested=False):
    """A network of padded tokens, whose mask Keras passes from layer to layer."""
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True)(inputs)
    if nested:
        outer = keras.Input((6,), dtype="int32")
        inputs, x = outer, keras.Model(inputs, x, name="encoder")(outer)
    x = layers.Dense(8)(layers.Dense(16, activation="relu")(attention(x)))
    return classified(inputs, x if len(x.shape) == 2 else layers.GlobalAveragePooling1D()(x))


def stateful():
    inputs = keras.Input(batch_shape=(12, 6, 3))
    return classified(
        inputs,
        layers.LSTM(4, stateful=True, name="lstm")(
            layers.Conv1D(6, 3)(layers.Conv1D(6, 3)(inputs))
        ),
    )


def masked_norm():
    inputs = keras.Input((10,), dtype="int32")
    x = layers.Dense(4, activation="relu")(layers.Embedding(5, 6, mask_zero=True)(inputs))
    return classified(inputs, layers.BatchNormalization(name="norm")(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: chained(Block(name="block")),
            "layer 'block' .Block. holds batch norm 'inside', whose statistics are out of",
        ),
        (masked_norm, "batch norm 'norm' reads a tensor with a mask"),
        (tied, "layers 'encoder' and 'decoder' share the weight 'kernel', which a cut would untie"),
        *(
            (
                lambda wrap=wrap: chained(Holding(wrap, name="holding")),
                "layer 'holding' .Holding. keeps in 'function' a function",
            )
            for wrap in (
                lambda inner: lambda x: inner(x),
                lambda inner: tf.function(lambda x: inner(x)),
                lambda inner: functools.partial(lambda x, _: inner(x), _=0),
            )
        ),
        (
            lambda: chained(Holding(lambda inner: [lambda x: inner(x)], name="holding")),
            "layer 'holding' .Holding. keeps in",
        ),
        (
            lambda: chained(
                Holding(
                    lambda inner: lambda x, held={"inner": inner}: held["inner"](x), name="holding"
                )
            ),
            "layer 'holding' .Holding. keeps in",
        ),
        (weighing, "`model` 'weighing' .Weighing. has a weight of its own, 'temperature'"),
        (stateful, "layer 'lstm' is stateful"),
        *(
            (
                lambda make=make, nested=nested: words(make, nested),
                f"layer '{name}' .{kind}. receives an implicit Keras mask",
            )
            for make, nested, name, kind in (
                (
                    lambda x: layers.MultiHeadAttention(2, 4, name="mha")(x, x),
                    False,
                    "mha",
                    "MultiHeadAttention",
                ),
                (
                    lambda x: layers.Attention(name="attention")([x, x]),
                    False,
                    "attention",
                    "Attention",
                ),
                (layers.LSTM(5, name="lstm"), True, "lstm", "LSTM"),
                (
                    layers.GlobalAveragePooling1D(name="mean"),
                    True,
                    "mean",
                    "GlobalAveragePooling1D",
                ),
            )
        ),
        (
            lambda: words(layers.BatchNormalization(name="norm"), True),
            "batch norm 'norm' reads a tensor with a mask",
        ),
        (
            lambda: chained(
                layers.TimeDistributed(keras.Sequential([layers.Dense(4)], name="seq"))
            ),
            "model 'seq' ",
        ),
        (
            lambda: classified(i := image(), conv(1)(i)),
            "nothing in `model` 'own' can be pruned: every channel group has one",
        ),
    ],
)
def test_a_network_that_cannot_be_pruned_correctly_is_refused_in_one_line(make, message):
    with pytest.raises(ekg.EkgError, match=message) as error:
        ekg.Supernet(make(), open_layers=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_shape": 8}, "`input_shape` must be a tuple"),
        ({"input_shape": (8, 8, 3.0)}, "`input_shape` .* does not fit"),
        ({"min_channels": {3: 2}}, "`min_channels`: 3 is no regular expression"),
        ({"exclude": layers.LSTM}, "`exclude`: no layer"),
        ({"prune_frozen": "no"}, "`prune_frozen` must be True or False"),
        ({"min_channels": 100}, "`min_channels` and `multiple_of` keep all channels"),
    ],
)
def test_choices_that_make_no_sense_are_refused_in_one_line(options, message):
    with pytest.raises(ekg.EkgError, match=message) as error:
        ekg.Supernet(chained(layers.ReLU()), **options)
    assert "\n" not in str(error.value)


def test_a_kind_of_layers_may_be_excluded():
    supernet = ekg.Supernet(
        chained(layers.SeparableConv2D(4, 3, name="kept")), exclude=layers.SeparableConv2D
    )
    assert [group.name for group in supernet.groups] == ["first", "last"]


def test_inputs_given_by_name_go_to_the_input_of_that_name():
    first, second = keras.Input((8, 8, 4), name="b"), keras.Input((8, 8, 4), name="a")
    inner = keras.Model(
        [first, second], conv(5)(conv(6)(layers.Subtract()([first, conv(4)(second)]))), name="inner"
    )
    inputs = image()
    model = classified(inputs, inner({"b": conv(4)(inputs), "a": conv(4)(inputs)}))
    check_prunable(model)
    images = np.random.default_rng(0).normal(size=(2, 2, 8, 8, 4)).astype("float32")
    named = {"b": images[0], "a": images[1], "surplus": images[0]}
    supernet = ekg.Supernet(inner)
    np.testing.assert_allclose(
        supernet.logits(named, supernet.whole(), training=False),
        inner(list(images)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_method_that_a_layer_keeps_computes_with_the_copys_own_weights():
    model = chained(Bound(name="bound"))
    supernet = ekg.Supernet(model)
    cut, images = supernet.cut(supernet.smallest()), np.ones((2, 8, 8, 3), np.float32)
    before = cut(images).numpy()
    model.get_layer("bound").kernel.assign(model.get_layer("bound").kernel * 0)
    np.testing.assert_array_equal(cut(images), before)
    cut.get_layer("bound").kernel.assign(cut.get_layer("bound").kernel * 0)
    assert (cut(images).numpy() != before).any()


def test_a_partial_function_and_an_inner_layers_method_are_rebound_to_the_copy():
    for wrap in (lambda inner: functools.partial(inner), lambda inner: inner.call):
        model = chained(Holding(wrap, name="holding"))
        supernet = ekg.Supernet(model, open_layers=False)
        cut, images = supernet.cut(supernet.smallest()), np.ones((2, 8, 8, 3), np.float32)
        before = cut(images).numpy()
        model.get_layer("holding").inner.kernel.assign(model.get_layer("holding").inner.kernel * 0)
        np.testing.assert_array_equal(cut(images), before)
        cut.get_layer("holding").inner.kernel.assign(cut.get_layer("holding").inner.kernel * 0)
        assert (cut(images).numpy() != before).any()


class Watching(layers.Layer):
    """Counts what it reads."""

    def __init__(self, metric, **options):
        super().__init__(**options)
        self.seen = metric

    def call(self, x):
        if type(self.seen) is keras.metrics.Mean:
            self.seen.update_state(ops.mean(x))
        return x


def test_a_copy_has_its_own_metric_state():
    model = chained(Watching(keras.metrics.Mean(), name="watching"))
    cut = (supernet := ekg.Supernet(model)).cut(supernet.whole())
    cut(np.ones((2, 8, 8, 3), np.float32))
    assert (
        float(cut.get_layer("watching").seen.count) == 1
        and float(model.get_layer("watching").seen.count) == 0
    )


def test_masks_of_a_sequential_model_are_made_by_its_layers():
    for first in (
        [keras.Input((6,), dtype="int32"), layers.Embedding(20, 8, mask_zero=True)],
        [keras.Input((6, 3)), layers.Masking()],
    ):
        model = keras.Sequential(
            [*first, layers.LSTM(5), layers.Dense(6, activation="relu"), layers.Dense(3)]
        )
        check_prunable(randomise_(model))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "inner",
    [
        lambda x: layers.BatchNormalization()(layers.Dense(6)(layers.LSTM(5)(x))),
        lambda x: layers.Softmax()(layers.Dense(6)(layers.GlobalAveragePooling1D()(x))),
    ],
)
def test_a_mask_ends_with_the_layer_that_takes_it(inner, nested):
    if nested:  # the mean, too, is handed the mask beside the graph
        with pytest.raises(ekg.EkgError, match="receives an implicit Keras mask"):
            ekg.Supernet(words(inner, nested))
    else:
        check_prunable(
            words(inner), inputs=np.random.default_rng(0).integers(0, 4, (12, 6)).astype("int32")
        )


def test_outputs_of_a_nested_model_that_nobody_reads_leave_the_channels_of_others_open():
    def backbone(outputs):
        inputs = image()
        c = conv(6, name="c")(inputs)
        d = layers.Add()([c, conv(6, name="d")(c)])
        e = layers.Add()([d, conv(6, name="e")(d)])
        return keras.Model(inputs, outputs(c, d, e), name="backbone")

    for outputs in (
        lambda c, d, e: [d, layers.GlobalAveragePooling2D()(d)],
        lambda c, d, e: [d, layers.ReLU()(d)],
        lambda c, d, e: [d, c, e],
    ):
        images = image()
        supernet = check_prunable(
            classified(images, conv(5, name="head")(backbone(outputs)(images)[0]))
        )
        assert [group.name for group in supernet.groups] == ["backbone/c", "head"]


def test_an_output_of_a_nested_model_that_nobody_reads_stays_as_it_is():
    inputs, images = image(), image()
    low = conv(6, name="low")(inputs)
    backbone = keras.Model(inputs, [low, conv(8, name="high")(low)], name="backbone")
    supernet = check_prunable(classified(images, conv(5, name="head")(backbone(images)[0])))
    assert [group.name for group in supernet.groups] == ["backbone/low", "head"]
    assert supernet.layout.closed["backbone/high"] == "nothing reads it" and supernet.first_use(
        0
    ) < supernet.first_use(1)


def test_a_map_times_a_vector_of_its_channels_is_read_again():
    def excited(x):
        return layers.Multiply()(
            [x, layers.Dense(6, activation="sigmoid")(layers.GlobalAveragePooling2D()(x))]
        )

    check_prunable(chained(excited))


FIRST = {"data_format": "channels_first"}


@pytest.mark.parametrize("use_bias", [True, False])
def test_channels_first_with_and_without_biases(use_bias):
    """Where a bias may be added along the columns of the map, the convolution is closed, and
    counted rightly.
    """
    inputs = x = keras.Input((3, 4, 4))
    for _ in range(2):
        x = layers.ReLU()(layers.Conv2D(6, 3, padding="same", use_bias=False, **FIRST)(x))
    x = layers.Conv2D(10, 1, use_bias=use_bias, **FIRST)(x)
    supernet = check_prunable(
        randomise_(keras.Model(inputs, layers.GlobalAveragePooling2D(**FIRST)(x)))
    )
    assert supernet.complexity(supernet.whole()).flops == 16 * (9 * 3 * 6 + 9 * 6 * 6 + 6 * 10)
    inputs = keras.Input((3, 8, 8))
    x = layers.Conv2D(16, 3, padding="same", activation="relu", **FIRST)(inputs)
    x = layers.Dense(20, activation="relu")(layers.Flatten(**FIRST)(x))
    assert [group.name for group in check_prunable(classified(inputs, x)).groups][-1].startswith(
        "dense"
    )


def test_an_array_added_to_channels_first_closes_channels_that_may_match_its_columns():
    def network(columns):
        inputs = keras.Input((3, 4, columns))
        x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="first", **FIRST)(inputs)
        x = ops.relu(x + np.arange(8, dtype="float32").reshape(8, 1, 1))
        x = ops.relu(layers.Conv2D(6, 3, use_bias=False, name="last", **FIRST)(x))
        return classified(inputs, layers.GlobalAveragePooling2D(**FIRST)(x))

    assert [group.name for group in check_prunable(network(4)).groups] == ["last"]
    assert [group.name for group in check_prunable(network(9)).groups] == ["first", "last"]


class Counting(keras.metrics.Metric):
    """Cannot be made again from its configuration."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def update_state(self, x):
        pass


@pytest.mark.parametrize(
    "make", [lambda: Counting(3), lambda: keras.metrics.MeanMetricWrapper(lambda a, b: a)]
)
def test_a_metric_that_cannot_be_rebuilt_is_shared(make):
    metric = make()
    supernet = ekg.Supernet(chained(Watching(metric, name="watching")))
    assert supernet.cut(supernet.whole()).get_layer("watching").seen is metric


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1


class Unwritten(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(y_pred, -1)

    def get_config(self):
        raise NotImplementedError("not written down")


class Compiling(keras.Model):
    def compile(self, optimizer, loss, alpha):
        super().compile(optimizer, loss)


@pytest.mark.parametrize(
    ("kind", "arguments", "reason"),
    [
        (keras.Model, (keras.optimizers.SGD(Schedule()), "mse"), "must override `get_config"),
        (keras.Model, ("sgd", Unwritten()), "not written down"),
        (Compiling, ("sgd", "mse", 2.0), "has a compile.. of its own"),
    ],
)
def test_no_loss_or_metric_of_a_compiled_network_causes_a_refusal(kind, arguments, reason, caplog):
    inputs = image()
    model = kind(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(conv(4)(inputs))))
    model.compile(*arguments)
    supernet = ekg.Supernet(model)
    assert not caplog.messages and not supernet.cut(supernet.smallest()).compiled
    assert len(caplog.messages) == 1 and re.search(f"is not compiled, .*{reason}", caplog.text)


def test_text_networks_are_pruned_after_the_vectorisation():
    vectorise = layers.TextVectorization(20, output_sequence_length=6)
    vectorise.adapt(["a b c d e f"])
    inputs = keras.Input((1,), dtype="string")
    x = layers.Conv1D(5, 3, activation="relu")(
        layers.Conv1D(6, 3)(layers.Embedding(20, 8)(vectorise(inputs)))
    )
    supernet = ekg.Supernet(classified(inputs, layers.GlobalAveragePooling1D()(x)))
    text = tf.constant([["a b d"], ["f e"]])
    np.testing.assert_allclose(
        supernet.cut(supernet.smallest())(text),
        supernet.forward(
            supernet.weights(), supernet.mask(supernet.smallest()), text, training=False
        ),
        rtol=1e-4,
        atol=1e-5,
    )


def test_copies_of_one_layer_get_unused_names():
    inputs, shape = image(), layers.Reshape((64, 4), name="reshape")
    sides = [layers.Conv1D(3, 1, activation="relu")(shape(conv(4)(inputs))) for _ in range(2)]
    x = layers.Concatenate()([*sides, layers.Reshape((64, 3), name="reshape_1")(inputs)])
    supernet = ekg.Supernet(classified(inputs, layers.GlobalAveragePooling1D()(x)))
    unequal = supernet.whole().with_widths(
        {supernet.groups[0].name: 0.5, supernet.groups[1].name: 0.25}
    )
    assert supernet.cut(unequal).count_params() == supernet.complexity(unequal).params


def test_flops_where_channels_are_not_on_the_last_axis_and_where_a_batch_is_put_together():
    def count(inputs, x):
        return model_complexity(classified(inputs, x)).flops

    first, second = image(), image()
    x = layers.Conv2D(4, 3, padding="same")(ops.concatenate([first, second], axis=0))
    x = layers.Conv2D(5, 3, padding="same")(layers.Concatenate()(ops.split(x, 2, axis=0)))
    assert count([first, second], x) == 2 * 64 * 27 * 4 + 64 * 9 * 8 * 5 + 5 * 3
    inputs = keras.Input((3, 8, 8))
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, **FIRST)(
        layers.BatchNormalization(axis=1)(inputs)
    )
    assert (
        count(inputs, layers.GlobalAveragePooling2D(**FIRST)(x)) == 2 * 64 * 3 + 64 * 27 * 6 + 6 * 3
    )
    x = layers.PReLU(shared_axes=(2, 3))(layers.Conv2D(9, 3, use_bias=False, **FIRST)(inputs))
    assert count(inputs, layers.GlobalAveragePooling2D(**FIRST)(x)) == 36 * 27 * 9 + 36 * 9 + 9 * 3
    inputs = image()
    x = layers.PReLU(shared_axes=(1, 2, 3))(layers.Conv2D(4, 3)(inputs))
    supernet = ekg.Supernet(classified(inputs, x))
    half = supernet.whole().with_widths({supernet.groups[0].name: 0.5})
    assert [supernet.complexity(one).flops for one in (supernet.whole(), half)] == [
        36 * 27 * 4 + 36 * 4 + 4 * 3,
        36 * 27 * 2 + 36 * 2 + 2 * 3,
    ]
    assert supernet.complexity(half).params == supernet.cut(half).count_params()


def test_flops_of_slopes_and_of_attention_by_hand():
    inputs = image()
    x = layers.PReLU()(layers.Conv2D(4, 3, padding="same")(inputs))
    supernet = ekg.Supernet(classified(inputs, x))
    assert supernet.complexity(supernet.whole()).flops == 64 * 9 * 3 * 4 + 64 * 4 + 4 * 3
    query, value = keras.Input((64, 8)), keras.Input((16, 8))

    def count(call):
        x = layers.Dense(4, activation="relu")(call(layers.MultiHeadAttention(2, 3)))
        supernet = ekg.Supernet(classified([query, value], layers.GlobalAveragePooling1D()(x)))
        return supernet.complexity(supernet.whole()).flops

    expected = 64 * 2 * 8 * 6 + 16 * 2 * 8 * 6 + 64 * 16 * 2 * 6 + 64 * 8 * 4 + 4 * 3
    assert count(lambda layer: layer(query, value)) == count(
        lambda layer: layer(query=query, key=value, value=value)
    )
    assert count(lambda layer: layer(query, value)) == expected


def test_attention_over_some_axes_meets_as_many_keys():
    inputs = keras.Input((4, 10, 8))
    x = layers.MultiHeadAttention(2, 3, attention_axes=(2,))(inputs, inputs)
    supernet = ekg.Supernet(classified(inputs, layers.Dense(5, activation="relu")(x)))
    assert (
        supernet.complexity(supernet.whole()).flops
        == 40 * 4 * 8 * 6 + 40 * 10 * 2 * 6 + 40 * 8 * 5 + 5 * 3
    )
