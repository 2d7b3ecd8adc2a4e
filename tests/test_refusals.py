"""Networks that look harmless and are not: pruned rightly all the same, or refused in one line."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import ekg
from ekg.testing import check_prunable
from tests.conftest import randomise_


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
    return layers.EinsumDense("ab,bcd->acd", (4, 4), activation="relu")(layers.GlobalAveragePooling2D()(x))


def rows_of_channels(x):
    x = layers.Dense(5, activation="relu")(ops.reshape(x, (-1, 8 * 6)))
    return layers.GlobalAveragePooling1D()(ops.reshape(x, (-1, 8, 5)))


def moved(layer):
    return lambda x: layers.Permute((2, 3, 1))(layer(layers.Permute((3, 1, 2))(x)))


@pytest.mark.parametrize("make", [
    lambda: classified(i := image(), layers.Flatten(data_format="channels_first")(conv(4)(conv(5)(i)))),
    lambda: classified(i := image(), drawn(conv(4)(i))), lambda: classified(i := image(), rows_of_channels(conv(6)(i))),
    lambda: classified(i := keras.Input((8,)), folded(layers.Dense(6, activation="relu")(i))),
    lambda: chained(layers.Resizing(12, 16, pad_to_aspect_ratio=True, fill_value=2.0)),
    lambda: chained(lambda x: ops.image.resize(x, (12, 16), pad_to_aspect_ratio=True, fill_value=2.0)),
    lambda: chained(lambda x: x + np.arange(8, dtype="float32").reshape(8, 1, 1), 16),
    lambda: chained(lambda x: layers.Softmax(axis=1)(x, mask=ops.abs(x) > 0.1)),
    lambda: chained(lambda x: layers.BatchNormalization()(inputs=x)),
    lambda: chained(moved(layers.PReLU())), lambda: chained(layers.PReLU()),
    lambda: chained(lambda x: layers.Conv2D(4, 1, strides=2)(inputs=x)),
    lambda: chained(layers.Dropout(0.5, noise_shape=(None, 1, 1, 6))), 
    lambda: chained(lambda x: ops.expand_dims(ops.squeeze(x[:, :1]), 1)),
    lambda: chained(lambda x: ops.sum(layers.EinsumDense("abcx,xde->abcde", (8, 8, 2, 3), bias_axes="ed")(x), axis=3)),
])
def test_a_network_is_right_in_spite_of_its_traps(make):
    check_prunable(make(), reload=False)


class Twice(keras.Model):
    """Computes something else than its graph."""

    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training)


class Block(layers.Layer):
    """A convolution and a batch norm in one layer."""

    def __init__(self, **options):
        super().__init__(**options)
        self.conv, self.norm = layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization(name="inside")

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build((*shape[:-1], 4))

    def call(self, x, training=None):
        return self.norm(self.conv(x), training=training)


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


def masked_norm():
    inputs = keras.Input((10,), dtype="int32")
    x = layers.Dense(4, activation="relu")(layers.Embedding(5, 6, mask_zero=True)(inputs))
    return classified(inputs, layers.BatchNormalization(name="norm")(x))


def own_call():
    inputs = image()
    return Twice(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(conv(4)(inputs))), name="twice")


@pytest.mark.parametrize(("make", "message"), [
    (own_call, "`model` 'twice' .Twice. has a call.. of its own, which its graph does not show"),
    (lambda: chained(Block(name="block")), "layer 'block' .Block. holds batch norm 'inside', whose statistics are out of"),
    (masked_norm, "batch norm 'norm' reads a tensor with a mask"),
    (lambda: chained(layers.TimeDistributed(keras.Sequential([layers.Dense(4)], name="seq"))), "model 'seq' "),
    (lambda: classified(i := image(), conv(1)(i)), "nothing in `model` 'own' can be pruned: every channel group has one"),
])
def test_what_cannot_be_pruned_rightly_is_refused_in_one_line(make, message):
    with pytest.raises(ekg.EkgError, match=message) as error:
        ekg.Supernet(make())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("options", "message"), [
    ({"input_shape": 8}, "`input_shape` must be a tuple"), ({"input_shape": (8, 8, 3.0)}, "`input_shape` .* does not fit"),
    ({"min_channels": {3: 2}}, "`min_channels`: 3 is no regular expression"),
    ({"exclude": layers.LSTM}, "`exclude`: no layer"), ({"prune_frozen": "no"}, "`prune_frozen` must be True or False"),
    ({"min_channels": 100}, "`min_channels` and `multiple_of` keep all channels"),
])
def test_choices_that_make_no_sense_are_refused_in_one_line(options, message):
    with pytest.raises(ekg.EkgError, match=message) as error:
        ekg.Supernet(chained(layers.ReLU()), **options)
    assert "\n" not in str(error.value)


def test_a_kind_of_layers_may_be_excluded():
    supernet = ekg.Supernet(chained(layers.SeparableConv2D(4, 3, name="kept")), exclude=layers.SeparableConv2D)
    assert [group.name for group in supernet.groups] == ["first", "last"]


def test_inputs_given_by_name_go_to_the_input_of_that_name():
    first, second = keras.Input((8, 8, 4), name="b"), keras.Input((8, 8, 4), name="a")
    inner = keras.Model([first, second], conv(5)(conv(6)(layers.Subtract()([first, conv(4)(second)]))), name="inner")
    inputs = image()
    model = classified(inputs, inner({"b": conv(4)(inputs), "a": conv(4)(inputs)}))
    check_prunable(model)
    images = np.random.default_rng(0).normal(size=(2, 2, 8, 8, 4)).astype("float32")
    named = {"b": images[0], "a": images[1], "surplus": images[0]}
    supernet = ekg.Supernet(inner)
    np.testing.assert_allclose(supernet.logits(named, supernet.whole(), training=False), inner(list(images)), rtol=1e-4,
                               atol=1e-5)


def test_a_method_that_a_layer_keeps_computes_with_the_copys_own_weights():
    model = chained(Bound(name="bound"))
    supernet = ekg.Supernet(model)
    cut, images = supernet.cut(supernet.smallest()), np.ones((2, 8, 8, 3), np.float32)
    before = cut(images).numpy()
    model.get_layer("bound").kernel.assign(model.get_layer("bound").kernel * 0)
    np.testing.assert_array_equal(cut(images), before)
    cut.get_layer("bound").kernel.assign(cut.get_layer("bound").kernel * 0)
    assert (cut(images).numpy() != before).any()


def test_copies_of_one_layer_take_names_that_are_free():
    inputs, shape = image(), layers.Reshape((64, 4), name="reshape")
    sides = [layers.Conv1D(3, 1, activation="relu")(shape(conv(4)(inputs))) for _ in range(2)]
    x = layers.Concatenate()([*sides, layers.Reshape((64, 3), name="reshape_1")(inputs)])
    supernet = ekg.Supernet(classified(inputs, layers.GlobalAveragePooling1D()(x)))
    unequal = supernet.whole().with_widths({supernet.groups[0].name: 0.5, supernet.groups[1].name: 0.25})
    assert supernet.cut(unequal).count_params() == supernet.complexity(unequal).params


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
    assert count(lambda layer: layer(query, value)) == count(lambda layer: layer(query=query, key=value, value=value))
    assert count(lambda layer: layer(query, value)) == expected


def test_attention_over_some_axes_meets_as_many_keys():
    inputs = keras.Input((4, 10, 8))
    x = layers.MultiHeadAttention(2, 3, attention_axes=(2,))(inputs, inputs)
    supernet = ekg.Supernet(classified(inputs, layers.Dense(5, activation="relu")(x)))
    assert supernet.complexity(supernet.whole()).flops == 40 * 4 * 8 * 6 + 40 * 10 * 2 * 6 + 40 * 8 * 5 + 5 * 3
