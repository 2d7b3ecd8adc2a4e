import numpy as np
import pytest
import tensorflow as tf

from ekg.data import augment


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3)).astype(np.float32)


def test_saturation_equals_tensorflows(pictures):
    for draw in (0.0, 0.37, 0.999):
        factor = 0.8 + 0.4 * draw
        same = np.full((5, 1, 1, 1), 0.5, np.float32)  # brightness and contrast as they are
        views = augment.change_colour(pictures, same, same, np.full((5, 1, 1, 1), draw, np.float32))
        expected = tf.image.adjust_saturation(pictures / 255, factor) * 255
        np.testing.assert_allclose(views, expected, atol=2e-3)


def test_contrast_and_brightness_equal_tensorflows(pictures):
    pictures = pictures / 2 + 64  # stays positive: below zero the saturation would be clipped
    draw = np.array([0, 0.25, 0.5, 0.75, 0.99], np.float32).reshape(-1, 1, 1, 1)
    same = np.full((5, 1, 1, 1), 0.5, np.float32)
    views = augment.change_colour(pictures, draw, draw, same)
    for i in range(5):
        bright = pictures[i] + (2 * draw[i, 0, 0, 0] - 1) * 0.2
        np.testing.assert_allclose(
            views[i], tf.image.adjust_contrast(bright, 0.8 + 0.4 * draw[i, 0, 0, 0]), atol=2e-3
        )


def test_flip_and_crop_equal_numpy(pictures):
    rng = np.random.default_rng(1)
    flip, vertical, horizontal = rng.random((3, 5)).astype(np.float32)
    views = augment.flip_and_crop(tf.constant(pictures), flip, vertical, horizontal).numpy()
    for i in range(5):
        picture = pictures[i, :, ::-1] if flip[i] >= 0.5 else pictures[i]
        top, left = (int(9 * draw[i]) for draw in (vertical, horizontal))
        padded = np.pad(picture, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        np.testing.assert_array_equal(views[i], padded[top : top + 8, left : left + 6])


def test_all_crop_offsets_occur():
    draws = (np.arange(9) + 0.5) / 9
    row = np.arange(10, dtype=np.float32)[None, None, :, None] * np.ones((9, 10, 1, 1), np.float32)
    views = augment.flip_and_crop(
        tf.constant(row), np.zeros(9), draws * 0 + 0.5, draws.astype(np.float32)
    )
    assert sorted(views.numpy()[:, 0, 5, 0]) == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_views_compile_to_the_same_numbers(pictures):
    draws = np.random.default_rng(2).random((5, augment.NUM_DRAWS), np.float32)

    def view(images, draws):
        return augment.view(images, draws, (100.0,) * 3, (50.0,) * 3, use_colour=True)

    images = pictures.astype(np.uint8)
    plain, compiled = (
        tf.function(view)(images, draws),
        tf.function(view, jit_compile=True)(images, draws),
    )
    np.testing.assert_allclose(plain, compiled, atol=1e-5)
    np.testing.assert_allclose(view(images, draws), compiled, atol=1e-5)
