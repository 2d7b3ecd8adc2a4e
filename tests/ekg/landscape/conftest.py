"""A network small enough for its whole Hessian."""

import keras
import pytest
from keras import layers

from tests.helpers.models import conv_bn, randomise_


def make_small(widths=(3, 4)):
    """A convolutional net with batch norms of about three hundred parameters."""
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(conv_bn(inputs, widths[0], "one"), widths[1], "two", strides=2)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return randomise_(keras.Model(inputs, layers.Dense(3, name="fc")(x), name="small"), seed=3)


@pytest.fixture
def small():
    return make_small()
