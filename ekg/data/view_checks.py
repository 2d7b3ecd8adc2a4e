"""Tests a view before a run: that it works, follows its seed, and does not misplace maps."""

import keras
import numpy as np
import tensorflow as tf

from ekg.data import augment
from ekg.data.inputs import count_of
from ekg.data.views import MovingView
from ekg.errors import EkgError, first_line

TRIED_SEEDS = 32  # a view that changes every other batch looks constant with probability 2⁻³¹
STAYING = (
    0.3  # correlation with the original pixels that colour changes and noise do not fall below
)
WITH_PLACES = 3  # rank of a batch of sequences; arrays of a lower rank have no positions
FEWEST_PLACES = 16  # positions per example below which a correlation means nothing
WAY_OUT = (
    "draw random numbers from `seed`, as tf.random.stateless_uniform does: NumPy's and Python's "
    "are frozen when the function is traced, and those of Keras layers depend on what ran before"
)


def check_view(view, images, labels, task, output):
    """Tests a view on a few examples.

    Args:
        view: view from views.make_view().
        images: inputs of some examples, as tensors [n, ...].
        labels: their labels as the task prepares them, array [n, ...].
        task: Task of the labels.
        output: shape of the network's output for one example.

    Raises:
        EkgError: the view fails, is not finite, does not follow its seed, or moves pixels without
            moving maps of labels.
    """
    has_places = any(part.places(shape) for part, shape in task.seen_parts(output))
    if isinstance(view, MovingView):
        places = task.places(output)
        if places and labels.shape[1 : 1 + len(places)] != places:
            raise EkgError(
                f"`augment` moves maps of {places}, and labels have shape {labels.shape[1:]}; "
                "give a function (images, labels, seed) -> (images, labels)."
            )
        return
    _seen(view, images, labels, 0, is_traced=False)  # errors are easier to read without a trace
    first = _seen(view, images, labels, 0)
    _check_form(first, images, labels)
    if view.changes_labels:
        task.check_labels(first[1].numpy(), output, "labels that `augment` returns")
    # Seed 1 runs in between: a view must not depend on what ran before.
    repeats = [_seen(view, images, labels, number) for number in (0, 1, 0)]
    eager_repeats = [_seen(view, images, labels, 0, is_traced=False) for _ in range(2)]
    is_repeatable = _is_same(first, repeats[0]) and _is_same(first, repeats[2])
    if not is_repeatable or not _is_same(*eager_repeats):
        raise EkgError(
            f"`augment` makes other views of the same images for the same seed; {WAY_OUT}."
        )
    if not _follows_seed(view, images, labels, first):
        raise EkgError(
            f"`augment` makes the same view for every seed; {WAY_OUT}. What is not random belongs "
            "into the data."
        )
    if has_places and not view.changes_labels and _moves_pixels(view, images, labels):
        raise EkgError(
            "`augment` moves what images show, and maps of labels would stay where they are; "
            "give a function (images, labels, seed) -> (images, labels)."
        )


def _seen(view, images, labels, number, is_traced=True):
    """Returns (images, labels) of the view with the seed of this number."""
    size = count_of(images), augment.NUM_DRAWS
    draws = np.random.default_rng([number]).random(size, np.float32)
    try:
        seen, moved = view.both(images, tf.constant(labels), tf.constant(draws), is_traced)
        _check_structure(seen, images)
        tensors = keras.tree.map_structure(tf.convert_to_tensor, seen)
        return tensors, tf.convert_to_tensor(moved)
    except EkgError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise EkgError(
            f"`augment` fails on images of shape {_shapes(images)}: {first_line(error)[:200]}"
        ) from error


def _shapes(images):
    """Returns the shape of the images, or the shapes of several inputs in their structure."""
    return keras.tree.map_structure(lambda tensor: tuple(tensor.shape), images)


def _check_structure(seen, images):
    """Raises EkgError unless a view returns one array for each of several inputs."""
    if not keras.tree.is_nested(images):
        return
    try:
        keras.tree.assert_same_structure(images, seen)
    except (ValueError, TypeError):
        raise EkgError(
            "`augment` gets inputs of the shapes "
            f"{_shapes(images)} and must return all of them in this structure."
        ) from None


def _check_form(seen, images, labels):
    """Raises EkgError unless a view keeps shapes and label type, and is finite."""
    view, moved = seen
    for after, before in zip(keras.tree.flatten(view), keras.tree.flatten(images)):
        if after.shape != before.shape:
            raise EkgError(
                f"`augment` makes {tuple(after.shape)} of images of shape {tuple(before.shape)}; "
                "it must keep the shape."
            )
    if moved.shape != labels.shape or moved.dtype != labels.dtype:
        raise EkgError(
            f"`augment` makes labels of {moved.dtype.name} and shape {tuple(moved.shape)} of "
            f"labels of {labels.dtype} and shape {labels.shape}; it must keep both."
        )
    for values in keras.tree.flatten(seen):
        if values.dtype.is_floating and not np.isfinite(values.numpy()).all():
            raise EkgError("`augment` makes numbers that are not finite, NaN or infinite.")


def _is_same(pair, other_pair):
    """Returns whether two pairs (images, labels) are equal up to rounding."""
    return all(
        a.shape == b.shape and _is_close(a.numpy(), b.numpy())
        for a, b in zip(keras.tree.flatten(pair), keras.tree.flatten(other_pair))
    )


def _is_close(a, b):
    return np.array_equal(a, b) if a.dtype == object else np.allclose(a, b, rtol=1e-4, atol=1e-5)


def _follows_seed(view, images, labels, first):
    """Returns whether some seed gives another view of the images, or of their shuffled pixels."""

    def differs(source, known):
        for number in range(1, TRIED_SEEDS):
            seen = _seen(view, source, labels, number)
            pairs = zip(keras.tree.flatten(known), keras.tree.flatten(seen))
            if any(not np.array_equal(a.numpy(), b.numpy()) for a, b in pairs):
                return True
        return False

    if differs(images, first):
        return True
    shuffled = _shuffled(images, view.channel_axes)
    return differs(shuffled, _seen(view, shuffled, labels, 0))


def _by_place(images, channel_axis):
    """Returns images as arrays of positions and channels, [batch, positions, channels]."""
    channels_last = np.moveaxis(images, channel_axis, -1)
    return channels_last.reshape(len(channels_last), -1, channels_last.shape[-1])


def _shuffled(images, channel_axes):
    """Returns inputs with their positions shuffled: a picture may be its own mirror image."""
    arrays = zip(keras.tree.flatten(images), channel_axes)
    return keras.tree.pack_sequence_as(images, [_shuffled_array(*entry) for entry in arrays])


def _shuffled_array(images, channel_axis):
    if len(images.shape) < WITH_PLACES:
        return images
    rng = np.random.default_rng(0)
    channels_last = np.moveaxis(images.numpy(), channel_axis, -1)
    rows = [rng.permutation(pixels) for pixels in _by_place(images.numpy(), channel_axis)]
    shuffled = np.stack(rows).reshape(channels_last.shape)
    return tf.constant(np.moveaxis(shuffled, -1, channel_axis))


def _moves_pixels(view, images, labels):
    """Returns whether some view of shuffled images is uncorrelated with them, pixel by pixel."""
    shuffled = _shuffled(images, view.channel_axes)
    places = [  # of every input that has enough: its number, its channel axis, its pixels
        (number, axis, _by_place(tensor.numpy(), axis))
        for number, (tensor, axis) in enumerate(
            zip(keras.tree.flatten(shuffled), view.channel_axes)
        )
        if len(tensor.shape) >= WITH_PLACES and tensor.dtype != tf.string
    ]
    places = [entry for entry in places if entry[2].shape[1] >= FEWEST_PLACES]
    for seed in range(TRIED_SEEDS if places else 0):
        seen = keras.tree.flatten(_seen(view, shuffled, labels, seed)[0])
        for number, axis, before in places:
            for old, new in zip(before, _by_place(seen[number].numpy(), axis)):
                if not _correlates(old, new) and not _correlates(old.mean(-1), new.mean(-1)):
                    return True
    return False


def _correlates(a, b):
    """Returns whether two arrays correlate, or one of them is constant."""
    a, b = (values.ravel().astype(np.float64) for values in (a, b))
    if not a.std() or not b.std():
        return True
    return abs(np.corrcoef(a, b)[0, 1]) >= STAYING
