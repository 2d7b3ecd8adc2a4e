"""Whose kernel keeps its norm: class logits alone, once, in the masked and in the cut network."""

import keras
import numpy as np
import pytest
from keras import layers

import ekg
from ekg.data.dataset import Batches
from ekg.landscape.hessian import model_landscape
from ekg.train.evaluate import evaluate
from tests.helpers.comparisons import random_subnetwork, relative_difference
from tests.helpers.models import conv_bn, randomise_


def with_head(*head):
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(conv_bn(inputs, 6, "one"), 5, "two")
    for layer in head:
        x = layer(x)
    return randomise_(keras.Model(inputs, x, name="net"))


POOL = layers.GlobalAveragePooling2D
HEADS = {
    "logits": lambda: (POOL(name="pool"), layers.Dense(3, name="fc")),
    "softmax": lambda: (
        POOL(name="pool"),
        layers.Dense(3, name="fc"),
        layers.Activation("softmax", name="soft"),
    ),
    "softmax_layer": lambda: (
        POOL(name="pool"),
        layers.Dense(3, name="fc"),
        layers.Softmax(name="soft"),
    ),
    "image": lambda: (layers.Conv2D(3, 1, name="fc"),),
    "regression": lambda: (POOL(name="pool"), layers.Dense(1, name="fc")),
}


@pytest.mark.parametrize("head", list(HEADS))
def test_dead_channels_change_class_logits_by_the_factor_and_nothing_else(images, head):
    """Channels whose filters are zero give nothing; without them only a classifier's kernel grows
    to its former norm.
    """
    model = with_head(*HEADS[head]())
    for name in ("two", "two_bn"):
        layer = model.get_layer(name)
        layer.set_weights([np.where(np.arange(5) < 3, weight, 0) for weight in layer.get_weights()])
    supernet = ekg.Supernet(model)
    dead = next(i for i, group in enumerate(supernet.groups) if group.name == "two")
    subnetwork = supernet.whole().with_kept(dead, 3)
    is_classifier = head in ("logits", "softmax", "softmax_layer")
    assert (supernet.classifier is not None) == is_classifier
    cut = supernet.cut(subnetwork)
    kernel, bias = model.get_layer("fc").get_weights()
    found, _ = cut.get_layer("fc").get_weights()
    factor = np.linalg.norm(kernel) / np.linalg.norm(kernel[..., :3, :]) if is_classifier else 1.0
    np.testing.assert_allclose(found, factor * kernel[..., :3, :], rtol=1e-5)
    for training in (False, True):
        masked = supernet.logits(images, subnetwork, training=training)
        pure = cut.stateless_call(
            cut.trainable_variables, cut.non_trainable_variables, images, training=training
        )[0]
        assert relative_difference(pure, masked) < 1e-4
        if not is_classifier:
            whole = supernet.logits(images, supernet.whole(), training=training)
            assert relative_difference(masked, whole) < 1e-5


def test_an_output_layer_that_is_called_twice_keeps_its_weights(images):
    inputs = keras.Input((8, 8, 3))
    fc = layers.Dense(3, name="fc")
    x = layers.GlobalAveragePooling2D(name="pool")(conv_bn(inputs, 4, "one"))
    x = fc(layers.Dense(4, activation="relu", name="between")(fc(x)))
    supernet = ekg.Supernet(randomise_(keras.Model(inputs, x)))
    assert supernet.classifier is None and [group.writers for group in supernet.groups] == [
        ("one", "between")
    ]
    subnetwork = random_subnetwork(supernet, 0)
    cut = supernet.cut(subnetwork)
    assert (
        relative_difference(cut(images), supernet.logits(images, subnetwork, training=False)) < 1e-4
    )


@pytest.mark.parametrize("head", ["softmax", "softmax_layer", "dense_softmax"])
def test_probabilities_are_not_taken_for_logits(tiny_data, head):
    heads = HEADS | {
        "dense_softmax": lambda: (
            POOL(name="pool"),
            layers.Dense(3, activation="softmax", name="fc"),
        )
    }
    model = with_head(*heads[head]())
    batches = Batches(tiny_data.test, tiny_data.normalise, 8)
    for use in (
        lambda: ekg.search(ekg.Supernet(model), tiny_data, target_rate=0.5),
        lambda: evaluate(model, batches),
        lambda: model_landscape(model, batches),
    ):
        with pytest.raises(
            ekg.EkgError, match="`model` 'net' returns probabilities, by its last layer"
        ):
            use()
