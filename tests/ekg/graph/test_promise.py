"""The promise of check_prunable for every kind of layer, structure and setting, each in a network
as small as can be.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops

import ekg
from ekg.testing import check_prunable
from tests.helpers.models import conv_bn, randomise_

CLASSES = 3


def classified(inputs, x, **options):
    """Returns a model with random weights that classifies by the mean of each channel."""
    pools = {
        3: layers.GlobalAveragePooling1D,
        4: layers.GlobalAveragePooling2D,
        5: layers.GlobalAveragePooling3D,
    }
    x = pools[len(x.shape)](name="pool", **options)(x) if len(x.shape) > 2 else x
    return randomise_(keras.Model(inputs, layers.Dense(CLASSES, name="fc")(x), name="small"))


def names_of(supernet):
    return {group.name for group in supernet.groups}


def image(size=8, channels=3):
    return keras.Input((size, size, channels))


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make_sequential(name="sequential", channels=3, width=4):
    return keras.Sequential(
        [
            keras.Input((8, 8, channels)),
            layers.Conv2D(width, 3, padding="same", name=f"{name}_conv"),
            layers.BatchNormalization(name=f"{name}_bn"),
            layers.ReLU(name=f"{name}_relu"),
        ],
        name=name,
    )


def make_functional(name="functional", channels=3, width=5):
    inputs = keras.Input((8, 8, channels))
    return keras.Model(inputs, conv_bn(inputs, width, f"{name}_conv"), name=name)


# ---------------------------------------------------------------- structure


def test_a_sequential_network_stays_one():
    model = make_sequential()
    for layer in (
        layers.Conv2D(5, 3, name="next"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(CLASSES, name="fc"),
    ):
        model.add(layer)
    supernet = check_prunable(randomise_(model))
    cut = supernet.cut(supernet.smallest())
    assert type(cut) is keras.Sequential and [layer.name for layer in cut.layers] == [
        layer.name for layer in model.layers
    ]


def test_networks_nested_two_deep_keep_their_nesting():
    inner = make_sequential("inner")
    inside = keras.Input((8, 8, 3))
    middle = keras.Model(inside, conv_bn(inner(inside), 6, "middle_conv"), name="middle")
    outer = keras.Sequential(
        [keras.Input((8, 8, 3)), middle, make_functional("second", 6)], name="outer"
    )
    inputs = image()
    supernet = check_prunable(classified(inputs, conv_bn(outer(inputs), 4, "last")))
    assert names_of(supernet) == {
        "outer/middle/inner/inner_conv",
        "outer/middle/middle_conv",
        "outer/second/second_conv",
        "last",
    }
    cut = supernet.cut(supernet.smallest())
    assert type(cut.get_layer("outer")) is keras.Sequential
    assert (
        cut.get_layer("outer")
        .get_layer("middle")
        .get_layer("inner")
        .get_layer("inner_conv")
        .filters
        == 1
    )


def two_inputs():
    left, right = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 2), name="right")
    x = layers.Add()([conv_bn(left, 4, "one"), conv_bn(right, 4, "two")])
    return left, right, conv_bn(x, 5, "three"), layers.GlobalMaxPooling2D()(x)


@pytest.mark.parametrize("kind", [list, tuple, dict])
def test_inputs_and_outputs_keep_their_structure(kind):
    left, right, maps, vector = two_inputs()
    outputs = [
        layers.Conv2D(2, 1, name="maps")(maps),
        layers.Dense(CLASSES, name="classes")(vector),
    ]
    if kind is dict:
        inputs, outputs = {"left": left, "right": right}, dict(zip(("maps", "classes"), outputs))
    else:
        inputs, outputs = kind([left, right]), kind(outputs)
    supernet = check_prunable(randomise_(keras.Model(inputs, outputs)))
    given = [random_images(2, 8, 8, 3), random_images(2, 8, 8, 2)]
    given = dict(zip(("left", "right"), given)) if kind is dict else given
    expected, result = supernet.model(given), supernet.cut(supernet.smallest())(given)
    assert type(result) is type(expected)
    assert keras.tree.map_structure(
        lambda value: tuple(value.shape), result
    ) == keras.tree.map_structure(lambda value: tuple(value.shape), expected)


def test_nested_structures_of_outputs_are_kept():
    left, right, maps, vector = two_inputs()
    outputs = {
        "a": [layers.Conv2D(2, 1, name="maps")(maps), maps],
        "b": {"c": layers.Dense(2, name="classes")(vector)},
    }
    supernet = check_prunable(randomise_(keras.Model({"x": [left, right]}, outputs)))
    assert names_of(supernet) == {"one"}  # the maps that are returned keep their channels
    result = supernet.cut(supernet.smallest())(
        {"x": [random_images(2, 8, 8, 3), random_images(2, 8, 8, 2)]}
    )
    assert set(result) == {"a", "b"} and len(result["a"]) == 2 and set(result["b"]) == {"c"}


def test_an_output_that_is_returned_twice_is_fixed():
    inputs = image()
    x = conv_bn(conv_bn(inputs, 4, "one"), 5, "two")
    supernet = check_prunable(randomise_(keras.Model(inputs, [x, x, inputs])))
    assert names_of(supernet) == {"one"}


def test_a_nested_network_of_several_inputs_and_outputs():
    first, second = keras.Input((8, 8, 4), name="first"), keras.Input((8, 8, 4), name="second")
    x = layers.Add(name="add")([first, second])
    inner = keras.Model(
        {"first": first, "second": second},
        {"sum": x, "map": conv_bn(x, 5, "inner"), "same": first},
        name="nested",
    )
    inputs = image()
    outputs = inner({"first": conv_bn(inputs, 4, "one"), "second": conv_bn(inputs, 4, "two")})
    x = layers.Concatenate(name="cat")([outputs["sum"], outputs["map"], outputs["same"]])
    supernet = check_prunable(classified(inputs, conv_bn(x, 4, "last")))
    assert names_of(supernet) == {"one", "nested/inner", "last"}


def test_a_layer_that_is_called_twice_loses_the_same_channels():
    inputs, conv, norm = (
        image(),
        layers.Conv2D(4, 3, padding="same", name="twice"),
        layers.BatchNormalization(name="norm"),
    )
    x = conv_bn(inputs, 4, "stem")
    supernet = check_prunable(classified(inputs, ops.relu(norm(conv(ops.relu(conv(x)))))))
    assert supernet.groups[0].writers == ("stem", "twice")


def test_a_network_that_is_called_twice_loses_the_same_channels():
    inputs, inner = image(), make_functional("inner", channels=4, width=4)
    x = inner(ops.relu(inner(conv_bn(inputs, 4, "stem"))))
    supernet = check_prunable(classified(inputs, conv_bn(x, 5, "last")))
    assert supernet.groups[0].writers == ("stem", "inner/inner_conv")


def test_a_network_that_reads_two_inputs_in_turn_is_shared():
    left, right, inner = image(), image(), make_functional("tower", width=4)
    x = layers.Subtract()([inner(left), inner(right)])
    supernet = check_prunable(classified([left, right], conv_bn(x, 4, "last")))
    assert len(supernet.cut(supernet.smallest()).layers) == len(supernet.model.layers)


@pytest.mark.parametrize(("widths", "shape"), [((6, 6), (1, 1, 6)), ((4, 6), (1, 1, -1))])
def test_one_reshape_serves_two_blocks_that_are_cut_to_different_widths(widths, shape):
    inputs, reshape = image(), layers.Reshape(shape, name="shape")
    x = inputs
    for i, width in enumerate(widths):
        x = conv_bn(x, width, f"conv{i}")
        s = reshape(layers.GlobalAveragePooling2D(name=f"squeeze{i}")(x))
        s = layers.Conv2D(width, 1, activation="sigmoid", name=f"excite{i}")(
            layers.Conv2D(2, 1, name=f"reduce{i}")(s)
        )
        x = layers.Multiply(name=f"scale{i}")([x, s])
    supernet = check_prunable(classified(inputs, conv_bn(x, 4, "last")), subnetworks=4)
    assert {"conv0", "conv1"} <= names_of(supernet)


def test_a_part_of_a_tensor_that_nobody_reads_is_no_fault():
    inputs = image()
    first, _ = ops.split(conv_bn(inputs, 6, "one"), 2, axis=-1)
    check_prunable(classified(inputs, conv_bn(first, 4, "two")))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: ops.concatenate([x, x], axis=-1),
        lambda x: layers.Add()([x, x]),
        lambda x: x * x,
        lambda x: ops.concatenate([x, ops.relu(x)], axis=1),
        lambda x: ops.stack([x, x], axis=1)[:, 0],
        lambda x: x[:, ::-1, ::2],
        lambda x: x[:, 1:-1, 0:3, 2:4],
        lambda x: x[..., ::2],
        lambda x: x[:, None][:, 0],
        lambda x: ops.where(x > 0, x, 0.1 * x),
        lambda x: x**2,
        lambda x: ops.maximum(x, 0.2),
        lambda x: 1 - ops.sigmoid(x),
        lambda x: x - ops.mean(x, axis=-1, keepdims=True),
        lambda x: x / (1 + ops.sum(ops.abs(x), axis=-1, keepdims=True)),
        lambda x: ops.softmax(x, axis=-1),
        lambda x: ops.flip(x, axis=1),
        lambda x: ops.roll(x, 1, axis=-1),
        lambda x: ops.image.resize(x, (4, 4)),
        lambda x: ops.repeat(x, 2, axis=-1),
        lambda x: ops.tile(x, (1, 1, 1, 2)),
        lambda x: ops.normalize(x, axis=-1),
        lambda x: ops.swapaxes(x, 1, 2),
        lambda x: ops.moveaxis(x, 3, 1)[:, :, 0, 0],
        lambda x: ops.max(x, axis=(1, 2), keepdims=True),
        lambda x: ops.reshape(x, (-1, 64, 4)),
        pytest.param(lambda x: x[..., 0]),
        pytest.param(lambda x: ops.reshape(x, (-1, 8, 8, 2, 2))[..., 0]),
        lambda x: ops.reshape(x, (-1, 256)),
        lambda x: ops.clip(x, 0.1, 0.5),
        lambda x: ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=1),
        lambda x: ops.average_pool(x, 2, padding="same"),
        lambda x: ops.squeeze(ops.mean(x, axis=(1,), keepdims=True), 1),
        lambda x: ops.einsum("bhwc,bhwc->bhw", x, x)[..., None],
        lambda x: ops.matmul(x, ops.transpose(x, (0, 1, 3, 2))),
        lambda x: ops.var(x, axis=(1, 2)),
        lambda x: ops.sort(x, axis=-1),
        lambda x: ops.take(x, [0, 2], axis=-1),
        lambda x: ops.sqrt(ops.abs(x) + 1),
        lambda x: ops.cast(x, "float16"),
        lambda x: ops.logaddexp(x, 0.5 * x),
        lambda x: ops.prod(x, axis=(1, 2)),
        lambda x: ops.expand_dims(x, 1)[:, 0],
    ],
)
def test_any_layer_between_two_others_is_pruned_correctly_or_closed(make):
    inputs = image()
    x = make(conv_bn(inputs, 4, "one"))
    x = ops.cast(x, "float32") if x.dtype != "float32" else x
    x = layers.Dense(4, activation="relu", name="two")(x)
    x = layers.Dense(4, activation="relu", name="three")(x)
    check_prunable(classified(inputs, x), subnetworks=1, reload=False)


# ---------------------------------------------------------------- what prepares the inputs


def adapted(values, name="normalise"):
    layer = layers.Normalization(name=name)
    layer.adapt(values)
    return layer


def test_an_adapted_normalisation_of_the_inputs_keeps_its_state():
    inputs, values = image(), 3 + 2 * random_images(20, 8, 8, 3)
    x = adapted(values)(inputs)
    model = keras.Model(
        inputs, layers.Dense(CLASSES, name="fc")(layers.GlobalMaxPooling2D()(conv_bn(x, 4, "one")))
    )
    supernet = check_prunable(model, inputs=values)
    cut = supernet.cut(supernet.smallest()).get_layer("normalise")
    np.testing.assert_array_equal(cut.mean, model.get_layer("normalise").mean)
    np.testing.assert_array_equal(cut.variance, model.get_layer("normalise").variance)


def test_an_adapted_normalisation_inside_a_nested_network_keeps_its_state():
    inside, values = image(), 3 + 2 * random_images(20, 8, 8, 3)
    preprocessing = keras.Model(
        inside, layers.Rescaling(0.5, 1.0)(adapted(values)(inside)), name="preprocessing"
    )
    inputs = image()
    x = conv_bn(preprocessing(inputs), 4, "one")
    model = keras.Model(inputs, layers.Dense(CLASSES, name="fc")(layers.GlobalMaxPooling2D()(x)))
    check_prunable(model, inputs=values)


def test_a_normalisation_of_given_mean_and_variance():
    inputs = image()
    x = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 2.0, 4.0])(inputs)
    supernet = check_prunable(classified(inputs, conv_bn(x, 4, "one")))
    assert not supernet.table.uncounted


@pytest.mark.parametrize(
    "options",
    [
        {"scale": [0.5, 1.0, 2.0, 4.0]},
        {"scale": 2.0, "offset": [1.0, 2.0, 3.0, 4.0]},
        {"scale": [0.5, 1.0, 2.0, 4.0], "offset": [1.0, 2.0, 3.0, 4.0]},
    ],
)
def test_a_rescaling_by_vectors_inside_loses_the_entries_of_its_channels(options):
    inputs = image()
    x = layers.Rescaling(**options, name="scale")(conv_bn(inputs, 4, "one"))
    supernet = check_prunable(classified(inputs, conv_bn(x, 4, "two")))
    assert names_of(supernet) == {"one", "two"}


def test_random_augmentations_inside_stay_off():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.RandomFlip(),
            layers.RandomRotation(0.1),
            layers.RandomCrop(8, 8),
            layers.Rescaling(0.5),
            layers.Conv2D(4, 3, name="one"),
            layers.Dropout(0.5),
            layers.GaussianNoise(1.0),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES, name="fc"),
        ]
    )
    check_prunable(randomise_(model))


def test_whole_numbers_become_channels():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.CategoryEncoding(4, output_mode="multi_hot")(inputs)
    check_prunable(classified(inputs, layers.Dense(5, activation="relu", name="hidden")(x)))


# ------------------------------------------ activations and layers of one's own


def test_a_custom_function_named_relu_is_not_mistaken_for_relu():
    def relu(x):
        return x - ops.mean(x, axis=-1, keepdims=True)

    inputs = image()
    x = layers.Activation(relu, name="own")(conv_bn(inputs, 4, "before"))
    x = layers.Conv2D(4, 3, activation=relu, name="inside")(conv_bn(x, 4, "free"))
    supernet = check_prunable(classified(inputs, conv_bn(x, 4, "last")), reload=False)
    assert names_of(supernet) == {"free", "last"}
    assert supernet.layout.closed["before"] == "read by 'own' (Activation)"
    assert "the activation of 'inside' (Conv2D)" in supernet.layout.closed["inside"]


def test_a_lambda_closes_the_channels_it_reads():
    inputs = image()
    x = layers.Lambda(lambda x: ops.cumsum(x, axis=-1), name="own")(conv_bn(inputs, 4, "before"))
    supernet = check_prunable(classified(inputs, conv_bn(x, 4, "last")), reload=False)
    assert (
        names_of(supernet) == {"last"}
        and supernet.layout.closed["before"] == "read by 'own' (Lambda)"
    )


class Own(layers.Layer):
    """A layer without a get_config of its own, whose argument Keras cannot write down."""

    def __init__(self, function):
        super().__init__(name="own")
        self.function = function
        self.inner = layers.Dense(4, name="inner")

    def build(self, shape):
        self.inner.build(shape)
        self.scale = self.add_weight(shape=(shape[-1],), name="scale", initializer="ones")

    def call(self, x):
        return self.function(self.inner(x * ops.flip(self.scale, axis=0)))

    def compute_output_shape(self, shape):
        return (*shape[:-1], 4)


def test_a_custom_layer_without_get_config_closes_the_channels_it_reads():
    inputs = image()
    x = conv_bn(Own(lambda x: x + 1)(conv_bn(inputs, 4, "before")), 4, "last")
    supernet = check_prunable(classified(inputs, x), reload=False)
    assert names_of(supernet) == {"last"} and supernet.layout.closed["before"].startswith(
        "read by 'own' (Own), as it stays closed: a weight of its own goes into 'flip"
    )
    assert supernet.table.uncounted == ["'own' (Own)"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.PReLU(shared_axes=(1, 2), alpha_initializer="random_normal"),
        lambda: layers.PReLU(alpha_initializer="random_normal"),
        lambda: layers.PReLU(shared_axes=(1, 2, 3), alpha_initializer="random_normal"),
        lambda: layers.LeakyReLU(0.1),
        lambda: layers.ELU(),
        lambda: layers.ReLU(6.0, 0.1, 0.5),
        lambda: layers.Softmax(axis=1),
        lambda: layers.Activation("hard_silu"),
        lambda: layers.Activation(layers.LeakyReLU(0.2)),
        lambda: layers.Activation("softmax"),
        lambda: layers.UnitNormalization(),
    ],
)
def test_an_activation_layer(make):
    inputs = image()
    x = make()(layers.Conv2D(4, 3, name="one")(inputs))
    check_prunable(classified(inputs, conv_bn(x, 4, "two")))


# ---------------------------------------------------------------- norms


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.LayerNormalization(epsilon=1e-3),
        lambda: layers.LayerNormalization(scale=False),
        lambda: layers.LayerNormalization(center=False),
        lambda: layers.LayerNormalization(axis=[-1]),
        lambda: layers.RMSNormalization(),
        lambda: layers.UnitNormalization(),
        lambda: layers.BatchNormalization(scale=False),
        lambda: layers.BatchNormalization(center=False),
        lambda: layers.BatchNormalization(axis=3),
        lambda: layers.GroupNormalization(groups=2),
        lambda: layers.GroupNormalization(groups=-1),
        lambda: layers.GroupNormalization(groups=3, scale=False, center=False),
    ],
)
def test_a_norm_over_channels_is_over_the_kept_ones(make):
    inputs = image()
    x = ops.relu(make()(layers.Conv2D(6, 3, name="one")(inputs)))
    supernet = check_prunable(classified(inputs, conv_bn(x, 4, "two")))
    assert names_of(supernet) == {"one", "two"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.LayerNormalization(axis=(1, 2, 3)),
        lambda: layers.LayerNormalization(axis=1),
        lambda: layers.BatchNormalization(axis=1),
        lambda: layers.GroupNormalization(groups=2, axis=1),
        lambda: layers.UnitNormalization(axis=(1, 3)),
        lambda: layers.SpectralNormalization(layers.Conv2D(4, 3)),
    ],
)
def test_a_norm_along_other_axes_closes_its_channels_or_treats_them_separately(make):
    inputs = image()
    x = ops.relu(make()(layers.Conv2D(6, 1, name="one")(inputs)))
    supernet = check_prunable(classified(inputs, conv_bn(x, 4, "two")))
    assert names_of(supernet) == {"two"}


def test_a_norm_over_stacked_channels_some_of_which_are_fixed():
    inputs = image()
    x = layers.Concatenate()([inputs, conv_bn(inputs, 4, "one"), conv_bn(inputs, 5, "two")])
    x = conv_bn(layers.LayerNormalization(epsilon=1e-3, name="norm")(x), 4, "last")
    assert names_of(check_prunable(classified(inputs, x))) == {"one", "two", "last"}


# ---------------------------------------------------------------- convolutions and dense layers


SAME = {"padding": "same"}


@pytest.mark.parametrize(
    ("rank", "make"),
    [
        (1, lambda: layers.Conv1D(6, 3, name="x")),
        (1, lambda: layers.Conv1D(6, 3, padding="causal", dilation_rate=2, name="x")),
        (3, lambda: layers.Conv3D(6, 3, **SAME, name="x")),
        (2, lambda: layers.Conv2D(6, 3, dilation_rate=2, name="x")),
        (2, lambda: layers.Conv2D(6, 1, strides=2, name="x")),
        (2, lambda: layers.Conv2D(6, (1, 3), strides=(2, 1), name="x")),
        (
            2,
            lambda: layers.Conv2D(
                6, 1, strides=(2, 1), padding="same", activation="silu", name="x"
            ),
        ),
        (1, lambda: layers.SeparableConv1D(6, 3, name="x")),
        (2, lambda: layers.SeparableConv2D(6, 3, **SAME, name="x")),
        (
            2,
            lambda: layers.SeparableConv2D(
                6, 3, strides=2, depth_multiplier=2, use_bias=False, name="x"
            ),
        ),
        (1, lambda: layers.Conv1DTranspose(6, 3, strides=2, name="x")),
        (2, lambda: layers.Conv2DTranspose(6, 3, strides=2, **SAME, name="x")),
        (3, lambda: layers.Conv3DTranspose(6, 2, strides=2, name="x")),
        (2, lambda: layers.Conv2D(6, 3, groups=2, name="x")),
        (1, lambda: layers.Conv1D(6, 3, groups=2, name="x")),
        (3, lambda: layers.Conv3D(6, 3, groups=2, name="x")),
        (2, lambda: layers.Conv2D(8, 3, groups=4, name="x")),
        (2, lambda: layers.Conv2D(4, 3, groups=4, **SAME, name="x")),
        (2, lambda: layers.Conv2D(6, 1, groups=2, strides=2, name="x")),
        (2, lambda: layers.Dense(6, activation="gelu", name="x")),
        (3, lambda: layers.Dense(6, name="x")),
        (2, lambda: layers.EinsumDense("bhwc,cd->bhwd", (8, 8, 6), bias_axes="d", name="x")),
        (2, lambda: layers.EinsumDense("bhwc,cd->bhwd", (None, None, 6), name="x")),
        (2, lambda: layers.EinsumDense("...c,cd->...d", 6, name="x")),
        (
            1,
            lambda: layers.EinsumDense(
                "btc,cd->btd", (8, 6), bias_axes="d", activation="relu", name="x"
            ),
        ),
        (1, lambda: layers.EinsumDense("btc,cd->btd", (None, 6), name="x")),
        (1, lambda: layers.EinsumDense("btc,tcd->btd", (8, 6), bias_axes="td", name="x")),
        (1, lambda: layers.EinsumDense("btc,cdh->btdh", (8, 2, 3), bias_axes="dh", name="x")),
        (1, lambda: layers.EinsumDense("btc,ts->bsc", (5, 4), name="x")),
        (2, lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, name="x")),
        (1, lambda: layers.DepthwiseConv1D(3, depth_multiplier=2, **SAME, name="x")),
        (2, lambda: layers.DepthwiseConv2D(3, strides=2, activation="relu", name="x")),
        (1, lambda: layers.TimeDistributed(layers.Dense(5), name="x")),
    ],
)
def test_a_layer_with_a_kernel(rank, make):
    inputs = keras.Input((*[8] * rank, 2))
    conv = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}[rank]
    x = layers.BatchNormalization(name="bn0")(
        conv(4, 3, padding="same", activation="relu", name="before")(inputs)
    )
    x = make()(x)
    x = ops.relu(layers.BatchNormalization(name="bn1")(x))
    x = layers.Dense(5, activation="relu", name="after")(x)
    check_prunable(classified(inputs, x))


@pytest.mark.parametrize(
    "head",
    [
        lambda x: layers.Flatten()(x),
        lambda x: layers.Flatten()(layers.Permute((3, 1, 2))(x)),
        lambda x: layers.Reshape((-1, 6))(x),
        lambda x: layers.Reshape((8, 48))(x),
        lambda x: layers.Reshape((384,))(x),
        lambda x: layers.GlobalMaxPooling2D(keepdims=True)(x),
        lambda x: layers.Cropping2D(2)(layers.UpSampling2D()(x)),
        lambda x: layers.Reshape((4, 4, 24))(layers.Flatten()(x)),
        lambda x: layers.RepeatVector(3)(layers.Flatten()(x)),
        lambda x: layers.Average()([x, 2 * x]),
        lambda x: layers.Dot(axes=(3, 3))([x, x]),
        lambda x: layers.Resizing(4, 4)(x),
        lambda x: layers.CenterCrop(4, 4)(x),
        lambda x: layers.Permute((2, 3, 1))(x),
        lambda x: layers.MaxPooling2D(2)(layers.ZeroPadding2D(1)(x)),
        lambda x: layers.SpatialDropout2D(0.5)(x),
        lambda x: layers.Masking()(layers.Reshape((64, 6))(x)),
        lambda x: layers.Identity()(x),
        lambda x: layers.Reshape((8, 8, 1, 6))(x),
        lambda x: layers.Reshape((6, 1, 64))(layers.Permute((3, 1, 2))(x)),
    ],
)
def test_a_layer_without_weights(head):
    inputs = image()
    x = head(layers.Conv2D(6, 3, padding="same", activation="relu", name="before")(inputs))
    x = layers.Dense(5, activation="relu", name="after")(x)
    x = layers.Dense(4, activation="relu", name="last")(layers.Flatten()(x))
    check_prunable(classified(inputs, x))


def test_positions_folded_into_the_batch_cost_the_same():
    inputs = image()
    x = ops.reshape(conv_bn(inputs, 4, "one"), (-1, 4))
    x = ops.reshape(layers.Dense(5, activation="relu", name="two")(x), (-1, 8, 8, 5))
    supernet = check_prunable(classified(inputs, x))
    assert (
        supernet.complexity(supernet.whole()).flops
        == 64 * 9 * 3 * 4 + 64 * 2 * 4 + 64 * 4 * 5 + 5 * 3
    )


def test_a_dense_layer_that_draws_an_image():
    inputs = keras.Input((5,))
    x = layers.Dense(4 * 4 * 6, activation="relu", name="draw")(
        layers.Dense(7, activation="relu", name="hidden")(inputs)
    )
    x = conv_bn(layers.Reshape((4, 4, 6))(x), 4, "conv")
    supernet = check_prunable(classified(inputs, x))
    assert names_of(supernet) == {"hidden", "conv"}


# ---------------------------------------------------------------- closed, but counted


def test_an_embedding_and_a_recurrent_layer_are_counted():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, name="embedding")(inputs)
    x = layers.LSTM(5, name="lstm")(layers.Dense(7, activation="relu", name="before")(x))
    supernet = check_prunable(
        classified(inputs, layers.Dense(4, activation="relu", name="hidden")(x))
    )
    assert supernet.layout.closed == {"fc": "output of the network"}
    flops = 6 * 8 * 7 + 6 * (7 + 5) * 4 * 5 + 5 * 4 + 4 * 3
    params = 20 * 8 + (8 + 1) * 7 + (7 + 5 + 1) * 4 * 5 + (5 + 1) * 4 + (4 + 1) * 3
    assert supernet.complexity(supernet.whole()) == ekg.Complexity(params, flops)


@pytest.mark.parametrize(
    ("make", "flops", "params"),
    [
        (lambda: layers.GRU(5, name="x"), 6 * (7 + 5) * 3 * 5, ((7 + 5) + 2) * 3 * 5),
        (lambda: layers.SimpleRNN(5, name="x"), 6 * (7 + 5) * 5, (7 + 5 + 1) * 5),
        (lambda: layers.LSTM(5, use_bias=False, name="x"), 6 * (7 + 5) * 20, (7 + 5) * 20),
        (
            lambda: layers.Bidirectional(layers.LSTM(5), name="x"),
            2 * 6 * (7 + 5) * 20,
            2 * (7 + 5 + 1) * 20,
        ),
    ],
)
def test_a_recurrent_layer_costs_its_kernels_at_each_step(make, flops, params):
    inputs = keras.Input((6, 2))
    x = make()(layers.Dense(7, name="before")(inputs))
    model = classified(inputs, layers.Dense(4, activation="relu", name="hidden")(x))
    supernet, read = check_prunable(model), x.shape[-1]
    assert list(supernet.layout.closed) == ["fc"]
    assert supernet.complexity(supernet.whole()) == ekg.Complexity(
        3 * 7 + params + (read + 1) * 4 + 5 * 3, 6 * 2 * 7 + flops + read * 4 + 4 * 3
    )


@pytest.mark.parametrize("value_dim", [3, 5])
def test_attention_is_counted(value_dim):
    inputs = keras.Input((6, 8))
    x = layers.LayerNormalization(name="norm")(inputs)
    y = layers.MultiHeadAttention(2, 3, value_dim, name="attention")(x, x)
    x = layers.Add(name="add")([inputs, y])
    x = layers.Dense(8, name="down")(layers.Dense(10, activation="gelu", name="up")(x))
    supernet = check_prunable(classified(inputs, x))
    assert "up" in names_of(supernet)
    projections = 8 * 2 * (3 + 3 + value_dim + value_dim)
    flops = 2 * 6 * 8 + 6 * projections + 6 * 6 * 2 * (3 + value_dim) + 6 * 8 * 10 * 2 + 8 * 3
    params = 2 * 8 + projections + 2 * (3 + 3 + value_dim) + 8 + 9 * 10 + 11 * 8 + 9 * 3
    assert supernet.complexity(supernet.whole()) == ekg.Complexity(params, flops)


def test_attention_of_a_query_to_other_values_with_a_mask():
    query, value, mask = keras.Input((5, 8)), keras.Input((7, 4)), keras.Input((5, 7), dtype="bool")
    y = layers.MultiHeadAttention(2, 3, name="attention")(query, value, attention_mask=mask)
    x = layers.Dense(6, activation="relu", name="hidden")(y)
    given = [random_images(3, 5, 8), random_images(3, 7, 4), np.tril(np.ones((3, 5, 7), bool))]
    supernet = check_prunable(classified([query, value, mask], x), inputs=given)
    entries = 2 * 3 * (8 + 4 + 4 + 8)
    flops = 5 * 48 + 7 * 24 + 7 * 24 + 5 * 48 + 5 * 7 * 2 * 6 + 5 * 8 * 6 + 6 * 3
    params = entries + 3 * 6 + 8 + 9 * 6 + 7 * 3
    assert supernet.complexity(supernet.whole()) == ekg.Complexity(params, flops)


def test_the_mask_of_padded_tokens_reaches_every_layer():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True, name="embedding")(inputs)
    x = layers.LSTM(5, name="lstm")(layers.Dense(7, activation="relu", name="before")(x))
    model = classified(inputs, layers.Dense(4, activation="relu", name="hidden")(x))
    check_prunable(model, inputs=np.random.default_rng(0).integers(0, 4, (12, 6)).astype("int32"))


def test_the_mask_of_padded_tokens_reaches_a_mean_after_a_gate():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True, name="embedding")(inputs)
    x = layers.Dense(7, activation="relu", name="one")(x)
    x = layers.Dense(5, activation="relu", name="two")(x)
    check_prunable(
        classified(inputs, x),
        inputs=np.random.default_rng(0).integers(0, 4, (12, 6)).astype("int32"),
    )


def test_spatial_attention_multiplies_by_a_map_of_one_channel():
    inputs = image()
    x = conv_bn(inputs, 6, "one")
    gate = layers.Conv2D(1, 3, padding="same", activation="sigmoid", name="gate")(x)
    x = layers.Multiply(name="attend")([x, gate])
    supernet = check_prunable(classified(inputs, conv_bn(x, 4, "two")))
    assert names_of(supernet) == {"one", "two"}
    assert supernet.layout.closed["gate"] == "spread over all channels by 'attend' (Multiply)"


def test_attention_by_the_mean_and_the_maximum_over_channels_closes_them():
    inputs = image()
    x = conv_bn(inputs, 6, "one")
    maps = ops.concatenate([ops.mean(x, -1, keepdims=True), ops.max(x, -1, keepdims=True)], axis=-1)
    x = x * layers.Conv2D(1, 3, padding="same", activation="sigmoid", name="gate")(maps)
    supernet = check_prunable(classified(inputs, conv_bn(x, 4, "two")))
    assert names_of(supernet) == {"two"}


@pytest.mark.parametrize("dense", [False, True])
def test_squeeze_and_excite(dense):
    inputs = image()
    x = conv_bn(inputs, 6, "one")
    if dense:
        s = layers.Dense(3, activation="relu", name="reduce")(layers.GlobalAveragePooling2D()(x))
        s = layers.Reshape((1, 1, 6))(layers.Dense(6, activation="sigmoid", name="excite")(s))
    else:
        s = layers.Conv2D(3, 1, activation="relu", name="reduce")(
            ops.mean(x, (1, 2), keepdims=True)
        )
        s = layers.Conv2D(6, 1, activation="hard_sigmoid", name="excite")(s)
    supernet = check_prunable(classified(inputs, conv_bn(x * s, 4, "two")))
    assert supernet.groups[0].writers == ("one", "excite") and names_of(supernet) == {
        "one",
        "reduce",
        "two",
    }


# ------------------------------------------ modes, frozen layers, number formats


@pytest.mark.parametrize("frozen", [False, True])
def test_a_nested_network_called_in_inference_mode_works_as_in_keras(frozen):
    """Keras' own call of the whole in training counts more, unless the norms are frozen."""
    inputs, base = image(), make_functional("base")
    x = layers.Conv2D(4, 3, activation="relu", name="one")(base(inputs, training=False))
    model = classified(inputs, x)
    base.trainable = not frozen
    supernet, images = check_prunable(model), random_images(5, 8, 8, 3)
    values = [
        np.asarray(supernet.logits(images, supernet.whole(), training=training))
        for training in (False, True)
    ]
    assert np.array_equal(*values) == frozen
    for subnetwork in (supernet.whole(), supernet.smallest()):
        cut = supernet.cut(subnetwork)
        output, new = cut.stateless_call(
            cut.trainable_variables, cut.non_trainable_variables, images, training=True
        )
        np.testing.assert_allclose(
            output, supernet.logits(images, subnetwork, training=True), rtol=1e-3, atol=1e-4
        )
        old = [variable.value for variable in cut.non_trainable_variables]
        assert all(np.array_equal(*pair) for pair in zip(old, new, strict=True)) == frozen


def test_a_batch_norm_called_in_inference_mode_keeps_its_moving_statistics():
    inputs = image()
    x = layers.BatchNormalization(name="norm")(
        layers.Conv2D(4, 3, name="one")(inputs), training=False
    )
    check_prunable(classified(inputs, conv_bn(ops.relu(x), 4, "two")))


@pytest.mark.parametrize("prune_frozen", [False, True])
def test_a_frozen_layer_keeps_its_channels_unless_it_may_lose_them(prune_frozen):
    inputs = image()
    model = classified(inputs, conv_bn(conv_bn(conv_bn(inputs, 4, "one"), 5, "two"), 6, "three"))
    model.get_layer("two").trainable = model.get_layer("one_bn").trainable = False
    supernet = check_prunable(model, prune_frozen=prune_frozen)
    assert names_of(supernet) == {"one", "three"} | ({"two"} if prune_frozen else set())
    assert ("two" in supernet.layout.closed) != prune_frozen
    cut = supernet.cut(supernet.smallest())
    assert [cut.get_layer(name).trainable for name in ("one", "one_bn", "two", "three")] == [
        True,
        False,
        False,
        True,
    ]
    assert len(cut.trainable_variables) == len(model.trainable_variables)


def test_a_frozen_nested_network_keeps_its_channels_and_stays_frozen():
    inputs, base = image(), make_functional("base")
    base.trainable = False
    supernet = check_prunable(classified(inputs, conv_bn(base(inputs), 4, "head")))
    assert (
        names_of(supernet) == {"head"} and "is frozen" in supernet.layout.closed["base/base_conv"]
    )
    assert not supernet.cut(supernet.smallest()).get_layer("base").trainable_variables


@pytest.fixture
def policy(request):
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"], indirect=True)
def test_mixed_precision(policy):
    inputs = image()
    x = conv_bn(
        layers.Concatenate()([conv_bn(inputs, 6, "one"), conv_bn(inputs, 4, "two")]), 6, "three"
    )
    x = layers.DepthwiseConv2D(3, name="depthwise")(layers.LayerNormalization(name="norm")(x))
    x = layers.GlobalAveragePooling2D()(conv_bn(x + 1.0, 5, "four"))
    model = randomise_(keras.Model(inputs, layers.Dense(CLASSES, dtype="float32", name="fc")(x)))
    supernet = check_prunable(model, tolerance=0.05, batch_tolerance=0.1)
    cut = supernet.cut(supernet.smallest())
    assert (
        cut.get_layer("three").compute_dtype == policy.split("_")[1]
        and cut.get_layer("fc").compute_dtype == "float32"
    )


def test_channels_first():
    # Keras adds a bias along the width where the map is as wide as there are channels, so none is
    # here.
    first = {"data_format": "channels_first"}
    inputs = keras.Input((3, 14, 14))
    x = inputs
    for name, width in (("one", 4), ("two", 6)):
        x = layers.Conv2D(width, 3, padding="same", name=name, **first)(x)
        x = layers.ReLU()(layers.BatchNormalization(axis=1, name=f"{name}_bn")(x))
    x = layers.MaxPooling2D(2, **first)(x)
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, use_bias=False, **first)(x)
    x = layers.Conv2D(6, 1, strides=2, name="three", **first)(layers.UpSampling2D(**first)(x))
    x = layers.ZeroPadding2D(1, **first)(layers.GroupNormalization(2, axis=1)(x))
    x = layers.GlobalAveragePooling2D(**first)(layers.AveragePooling2D(2, **first)(x))
    supernet = check_prunable(classified(inputs, x))
    assert names_of(supernet) == {"one", "two", "three"}


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_a_flatten_after_channels_first(data_format):
    inputs = keras.Input((3, 8, 8))
    x = layers.Conv2D(4, 3, activation="relu", data_format="channels_first", name="one")(inputs)
    x = layers.Flatten(data_format=data_format)(x)
    check_prunable(classified(inputs, layers.Dense(5, activation="relu", name="hidden")(x)))


def test_inputs_of_any_size_need_a_size_to_be_counted_for():
    def make():
        inputs = keras.Input((None, None, 3))
        x = layers.MaxPooling2D()(conv_bn(inputs, 4, "one"))
        s = layers.Reshape((1, 1, 6))(layers.GlobalAveragePooling2D()(conv_bn(x, 6, "two")))
        return classified(inputs, conv_bn(x * layers.Conv2D(4, 1, name="excite")(s), 5, "three"))

    model = make()
    with pytest.raises(
        ekg.EkgError, match="its FLOPs are not known; give the size .* `input_shape`"
    ):
        ekg.Supernet(model)
    supernet = check_prunable(model, input_shape=(8, 8, 3))
    cut = supernet.cut(supernet.smallest())
    assert cut.input_shape == (None, None, None, 3)
    flops = (
        64 * 9 * 3 * 4
        + 2 * 64 * 4
        + 16 * 9 * 4 * 6
        + 2 * 16 * 6
        + 6 * 4
        + 16 * 9 * 4 * 5
        + 2 * 16 * 5
        + 5 * 3
    )
    assert supernet.complexity(supernet.whole()).flops == flops
    check_prunable(make(), input_shape=(8, 8, 3), inputs=random_images(6, 12, 10, 3))


def lora(layer):
    layer.enable_lora(2)


def int8(layer):
    layer.quantize("int8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lora, "layer 'hidden' has LoRA weights; merge them"),
        (int8, "layer 'hidden' is quantised (int8); prune the network before"),
        (None, "layer 'hidden' has the dtype policy 'float64'"),
    ],
)
def test_weights_of_special_kinds_are_refused_in_one_line(change, message):
    inputs = image()
    x = layers.GlobalAveragePooling2D()(conv_bn(inputs, 4, "one"))
    model = classified(
        inputs, layers.Dense(8, name="hidden", dtype=None if change else "float64")(x)
    )
    if change:
        change(model.get_layer("hidden"))
    with pytest.raises(ekg.EkgError) as refused:
        ekg.Supernet(model)
    assert message in str(refused.value) and "\n" not in str(refused.value)


# ---------------------------------------------------------------- what a cut carries along


def test_an_initializer_may_hold_an_array():
    inputs, array = image(), random_images(3, 3, 3, 4)
    x = layers.Conv2D(
        4,
        3,
        kernel_initializer=keras.initializers.Constant(array),
        name="one",
        bias_initializer=keras.initializers.Constant(0.5),
    )(inputs)
    supernet = check_prunable(classified(inputs, conv_bn(x, 4, "two")))
    assert isinstance(
        supernet.model.get_layer("one").kernel_initializer, keras.initializers.Constant
    )
    assert supernet.cut(supernet.smallest()).get_layer("one").kernel.shape == (3, 3, 3, 1)


def test_regularizers_constraints_and_seeds_are_kept():
    inputs = image()
    x = layers.Conv2D(
        6,
        3,
        kernel_regularizer=keras.regularizers.L2(0.1),
        kernel_constraint="non_neg",
        name="one",
        activity_regularizer=keras.regularizers.L1(0.01),
    )(inputs)
    x = layers.Dropout(0.5, seed=3, name="drop")(ops.relu(x))
    supernet = check_prunable(classified(inputs, x))
    cut = supernet.cut(supernet.smallest())
    assert type(cut.get_layer("one").kernel.constraint) is keras.constraints.NonNeg
    cut(random_images(2, 8, 8, 3))
    expected = 0.1 * np.sum(np.square(cut.get_layer("one").kernel))
    assert any(np.isclose(loss, expected) for loss in cut.losses) and len(cut.losses) == 2
    np.testing.assert_array_equal(
        cut.get_layer("drop").seed_generator.state,
        supernet.model.get_layer("drop").seed_generator.state,
    )


def compiled(model):
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


@pytest.fixture
def seeded():
    keras.utils.set_random_seed(0)


def everything(model):
    """Returns all values and the number of nodes of a model, its layers and its optimizer."""
    values = [np.array(variable) for variable in (*model.variables, *model.optimizer.variables)]
    nodes = [
        (operation.name, len(operation._inbound_nodes), len(operation._outbound_nodes))
        for operation in (*model.operations, *model._flatten_layers())
    ]
    return values, nodes, [layer.get_config() for layer in model.layers]


def test_a_cut_leaves_the_network_and_its_optimizer_as_they_were(seeded):
    inputs = image()
    x = (
        ops.relu(make_functional("nested", 4)(make_sequential("chain")(inputs), training=False))
        + 1.0
    )
    model = compiled(classified(inputs, x))
    model.fit(random_images(8, 8, 8, 3), np.arange(8) % 3, verbose=0)
    before = everything(model)
    supernet = ekg.Supernet(model)
    cut = supernet.cut(supernet.smallest())
    compiled(cut).fit(random_images(8, 8, 8, 3), np.arange(8) % 3, verbose=0)
    after = everything(model)
    assert before[1:] == after[1:]
    assert all(
        np.array_equal(first, second) for first, second in zip(before[0], after[0], strict=True)
    )


@keras.saving.register_keras_serializable("tests")
class Scaled(keras.Model):
    """A functional model that trains in its own way."""

    def train_step(self, data):
        images, labels = data
        return super().train_step((0 * images, labels))


def test_a_model_of_a_custom_class_keeps_its_class_and_stays_compiled(seeded):
    inputs = image()
    x = layers.GlobalAveragePooling2D()(conv_bn(inputs, 6, "one"))
    model = compiled(randomise_(Scaled(inputs, layers.Dense(CLASSES, name="fc")(x), name="own")))
    supernet = check_prunable(model)
    cut = supernet.cut(supernet.smallest())
    assert type(cut) is Scaled and cut.compiled and isinstance(cut.optimizer, keras.optimizers.SGD)
    assert cut.optimizer.momentum == 0.9 and float(cut.optimizer.learning_rate) == pytest.approx(
        0.01
    )
    assert isinstance(cut.loss, keras.losses.SparseCategoricalCrossentropy) and cut.loss.from_logits
    assert cut.optimizer is not model.optimizer
    images, labels = random_images(8, 8, 8, 3), np.arange(8) % 3
    kernel = np.array(cut.get_layer("one").kernel)
    history = cut.fit(images, labels, verbose=0).history
    assert "accuracy" in history and np.array_equal(
        kernel, cut.get_layer("one").kernel
    )  # zeros alone: no gradient
