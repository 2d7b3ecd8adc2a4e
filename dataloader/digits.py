"""The 1 797 handwritten digits (8x8 pixels) of scikit-learn: a data set without download.

E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998.
"""

import numpy as np

from ekg.data.dataset import Dataset, Split
from ekg.errors import EkgError

IMAGE_SIZE = 32
IMAGE_SHAPE = (IMAGE_SIZE, IMAGE_SIZE, 3)
MAX_INTENSITY = 16  # white in the originals
TEST_EVERY = 5  # every fifth image is a test image


def load(name="DIGITS", data_path=None):
    """Returns the digits as a Dataset, enlarged to 32x32 and repeated over three channels.

    Args:
        name: name of the data set.
        data_path: must be None, since the images are part of scikit-learn.

    Raises:
        EkgError: data_path is given, or scikit-learn is missing.
    """
    if data_path is not None:
        raise EkgError(
            f"`data_path` {data_path}: `dataset` {name} comes with scikit-learn; leave "
            "`data_path` out."
        )
    try:
        from sklearn import datasets
    except ImportError:
        raise EkgError(
            f"`dataset` {name}: comes with scikit-learn, which is missing; install it with pip."
        ) from None
    digits = datasets.load_digits()
    images = _enlarge(digits.images * (255 / MAX_INTENSITY))
    images = np.repeat(np.rint(images).astype(np.uint8)[..., None], 3, axis=-1)
    labels = digits.target.astype(np.int32)
    is_test = np.arange(len(labels)) % TEST_EVERY == TEST_EVERY - 1
    train = Split(images[~is_test], labels[~is_test])
    test = Split(images[is_test], labels[is_test])
    mean = (float(train.images.mean()),) * 3
    std = (float(train.images.std()),) * 3
    return Dataset(name, len(digits.target_names), train, test, mean, std, flips=False)


def _enlarge(images):
    """Enlarges images to [n, 32, 32] by bilinear interpolation between pixel centres."""
    size = images.shape[1]
    position = np.clip((np.arange(IMAGE_SIZE) + 0.5) * size / IMAGE_SIZE - 0.5, 0, size - 1)
    low = np.minimum(position.astype(int), size - 2)
    weights = np.zeros((IMAGE_SIZE, size))
    weights[np.arange(IMAGE_SIZE), low] = 1 - (position - low)
    weights[np.arange(IMAGE_SIZE), low + 1] += position - low
    return weights @ images @ weights.T
