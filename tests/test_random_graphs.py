"""What must hold of any network, on random ones: masked = cut = counted, and a cut can be cut again."""

import hypothesis
import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers

import ekg
from ekg.graph.complexity import model_complexity
from tests.conftest import randomise_
from tests.helpers import random_subnetwork, relative_difference

SIZE, IMAGES = 8, 5


class Maker:
    """Draws the parts of a network; every layer has a name of its own."""

    def __init__(self, draw):
        self._draw, self._count = draw, 0

    def pick(self, *choices):
        return self._draw(st.sampled_from(choices))

    def name(self, kind):
        self._count += 1
        return f"{kind}{self._count}"

    def norm_and_activation(self, x):
        if self.pick(True, True, False):
            options = self.pick({}, {"scale": False}, {"center": False}, {"scale": False, "center": False})
            x = layers.BatchNormalization(epsilon=1e-3, name=self.name("norm"), **options)(x)
        kind = self.pick("relu", "silu", "leaky", "sigmoid", None)
        if kind == "leaky":
            return layers.LeakyReLU(name=self.name("leaky"))(x)
        return x if kind is None else layers.Activation(kind, name=self.name("act"))(x)

    def conv(self, x, filters=None):
        filters = filters or self.pick(2, 3, 5)
        conv = layers.Conv2D(filters, self.pick(1, 3), padding="same", use_bias=self.pick(True, False),
                             name=self.name("conv"))
        return self.norm_and_activation(conv(x))

    def depthwise(self, x):
        conv = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=self.pick(1, 2), name=self.name("depthwise"))
        return self.norm_and_activation(conv(x))

    def residual(self, x):
        branch = self.conv(self.conv(x), x.shape[-1])
        return layers.Add(name=self.name("add"))([branch, x])

    def stacked(self, x):
        return layers.Concatenate(name=self.name("cat"))([self.conv(x), self.conv(x)])

    def squeeze(self, x):
        channels = x.shape[-1]
        s = layers.GlobalAveragePooling2D(keepdims=True, name=self.name("squeeze"))(x)
        s = layers.Conv2D(2, 1, activation="relu", name=self.name("reduce"))(s)
        s = layers.Conv2D(channels, 1, activation="sigmoid", name=self.name("excite"))(s)
        return layers.Multiply(name=self.name("scale"))([x, s])

    def pooled(self, x):
        kind = self.pick(layers.MaxPooling2D, layers.AveragePooling2D)
        return kind(2, padding="same", name=self.name("pool"))(layers.ZeroPadding2D(1, name=self.name("pad"))(x))

    def head(self, x):
        if self.pick(True, False):
            x = layers.GlobalAveragePooling2D(name="end")(x)
        else:
            x = layers.Dense(6, activation="relu", name="hidden")(layers.Flatten(name="flat")(x))
        return layers.Dense(3, name="fc")(x)


@st.composite
def networks(draw):
    """A random network of three to six parts for images of 8x8, with random weights."""
    maker = Maker(draw)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = maker.conv(inputs)
    for _ in range(draw(st.integers(2, 5))):
        x = maker.pick(maker.conv, maker.depthwise, maker.residual, maker.stacked, maker.squeeze, maker.pooled)(x)
    return randomise_(keras.Model(inputs, maker.head(x), name="random"))


@hypothesis.settings(max_examples=16, deadline=None, derandomize=True, database=None,
                     suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(model=networks(), seed=st.integers(0, 2**16))
def test_masked_is_cut_is_counted_and_a_cut_is_cut_again(model, seed):
    supernet = ekg.Supernet(model)
    subnetwork = random_subnetwork(supernet, seed)
    cut = supernet.cut(subnetwork)
    images = np.random.default_rng(seed).normal(size=(IMAGES, SIZE, SIZE, 3)).astype(np.float32)
    variables = cut.trainable_variables, cut.non_trainable_variables
    for training in (False, True):
        masked = supernet.logits(images, subnetwork, training=training)
        assert relative_difference(cut.stateless_call(*variables, images, training=training)[0], masked) < 1e-4
    assert model_complexity(cut) == supernet.complexity(subnetwork)
    assert cut.count_params() == supernet.complexity(subnetwork).params
    again = ekg.Supernet(cut)
    assert [group.size for group in again.groups] == [subnetwork.num_kept(i) for i in range(len(supernet.groups))]
    smallest = again.cut(again.smallest())
    assert model_complexity(smallest) == supernet.complexity(supernet.smallest())
    masked = again.logits(images, again.smallest(), training=False)
    assert relative_difference(smallest(images), masked) < 1e-4
