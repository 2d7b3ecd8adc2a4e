"""Random views of images as pure functions of the images and of numbers drawn beforehand.

The draws are keyed by (seed, epoch, example index); nothing here draws. All operations compile with
XLA.
"""

import tensorflow as tf

NUM_DRAWS = 6  # brightness, contrast, saturation, flip, vertical and horizontal offset
BRIGHTNESS_LEVELS = 0.2  # of 255 grey levels: as published, practically none
CONTRAST_RANGE = (0.8, 1.2)
SATURATION_RANGE = (0.8, 1.2)
PADDING = 4


def normalise(images, mean, std):
    """Returns (images - mean) / std as float32.

    Args:
        images: [batch, height, width, channels], grey levels in [0, 255], uint8 or float.
        mean: of each channel, grey levels.
        std: of each channel, grey levels.
    """
    return (tf.cast(images, tf.float32) - tf.constant(mean, tf.float32)) / tf.constant(
        std, tf.float32
    )


def view(images, draws, mean, std, use_colour, use_flip=True, use_crop=True):
    """Returns one random view of every image: colour, normalisation, flip, reflect-pad and crop.

    Args:
        images: uint8 [batch, height, width, 3].
        draws: float32 [batch, NUM_DRAWS] in [0, 1).
        mean: of each channel, grey levels.
        std: of each channel, grey levels.
        use_colour: whether brightness, contrast and saturation change.
        use_flip: whether every other image is mirrored.
        use_crop: whether images are padded and cropped; those that were cropped while they were
            decoded are not.
    """
    images = tf.cast(images, tf.float32)
    if use_colour:
        images = change_colour(images, *(draws[:, i, None, None, None] for i in range(3)))
    images, flip = normalise(images, mean, std), draws[:, 3]
    if use_crop:
        return flip_and_crop(images, flip, draws[:, 4], draws[:, 5], use_flip)
    return (
        tf.where(flip[:, None, None, None] >= 0.5, images[:, :, ::-1], images)
        if use_flip
        else images
    )


def change_colour(images, brightness, contrast, saturation):
    """Returns images with changed brightness, then contrast (about each channel's mean), then
    saturation (in HSV).

    Args:
        images: float32 [batch, height, width, 3], grey levels.
        brightness: draws [batch, 1, 1, 1] in [0, 1); likewise contrast and saturation.
    """
    images = images + (2 * brightness - 1) * BRIGHTNESS_LEVELS
    mean = tf.reduce_mean(images, axis=[1, 2], keepdims=True)
    images = (images - mean) * _between(CONTRAST_RANGE, contrast) + mean
    # With hue and value fixed, value - channel is proportional to the saturation, which stays at
    # most 1.
    value = tf.reduce_max(images, axis=-1, keepdims=True)
    spread = value - tf.reduce_min(images, axis=-1, keepdims=True)
    most = tf.where(spread > 0, value / tf.maximum(spread, 1e-6), 1.0)
    factor = tf.minimum(_between(SATURATION_RANGE, saturation), tf.maximum(most, 0.0))
    return value - (value - images) * factor


def flip_and_crop(images, flip, vertical, horizontal, use_flip=True, axes=(1, 2)):
    """Returns images mirrored where flip >= 1/2, padded by PADDING with their reflection, and
    cropped to their size.

    Args:
        images: [batch, height, width, channels], or with height and width on other axes.
        flip: draws [batch] in [0, 1); likewise vertical and horizontal, which pick the crop's
            offset.
        use_flip: whether any image is mirrored.
        axes: which are (height, width), in ascending order.
    """
    height, width = (images.shape[axis] for axis in axes)
    rows = _reflect(tf.range(height) + _offset(vertical), height)
    columns = _reflect(tf.range(width) + _offset(horizontal), width)
    if use_flip:
        columns = tf.where(flip[:, None] >= 0.5, width - 1 - columns, columns)
    images = tf.gather(images, rows, axis=axes[0], batch_dims=1)
    return tf.gather(images, columns, axis=axes[1], batch_dims=1)


def _between(limits, draw):
    return limits[0] + (limits[1] - limits[0]) * draw


def _offset(draw):
    """Returns whole offsets [batch, 1] from -PADDING to PADDING, all equally likely."""
    return tf.cast(tf.floor(draw * (2 * PADDING + 1)), tf.int32)[:, None] - PADDING


def _reflect(position, size):
    """Reflects positions outside [0, size) at the border pixels, which are not repeated."""
    position = tf.abs(position)
    return tf.minimum(position, 2 * (size - 1) - position)
