"""Data of several inputs in all forms that `fit` takes, against the arrays they were made of."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ekg
from ekg.data.inputs import Inputs, described
from ekg.data.sources import find_examples
from ekg.errors import EkgError
from ekg.graph.calls import Graph
from tests.helpers.digits import Sequence, two_inputs, with_numbers

INPUTS, LABELS = with_numbers(70)
PAIR = INPUTS["image"], INPUTS["columns"]


class Batches(Sequence):
    """A PyDataset whose images are a structure of arrays."""

    def __getitem__(self, number):
        part = slice(32 * number, 32 * number + 32)
        return keras.tree.map_structure(lambda array: array[part], self.images), self.labels[part]


def dataset(inputs):
    return tf.data.Dataset.from_tensor_slices((inputs, LABELS)).batch(32)


FORMS = {
    "dict": (INPUTS, LABELS),
    "dict with weights": (INPUTS, LABELS, np.ones(70)),
    "tuple": (PAIR[::-1], LABELS),  # in the order of the names: columns, image
    "tensors": ({name: tf.constant(array) for name, array in INPUTS.items()}, LABELS),
    "images without a channel axis": (INPUTS | {"image": INPUTS["image"][..., 0]}, LABELS),
    "tf.data": dataset(INPUTS),
    "tf.data of tuples": dataset(PAIR[::-1]),
    "PyDataset": Batches(INPUTS, LABELS),
    "ekg.Data": ekg.Data(
        LABELS, lambda indices: {name: array[indices] for name, array in INPUTS.items()}
    ),
}


@pytest.fixture(scope="module")
def network():
    return two_inputs()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_as_the_structure_of_the_network(network, form):
    data = ekg.make_data(network, FORMS[form], task="classification")
    numbers = np.array([69, 3, 40])
    for split in (data.train, data.train.in_memory(), data.train.take(numbers).take([0, 1, 2])):
        chosen = [0, 1, 2] if len(split) == 3 else numbers
        read = split.read(chosen)
        assert sorted(read) == ["columns", "image"]
        for name, array in read.items():
            np.testing.assert_array_equal(array, INPUTS[name][numbers])
    assert data.image_shape == [(8,), (8, 8, 1)] and len(data.train) == 70
    assert {name: value.dtype for name, value in data.normalise(read).items()} == {
        "columns": tf.float32,
        "image": tf.float32,
    }


def test_a_network_of_a_list_of_inputs_reads_them_in_its_order():
    for given in (INPUTS, PAIR):
        data = ekg.make_data(two_inputs(as_dict=False), (given, LABELS))
        image, columns = data.train.read([5])
        np.testing.assert_array_equal(image, INPUTS["image"][[5]])
        np.testing.assert_array_equal(columns, INPUTS["columns"][[5]])


def test_inputs_without_labels_are_compared_with_the_networks_outputs(network):
    data = ekg.make_data(network, INPUTS)
    expected = network(INPUTS, training=False)
    np.testing.assert_allclose(data.train.labels, expected, rtol=1e-4, atol=1e-5)
    batched = tf.data.Dataset.from_tensor_slices(INPUTS).batch(32)
    np.testing.assert_array_equal(ekg.make_data(network, batched).train.labels, data.train.labels)


def test_texts_whole_numbers_and_nested_structures_are_read_as_they_are():
    text = keras.Input((), dtype="string", name="text")
    ids, mask = keras.Input((4,), dtype="int32", name="ids"), keras.Input((4,), dtype="bool")
    lookup = layers.StringLookup(vocabulary=["yes", "no"], output_mode="one_hot")
    tokens = layers.Embedding(9, 5)(ids) * layers.Reshape((4, 1))(keras.ops.cast(mask, "float32"))
    x = layers.Concatenate()([lookup(text), layers.Flatten()(tokens)])
    x = layers.Dense(3)(layers.Dense(7, activation="relu")(x))
    model = keras.Model({"text": text, "tokens": [ids, mask]}, x)
    rng = np.random.default_rng(0)
    given = {
        "text": np.array(["yes", "no", "perhaps"])[rng.integers(0, 3, 40)],
        "tokens": [rng.integers(0, 9, (40, 4)), rng.random((40, 4)) > 0.3],
    }
    expected = model(keras.tree.map_structure(tf.constant, given))
    supernet = ekg.Supernet(model)
    tensors = {
        name: tuple(map(tf.constant, v)) if name == "tokens" else v for name, v in given.items()
    }
    for source in ((given, None), tf.data.Dataset.from_tensor_slices((tensors,)).batch(16)):
        data = ekg.make_data(model, source)
        read = data.train.read(np.arange(40))
        assert [text.decode() for text in read["text"]] == given["text"].tolist()
        logits = supernet.logits(data.normalise(read), supernet.whole(), training=False)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(EkgError, match="`data`, input 'text', must hold strings; received int64"):
        ekg.make_data(model, (given | {"text": np.arange(40)}, None))


def test_one_input_may_stand_alone_in_a_dict_or_list():
    inputs = Inputs(((8, 8, 1),))
    for given in (PAIR[0], {"any": PAIR[0]}, [PAIR[0]]):
        examples = find_examples((given, LABELS), inputs)
        np.testing.assert_array_equal(examples.read(np.arange(70)), PAIR[0])
    assert (
        described((8, 8, 1)) == "8x8x1" and described([(8, 8, 1), (5,), ()]) == "8x8x1 and 5 and 1"
    )


def test_names_come_from_a_dict_or_from_the_input_layers():
    assert Inputs.of(Graph(two_inputs())).names == ("columns", "image")
    assert Inputs.of(Graph(two_inputs(as_dict=False))).names == ("image", "columns")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            ({"image": PAIR[0]}, LABELS),
            "`data` has the inputs .'image'., and the network takes the inputs .'columns', "
            "'image'.; give a dict of exactly these",
        ),
        (
            ({**INPUTS, "rows": PAIR[1]}, LABELS),
            "`data` has the inputs .'columns', 'image', 'rows'",
        ),
        ((PAIR[0], LABELS), "`data` has one array of inputs, and the network takes"),
        (((*PAIR, PAIR[0]), LABELS), "`data` has 3 inputs, and the network takes the inputs"),
        (PAIR, "`data` has one array of inputs"),  # a pair is (inputs, labels)
        (
            ((PAIR[1][:60], PAIR[0]), LABELS),
            "`data`, input 'columns', has the shape .60, 8., and input 'image' .70, 8, 8, 1.; give "
            "as many examples in every input",
        ),
        ((INPUTS, LABELS[:60]), "give as many labels as images"),
        (
            (PAIR, LABELS),
            "`data`, input 'columns', has examples of shape .8, 8, 1., and the network",
        ),
        (
            (INPUTS | {"columns": np.full((70, 8), np.nan)}, LABELS),
            "`data`, input 'columns', holds numbers that are not finite, .* in example 0 of 70",
        ),
        (
            (INPUTS | {"columns": np.full((70, 8), "a")}, LABELS),
            "`data`, input 'columns', holds strings",
        ),
        (dataset(INPUTS | {"rows": PAIR[1]}), "`data` has the inputs .'columns', 'image', 'rows'."),
        (dataset(INPUTS).unbatch(), "`data` gives single examples; batch them"),
        (dataset(INPUTS).shuffle(9, seed=1), "it shuffles, or changes images, by itself"),
        (Batches({"image": PAIR[0]}, LABELS), "`data` has the inputs .'image'."),
        (ekg.Data(LABELS, lambda indices: PAIR[0][indices]), "`data` has one array of inputs"),
        (
            ekg.Data(LABELS, lambda indices: {"image": PAIR[0][indices], "columns": PAIR[1][:1]}),
            "asked for 4 examples and gave an array of shape .1, 8.",
        ),
    ],
)
def test_a_mistake_is_one_line(network, data, message):
    with pytest.raises(EkgError, match=message) as error:
        ekg.make_data(network, data)
    assert "\n" not in str(error.value)
