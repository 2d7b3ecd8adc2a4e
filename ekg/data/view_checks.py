"""Tries a view before the work: whether it can be made, follows its seed, and leaves maps
behind.
"""

import numpy as np
import tensorflow as tf

from ekg.data import augment
from ekg.data.views import MovingView
from ekg.errors import EkgError, first_line

TRIED_SEEDS = 32  # a view that changes every other batch is the same in all with probability 2⁻³¹
STAYING = (
    0.3  # correlation of shuffled pixels with themselves that changes of colour and noise leave
)
FEWEST_PLACES = 16  # of an example, below which a correlation means nothing
WAY_OUT = (
    "draw random numbers from `seed`, as tf.random.stateless_uniform does: NumPy's and Python's "
    "are frozen when the function is traced, those of Keras' layers depend on what ran before"
)


def check_view(view, images, labels, task, output):
    """Raises EkgError if a view cannot be made, is not finite, does not follow its seed, or leaves
    maps.

    Args:
        view: as views.make_view() gives.
        images: some of the network's examples, tensor [number, ...].
        labels: theirs as the task prepares them, array [number, ...].
        task: Task.
        output: shape of the network's output for one example.
    """
    has_places = any(part.places(own) for part, own in task.seen_parts(output))
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
    others = [_seen(view, images, labels, number) for number in (0, 1)]
    again = [*others[:1], _seen(view, images, labels, 0)]
    called = [_seen(view, images, labels, 0, is_traced=False) for _ in range(2)]
    if not all(_is_same(first, one) for one in again) or not _is_same(*called):
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
    """Returns (images, labels) of a view by the seed of this number."""
    draws = np.random.default_rng([number]).random((len(images), augment.NUM_DRAWS), np.float32)
    try:
        made = view.both(images, tf.constant(labels), tf.constant(draws), is_traced)
        return tuple(map(tf.convert_to_tensor, made))
    except EkgError:
        raise
    except Exception as error:  # whatever a function of the user's own raises
        raise EkgError(
            f"`augment` fails on images of shape {tuple(images.shape)}: {first_line(error)[:200]}"
        ) from error


def _check_form(seen, images, labels):
    view, moved = seen
    if view.shape != images.shape:
        raise EkgError(
            f"`augment` makes {tuple(view.shape)} of images of shape {tuple(images.shape)}; it "
            "must keep the shape."
        )
    if moved.shape != labels.shape or moved.dtype != labels.dtype:
        raise EkgError(
            f"`augment` makes labels of {moved.dtype.name} and shape {tuple(moved.shape)} of "
            f"those of {labels.dtype} and shape {labels.shape}; it must keep both."
        )
    for values in seen:
        if values.dtype.is_floating and not np.isfinite(values.numpy()).all():
            raise EkgError("`augment` makes numbers that are not finite, NaN or infinite.")


def _is_same(one, other):
    """Returns whether two pairs (images, labels) are the same but for rounding."""
    return all(
        a.shape == b.shape and np.allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-5)
        for a, b in zip(one, other)
    )


def _follows_seed(view, images, labels, first):
    """Returns whether some seed makes another view, of the images or of these with pixels
    shuffled.
    """

    def differs(source, known):
        return any(
            not np.array_equal(a.numpy(), b.numpy())
            for number in range(1, TRIED_SEEDS)
            for a, b in zip(known, _seen(view, source, labels, number))
        )

    if differs(images, first):
        return True
    shuffled = _shuffled(images, view.channel_axis)
    return differs(shuffled, _seen(view, shuffled, labels, 0))


def _by_place(images, channel_axis):
    """Returns images as arrays of places and channels, [batch, places, channels]."""
    last = np.moveaxis(images, channel_axis, -1)
    return last.reshape(len(last), -1, last.shape[-1])


def _shuffled(images, channel_axis):
    """Returns examples whose places are exchanged at random: a picture may be its own mirror
    image.
    """
    rng, last = np.random.default_rng(0), np.moveaxis(images.numpy(), channel_axis, -1)
    rows = [rng.permutation(one) for one in _by_place(images.numpy(), channel_axis)]
    return tf.constant(np.moveaxis(np.stack(rows).reshape(last.shape), -1, channel_axis))


def _moves_pixels(view, images, labels):
    """Returns whether some view of shuffled examples does not correlate with them place by
    place.
    """
    shuffled = _shuffled(images, view.channel_axis)
    before = _by_place(shuffled.numpy(), view.channel_axis)
    if before.shape[1] < FEWEST_PLACES:
        return False
    for number in range(TRIED_SEEDS):
        after = _seen(view, shuffled, labels, number)[0].numpy()
        for one, other in zip(before, _by_place(after, view.channel_axis)):
            if not _correlates(one, other) and not _correlates(one.mean(-1), other.mean(-1)):
                return True
    return False


def _correlates(one, other):
    """Returns whether two arrays correlate, or one of them is constant."""
    one, other = (values.ravel().astype(np.float64) for values in (one, other))
    if not one.std() or not other.std():
        return True
    return abs(np.corrcoef(one, other)[0, 1]) >= STAYING
