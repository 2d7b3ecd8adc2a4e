"""Tests a view before a run: that it works, follows its seed, and does not misplace maps."""

import numpy as np
import tensorflow as tf

from ekg.data import augment
from ekg.data.views import MovingView
from ekg.errors import EkgError, first_line

TRIED_SEEDS = 32  # a view that changes every other batch looks constant with probability 2⁻³¹
STAYING = (
    0.3  # correlation with the original pixels that colour changes and noise do not fall below
)
FEWEST_PLACES = 16  # positions per example below which a correlation means nothing
WAY_OUT = (
    "draw random numbers from `seed`, as tf.random.stateless_uniform does: NumPy's and Python's "
    "are frozen when the function is traced, and those of Keras layers depend on what ran before"
)


def check_view(view, images, labels, task, output):
    """Tests a view on a few examples.

    Args:
        view: view from views.make_view().
        images: some input examples of the network, tensor [n, ...].
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
    draws = np.random.default_rng([number]).random((len(images), augment.NUM_DRAWS), np.float32)
    try:
        pair = view.both(images, tf.constant(labels), tf.constant(draws), is_traced)
        return tuple(map(tf.convert_to_tensor, pair))
    except EkgError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise EkgError(
            f"`augment` fails on images of shape {tuple(images.shape)}: {first_line(error)[:200]}"
        ) from error


def _check_form(seen, images, labels):
    """Raises EkgError unless a view keeps shapes and label type, and is finite."""
    view, moved = seen
    if view.shape != images.shape:
        raise EkgError(
            f"`augment` makes {tuple(view.shape)} of images of shape {tuple(images.shape)}; it "
            "must keep the shape."
        )
    if moved.shape != labels.shape or moved.dtype != labels.dtype:
        raise EkgError(
            f"`augment` makes labels of {moved.dtype.name} and shape {tuple(moved.shape)} of "
            f"labels of {labels.dtype} and shape {labels.shape}; it must keep both."
        )
    for values in seen:
        if values.dtype.is_floating and not np.isfinite(values.numpy()).all():
            raise EkgError("`augment` makes numbers that are not finite, NaN or infinite.")


def _is_same(pair, other_pair):
    """Returns whether two pairs (images, labels) are equal up to rounding."""
    return all(
        a.shape == b.shape and np.allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-5)
        for a, b in zip(pair, other_pair)
    )


def _follows_seed(view, images, labels, first):
    """Returns whether some seed gives another view of the images, or of their shuffled pixels."""

    def differs(source, known):
        for number in range(1, TRIED_SEEDS):
            seen = _seen(view, source, labels, number)
            if any(not np.array_equal(a.numpy(), b.numpy()) for a, b in zip(known, seen)):
                return True
        return False

    if differs(images, first):
        return True
    shuffled = _shuffled(images, view.channel_axis)
    return differs(shuffled, _seen(view, shuffled, labels, 0))


def _by_place(images, channel_axis):
    """Returns images as arrays of positions and channels, [batch, positions, channels]."""
    channels_last = np.moveaxis(images, channel_axis, -1)
    return channels_last.reshape(len(channels_last), -1, channels_last.shape[-1])


def _shuffled(images, channel_axis):
    """Returns images with their positions shuffled: a picture may be its own mirror image."""
    rng = np.random.default_rng(0)
    channels_last = np.moveaxis(images.numpy(), channel_axis, -1)
    rows = [rng.permutation(pixels) for pixels in _by_place(images.numpy(), channel_axis)]
    shuffled = np.stack(rows).reshape(channels_last.shape)
    return tf.constant(np.moveaxis(shuffled, -1, channel_axis))


def _moves_pixels(view, images, labels):
    """Returns whether some view of shuffled images is uncorrelated with them, pixel by pixel."""
    shuffled = _shuffled(images, view.channel_axis)
    before = _by_place(shuffled.numpy(), view.channel_axis)
    if before.shape[1] < FEWEST_PLACES:
        return False
    for number in range(TRIED_SEEDS):
        after = _seen(view, shuffled, labels, number)[0].numpy()
        for old, new in zip(before, _by_place(after, view.channel_axis)):
            if not _correlates(old, new) and not _correlates(old.mean(-1), new.mean(-1)):
                return True
    return False


def _correlates(a, b):
    """Returns whether two arrays correlate, or one of them is constant."""
    a, b = (values.ravel().astype(np.float64) for values in (a, b))
    if not a.std() or not b.std():
        return True
    return abs(np.corrcoef(a, b)[0, 1]) >= STAYING
