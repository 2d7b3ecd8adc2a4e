"""Random views (augmentation) of images, as pure functions of images and pre-drawn random numbers.

The caller draws the numbers, keyed by (seed, epoch, example index), so that every view can be
repeated. All operations compile with XLA.
"""

import tensorflow as tf

NUM_DRAWS = 6  # brightness, contrast, saturation, flip, vertical and horizontal offset
BRIGHTNESS_LEVELS = 0.2  # largest shift, out of 255 grey levels: the published value, nearly none
CONTRAST_RANGE = (0.8, 1.2)
SATURATION_RANGE = (0.8, 1.2)
PADDING = 4  # pixels


def normalise(images, mean, std):
    """Returns (images - mean) / std as float32.

    Args:
        images: [batch, height, width, channels], grey levels in [0, 255], uint8 or float.
        mean: mean of each channel, in grey levels.
        std: standard deviation of each channel, in grey levels.
    """
    centred = tf.cast(images, tf.float32) - tf.constant(mean, tf.float32)
    return centred / tf.constant(std, tf.float32)


def view(images, draws, mean, std, use_colour, use_flip=True, use_crop=True):
    """Returns one random view per image: colour jitter, normalisation, flip, padding and crop.

    Args:
        images: uint8 [batch, height, width, 3].
        draws: random numbers in [0, 1), float32 [batch, NUM_DRAWS].
        mean: mean of each channel, in grey levels.
        std: standard deviation of each channel, in grey levels.
        use_colour: whether brightness, contrast and saturation change.
        use_flip: whether images are mirrored with probability 1/2.
        use_crop: whether images are padded and cropped; False if decoding already cropped them.
    """
    images = tf.cast(images, tf.float32)
    if use_colour:
        images = change_colour(images, *(draws[:, i, None, None, None] for i in range(3)))
    images = normalise(images, mean, std)
    flip = draws[:, 3]
    if use_crop:
        return flip_and_crop(images, flip, draws[:, 4], draws[:, 5], use_flip)
    if not use_flip:
        return images
    return tf.where(flip[:, None, None, None] >= 0.5, images[:, :, ::-1], images)


def change_colour(images, brightness, contrast, saturation):
    """Returns images with jittered brightness, contrast and saturation, applied in this order.

    Contrast scales the distance from each channel's mean; saturation is that of HSV.

    Args:
        images: float32 [batch, height, width, 3], grey levels.
        brightness: draws in [0, 1), [batch, 1, 1, 1].
        contrast: draws like brightness.
        saturation: draws like brightness.
    """
    images = images + (2 * brightness - 1) * BRIGHTNESS_LEVELS
    mean = tf.reduce_mean(images, axis=[1, 2], keepdims=True)
    images = (images - mean) * _between(CONTRAST_RANGE, contrast) + mean
    # At fixed hue and value, (value - channel) is proportional to the saturation, so one factor
    # changes it; the limit keeps the saturation at most 1.
    value = tf.reduce_max(images, axis=-1, keepdims=True)
    spread = value - tf.reduce_min(images, axis=-1, keepdims=True)
    largest_factor = tf.where(spread > 0, value / tf.maximum(spread, 1e-6), 1.0)
    factor = tf.minimum(_between(SATURATION_RANGE, saturation), tf.maximum(largest_factor, 0.0))
    return value - (value - images) * factor


def flip_and_crop(images, flip, vertical, horizontal, use_flip=True, axes=(1, 2)):
    """Returns images that are randomly mirrored, reflection-padded and cropped to their size.

    Args:
        images: [batch, height, width, channels], or with height and width on other axes.
        flip: draws in [0, 1), [batch]; images with a draw of at least 1/2 are mirrored.
        vertical: draws in [0, 1), [batch], which pick the vertical offset of the crop.
        horizontal: draws in [0, 1), [batch], which pick its horizontal offset.
        use_flip: whether images are mirrored at all.
        axes: the axes (height, width), in ascending order.
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
    """Returns integer offsets [batch, 1], uniform in [-PADDING, PADDING]."""
    return tf.cast(tf.floor(draw * (2 * PADDING + 1)), tf.int32)[:, None] - PADDING


def _reflect(position, size):
    """Reflects positions outside [0, size) at the borders, without repeating the border pixel."""
    position = tf.abs(position)
    return tf.minimum(position, 2 * (size - 1) - position)
