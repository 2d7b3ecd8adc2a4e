"""Views against NumPy: what moves with an image, along which axes, and which views are refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ekg
from ekg.distil import losses
from ekg.errors import EkgError
from ekg.graph.execute import pure_forward, read_variables
from ekg.run import defaults

RNG = np.random.default_rng(0)


def draws_of(flips, vertical=0.5, horizontal=0.5):
    """Draws of one view for each image; an offset of draw d is ⌊9·d⌋ − 4."""
    draws = np.full((len(flips), 1, 6), 0.5, np.float32)
    draws[:, 0, 3] = np.where(flips, 0.9, 0.1)
    draws[:, 0, 4], draws[:, 0, 5] = vertical, horizontal
    return tf.constant(draws)


def maps_of(images, classes=3):
    """Labels that are known at every place: the brightest third is class 2."""
    return np.clip((images.mean(-1) * classes).astype(np.int32), 0, classes - 1)


def pointwise(size=(8, 6, 2), units=3, kernel=1):
    inputs = keras.Input(size)
    conv = {2: layers.Conv1D, 3: layers.Conv2D, 4: layers.Conv3D}[len(size)]
    x = conv(4, kernel, padding="same", activation="relu")(inputs)
    return keras.Model(inputs, conv(units, kernel, padding="same")(x))


IMAGES = RNG.random((12, 8, 6, 2)).astype(np.float32)
FLIPS = np.arange(12) % 3 > 0


def flipped(values, axis):
    return np.stack([np.flip(one, axis - 1) if flip else one for one, flip in zip(values, FLIPS)])


def cropped(values, axes, top, left):
    """Values moved by so many rows and columns, filled up by their reflection."""
    pad = [(4, 4) if axis in axes else (0, 0) for axis in range(values.ndim)]
    padded = np.pad(values, pad, mode="reflect")
    rows = np.arange(values.shape[axes[0]]) + 4 + top
    columns = np.arange(values.shape[axes[1]]) + 4 + left
    return padded.take(rows, axes[0]).take(columns, axes[1])


# ---------------------------------------------------------------- maps move with the image


def test_labels_and_logits_of_maps_move_with_the_image():
    labels = maps_of(IMAGES)
    bank = RNG.normal(size=(12, 2, 8, 6, 3)).astype(np.float32)
    batch = {"images": IMAGES, "labels": labels, "bank": bank, "draws": draws_of(FLIPS, 0.25, 0.7)}
    data = ekg.make_data(pointwise(), (IMAGES, labels), augment="flip_crop")

    for made, values, axes in (
        (data.fine_tune_view(batch, 0), IMAGES, (1, 2)),
        (data.fine_tune_labels(batch, 0), labels, (1, 2)),
        (data.fine_tune_knowledge(batch, 0), bank, (2, 3)),
    ):
        np.testing.assert_array_equal(made, cropped(flipped(values, axes[1]), axes, -2, 2))
    seen, known = data.fine_tune_view(batch, 0).numpy(), data.fine_tune_labels(batch, 0).numpy()
    np.testing.assert_array_equal(maps_of(seen), known)


@pytest.mark.parametrize("augment", ["flip", "flip_crop"])
def test_logits_per_position_move_with_every_view(augment):
    """A network that looks at single pixels, taught by itself: distillation 0, whatever the
    view.
    """
    model, labels = pointwise(), maps_of(IMAGES)
    data = ekg.make_data(model, (IMAGES, labels), augment=augment)
    batch = next(data.epoch(12, 0, 0, 2))
    batch["bank"] = np.stack([model(batch["images"])] * 2, 1)
    forward, (trainable, rest) = pure_forward(model), read_variables(model)
    _, terms = losses.fine_tuning(data, "ensemble", 4.0)(
        lambda images: forward(trainable, rest, images, False)[0], batch, ()
    )
    assert abs(float(terms["distillation"])) < 1e-6
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    views = [(data.fine_tune_view(batch, a), data.fine_tune_labels(batch, a)) for a in range(2)]
    expected = np.mean([loss(own, model(seen)) for seen, own in views])
    assert float(terms["cross_entropy"]) == pytest.approx(expected, rel=1e-5)


def test_depth_maps_and_maps_of_volumes_move_too():
    depth = IMAGES.sum(-1, keepdims=True)
    data = ekg.make_data(pointwise(units=1), (IMAGES, depth), augment="flip")
    batch = {"images": IMAGES, "labels": depth, "draws": draws_of(FLIPS)}
    np.testing.assert_array_equal(data.fine_tune_labels(batch, 0), flipped(depth, 2))
    volumes = RNG.random((12, 3, 5, 6, 2)).astype(np.float32)
    data = ekg.make_data(pointwise((3, 5, 6, 2)), (volumes, maps_of(volumes)), augment="flip_crop")
    batch = {"images": volumes, "labels": maps_of(volumes), "draws": draws_of(FLIPS, 0.3, 0.9)}
    seen = data.fine_tune_view(batch, 0).numpy()
    assert (seen != volumes).any()
    np.testing.assert_array_equal(maps_of(seen), data.fine_tune_labels(batch, 0))
    np.testing.assert_array_equal(seen[~FLIPS], cropped(volumes, (2, 3), -2, 4)[~FLIPS])


# ---------------------------------------------------------------- axes


def first_format(begin, size):
    inputs = keras.Input(size)
    x = layers.Conv2D(4, 3, data_format="channels_first")(begin(inputs))
    x = layers.GlobalAveragePooling2D(data_format="channels_first")(x)
    return keras.Model(inputs, layers.Dense(2)(x))


@pytest.mark.parametrize(
    ("begin", "size", "axis"),
    [
        (lambda x: layers.ReLU()(layers.Rescaling(2.0)(x)), (2, 8, 6), 3),
        (lambda x: layers.Permute((3, 1, 2))(x), (8, 6, 2), 2),
        (lambda x: keras.ops.transpose(x, (0, 2, 3, 1)), (6, 2, 8), 1),
    ],
)
def test_the_layers_that_read_images_say_which_axes_are_height_and_width(begin, size, axis):
    """In the last case the image comes as (width, channels, height): its last place is the
    height.
    """
    images = RNG.random((12, *size)).astype(np.float32)
    data = ekg.make_data(first_format(begin, size), (images, np.arange(12) % 2), augment="flip")
    seen = data.fine_tune_view({"images": images, "draws": draws_of(FLIPS)}, 0)
    channels = {3: 1, 2: 3, 1: 2}[axis]
    last = [place for place in (1, 2, 3) if place != channels][-1]
    np.testing.assert_array_equal(seen, flipped(images, last))


def test_a_crop_of_a_channels_first_image_keeps_each_channel():
    images = np.stack([np.full((12, 8, 6), value, np.float32) for value in (1, 2)], 1)
    data = ekg.make_data(
        first_format(lambda x: x, (2, 8, 6)), (images, np.arange(12) % 2), augment="flip_crop"
    )
    seen = data.fine_tune_view({"images": images, "draws": draws_of(FLIPS, 0.1, 0.9)}, 0)
    np.testing.assert_array_equal(seen, images)


def test_maps_that_a_network_permutes_to_channels_last_move_with_the_image():
    images = IMAGES.transpose(0, 3, 1, 2)
    labels = (IMAGES[..., :1] > 0.5).astype(np.int32)
    data = ekg.make_data(
        masks_of(layers.Permute((2, 3, 1)), "channels_first", (2, 8, 6)),
        (images, labels),
        augment="flip",
    )
    batch = {"images": images, "labels": data.train.labels, "draws": draws_of(FLIPS)}
    np.testing.assert_array_equal(data.fine_tune_view(batch, 0), flipped(images, 3))
    np.testing.assert_array_equal(data.fine_tune_labels(batch, 0), flipped(labels, 2))


# ---------------------------------------------------------------- functions of a user's own


def flip_both(images, labels, seed):
    is_flipped = tf.random.stateless_uniform([len(images), 1, 1], seed) < 0.5
    return (
        tf.where(is_flipped[..., None], images[:, :, ::-1], images),
        tf.where(is_flipped, labels[:, :, ::-1], labels),
    )


def test_a_function_may_move_labels_itself_and_the_teacher_sees_each_view():
    labels, model = maps_of(IMAGES), pointwise(kernel=3)
    data = ekg.make_data(model, (IMAGES, labels), augment=flip_both)
    batch = next(data.epoch(12, 0, 0, 2))
    seen = data.fine_tune_view(batch, 1).numpy()
    assert (seen != batch["images"]).any()
    np.testing.assert_array_equal(maps_of(seen), data.fine_tune_labels(batch, 1))

    def teacher(**given):
        return defaults.make_settings(data, 3, 1, epochs=1, **given).fine_tuning.finetune_teacher

    assert teacher() == "single" and teacher(bank=False) == "none"
    for asked in ({"bank": {"num_teacher": 2}}, {"fine_tune": {"finetune_teacher": "ensemble"}}):
        with pytest.raises(
            EkgError, match="`augment` returns labels, and the memory bank knows nothing"
        ):
            teacher(**asked)
    with pytest.raises(EkgError, match="`augment` returns labels"):
        losses.fine_tuning(data, "ensemble", 4.0)


def brighter(images, seed):
    return tf.image.stateless_random_brightness(images, 0.3, seed)


def grainy(images, seed):
    return images + 0.3 * tf.random.stateless_normal(tf.shape(images), seed)


@pytest.mark.parametrize("augment", [brighter, grainy])
def test_a_function_that_leaves_positions_alone_is_allowed_for_maps(augment):
    data = ekg.make_data(pointwise(), (IMAGES, maps_of(IMAGES)), augment=augment)
    batch = next(data.epoch(12, 0, 0, 1)) | {"bank": "as it is"}
    assert not data.moves_knowledge and (data.fine_tune_labels(batch, 0) == batch["labels"]).all()


def numpys(images, seed):
    return images * np.random.uniform(0.5, 1.5)


SHAKE = layers.RandomTranslation(0.3, 0.3)
DROP = layers.SpatialDropout2D(0.5)


def frozen(images, seed):
    return images * tf.random.stateless_uniform([], (1, 2))


def sideways(images, seed):
    return tf.roll(images, tf.random.stateless_uniform([], seed, 1, 5, tf.int32), 2)


def classifier(size=(8, 6, 2), units=2):
    inputs = keras.Input(size)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(inputs))
    return keras.Model(inputs, layers.Dense(units)(x))


def masks_of(end, data_format, size):
    """A network of yes-or-no maps."""
    inputs = keras.Input(size)
    x = layers.Conv2D(4, 3, padding="same", data_format=data_format)(inputs)
    x = layers.Conv2D(1, 1, data_format=data_format)(x)
    return keras.Model(inputs, layers.Activation("sigmoid")(end(x)))


CLASSES = np.arange(12) % 2
MAPS = maps_of(IMAGES)
OTHER_FOR_SAME, SAME_FOR_OTHER = (
    "other views of the same images for the same seed",
    "same view for every",
)


@pytest.mark.parametrize(
    ("model", "labels", "augment", "message"),
    [
        (classifier, CLASSES, numpys, OTHER_FOR_SAME),
        (classifier, CLASSES, lambda images, seed: SHAKE(images, training=True), OTHER_FOR_SAME),
        (classifier, CLASSES, lambda images, seed: DROP(images, training=True), OTHER_FOR_SAME),
        (
            classifier,
            CLASSES,
            lambda images, seed: tf.image.random_flip_left_right(images),
            f"{OTHER_FOR_SAME}|Random ops require a seed",
        ),  # the latter where operations are deterministic
        (classifier, CLASSES, frozen, SAME_FOR_OTHER),
        (classifier, CLASSES, lambda images, seed: images[:, ::-1], SAME_FOR_OTHER),
        (classifier, CLASSES, lambda images, seed: images / 0, "not finite, NaN or infinite"),
        (
            classifier,
            CLASSES,
            lambda images, labels, seed: images,
            "must return a pair .images, labels.",
        ),
        (
            classifier,
            CLASSES,
            lambda images, labels, seed: (images, tf.one_hot(labels, 2)),
            "labels of float32 and shape .8, 2. of labels of int32 and shape .8,.; it must keep "
            "both",
        ),
        (
            classifier,
            CLASSES,
            lambda images, labels, seed: (images, labels + 1),
            r"augment` returns must be in .* received 1 to 2",
        ),
        (
            pointwise,
            MAPS,
            sideways,
            "`augment` moves what images show, and maps of labels would stay",
        ),
        (
            pointwise,
            MAPS,
            lambda images, seed: tf.image.stateless_random_flip_up_down(images, seed),
            "`augment` moves what images show",
        ),
        (
            lambda: classifier(units=4),
            RNG.normal(size=(12, 4)),
            "flip",
            "numbers such as positions would not move with it",
        ),
        (
            pointwise,
            RNG.normal(size=(12, 8, 6, 3)),
            "flip",
            "3 numbers for each place may be directions",
        ),
        (
            lambda: keras.Sequential([keras.Input((8, 6, 2)), layers.Conv2D(3, 3)]),
            maps_of(IMAGES)[:, :6, :4],
            "flip_crop",
            "a crop cannot be repeated on maps of .6, 4., as images have .8, 6.",
        ),
        (
            lambda: keras.Sequential(
                [keras.Input((8, 6, 2)), layers.Dense(4), layers.Reshape((48, 4)), layers.Dense(3)]
            ),
            MAPS.reshape(12, 48),
            "flip",
            "output of shape .48, 3. may not be positions of the image",
        ),
        (
            lambda: masks_of(lambda x: x, "channels_first", (2, 8, 6)),
            np.arange(12 * 48).reshape(12, 1, 8, 6) % 2,
            "flip",
            "output of shape .1, 8, 6. has other axes than the image with its channels last",
        ),
        (
            lambda: masks_of(layers.Permute((2, 1, 3)), "channels_last", (8, 8, 2)),
            np.arange(12 * 64).reshape(12, 8, 8, 1) % 2,
            "flip",
            "output of shape .8, 8, 1. has other axes than the image",
        ),
        (
            lambda: first_format(lambda x: layers.Add()([x, layers.Conv2D(8, 1)(x)]), (2, 8, 8)),
            CLASSES,
            "flip",
            "some take them for channels_first and some",
        ),
    ],
)
def test_views_that_are_refused(model, labels, augment, message):
    model = model()
    images = RNG.random((12, *model.input_shape[1:])).astype(np.float32)
    with pytest.raises(EkgError, match=message) as error:
        ekg.make_data(model, (images, labels), augment=augment)
    assert "\n" not in str(error.value)


def test_views_of_other_data_or_of_tiny_images_are_refused():
    table = keras.Sequential([keras.Input((5,)), layers.Dense(2)])
    with pytest.raises(EkgError, match="moves images and volumes, and the network takes .5,."):
        ekg.make_data(table, (RNG.random((12, 5)), CLASSES), augment="flip")
    with pytest.raises(EkgError, match="needs images of at least 5 x 5 pixels; these have 8 x 4"):
        ekg.make_data(
            classifier((8, 4, 2)), (RNG.random((12, 8, 4, 2)), CLASSES), augment="flip_crop"
        )
