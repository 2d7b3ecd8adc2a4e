"""Networks that leave sizes of their inputs open, in whole jobs on data of one size."""

import keras
import numpy as np
import pytest
from keras import layers

import ekg
from ekg.errors import EkgError
from ekg.graph.complexity import model_complexity
from tests.helpers.digits import QUICK, digits, network
from tests.helpers.models import randomise_

IMAGES, LABELS = digits()


def dense(x):
    return layers.Dense(10, name="fc")(x)


def reader(length=None):
    """A network of token numbers: a convolution, a recurrent layer, and a head."""
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    x = layers.Embedding(17, 6, name="embedding")(tokens)
    x = layers.Conv1D(8, 3, padding="same", activation="relu", name="one")(x)
    x = layers.GRU(8, name="gru")(x)
    return randomise_(keras.Model(tokens, dense(x), name="reader"))


def evaluated(model, inputs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    return model.evaluate(inputs, LABELS, verbose=0)


def check(result, inputs, fixed, size, runtimes):
    """Compares a job with a twin of its network whose sizes are fixed, and with Keras."""
    assert result.table[0].flops == model_complexity(fixed).flops
    twin = ekg.Supernet(fixed)
    assert [group.name for group in twin.groups] == list(result.subnetwork.names)
    assert result.rate == twin.rate(result.subnetwork) <= 0.6
    assert f"FLOPs and latencies are of {size}, the size of the data" in result.summary()
    loss, accuracy = evaluated(result.model, inputs)
    assert result.table[-1].loss == pytest.approx(loss, rel=1e-3)
    assert result.table[-1].top1 == pytest.approx(accuracy)
    for row in result.table:
        assert len(row.latencies) == runtimes


@pytest.mark.rehearsed
def test_images_of_any_size(tmp_path):
    options = QUICK | {"target_rate": 0.6, "epochs": 1, "augment": "flip_crop"}
    options |= {"run": {"runtimes": ("litert",)}, "validation_data": (IMAGES, LABELS)}
    result = ekg.prune(network(dense, size=None), (IMAGES, LABELS), **options)
    check(result, IMAGES, network(dense), "8x8x1", 1)
    assert result.export(tmp_path / "images.onnx").share < 1e-4
    assert result.model(np.zeros((2, 11, 13, 1))).shape == (2, 10)


@pytest.mark.rehearsed
def test_texts_of_any_length_are_padded_to_one_in_the_data(tmp_path):
    """LiteRT's converter takes recurrent layers for a fixed batch alone."""
    tokens = (IMAGES.reshape(-1, 64)[:, ::5] * 16).astype(np.int32)
    options = QUICK | {"target_rate": 0.6, "epochs": 1, "validation_data": (tokens, LABELS)}
    options |= {"run": {"runtimes": ("litert",)}}
    result = ekg.prune(reader(), (tokens, LABELS), **options)
    check(result, tokens, reader(13), "13", 1)
    assert result.model(np.zeros((2, 5), np.int32)).shape == (2, 10)
    expected = result.model.predict(tokens[:64], verbose=0)
    for name, batch in (("texts.tflite", 1), ("texts.onnx", "any")):
        export = result.export(tmp_path / name)
        assert export.batch == batch and export.share < 1e-4 and export.agreement == 1
        step = 1 if batch == 1 else 64
        parts = [export.reader.run([tokens[i : i + step]])[0] for i in range(0, 64, step)]
        np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-4, atol=1e-5)


def test_an_inspection_takes_the_size_of_the_data():
    model = network(dense, size=None)
    with pytest.raises(EkgError, match="takes inputs of any size"):
        ekg.inspect(model)
    found = ekg.inspect(model, (IMAGES, LABELS), search={"val_per_class": 2})
    assert found.complexity == ekg.inspect(network(dense)).complexity
    assert "Loss on 20 examples" in str(found)


def test_data_of_several_sizes_is_refused():
    ragged = [IMAGES[0], IMAGES[1, :5]]
    with pytest.raises(EkgError, match="`data` has several arrays per example"):
        ekg.make_data(network(dense, size=None), (ragged, LABELS[:2]))
