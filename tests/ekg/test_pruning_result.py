"""What a whole job hands out: the better network, figures with their errors, one size, a head like
the user's own.
"""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import ekg
from ekg.graph.heads import without_head
from ekg.io import files
from ekg.run.choice import Choice
from ekg.train.evaluate import Metrics
from tests.helpers.digits import digits, network, softmax

JOB = {
    "verbose": False,
    "target_rate": 0.7,
    "epochs": 1,
    "augment": None,
    "bank": False,
    "search": {"search_step": 1.0, "val_per_class": 4, "subset_per_class": 8},
}


@keras.saving.register_keras_serializable("tests")
class Mine(keras.Model):
    """A class of a user's own."""


@keras.saving.register_keras_serializable("tests")
class MineInARow(keras.Sequential):
    """Likewise, sequential."""


def losses_of(model, images, labels):
    """Returns the cross-entropy of each image by NumPy, and whether each answer is right."""
    chances = np.asarray(model.predict(images, verbose=0), np.float64)
    return -np.log(chances[np.arange(len(labels)), labels]), chances.argmax(1) == labels


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """(network, run folder, PruneResult) of a job whose fine-tuning ruins what was cut out."""
    keras.utils.set_random_seed(0)
    model, folder = network(softmax), tmp_path_factory.mktemp("runs") / "run"
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(*digits(), epochs=12, verbose=0)
    options = JOB | {"run_dir": folder, "fine_tune": {"learning_rate": 3.0}}
    return model, folder, ekg.prune(model, digits(), validation_data=digits(60), **options), options


def test_a_worse_network_is_not_returned(spoilt):
    """The one that was cut out comes back; the fine-tuned one stays in the folder under its own
    name.
    """
    model, folder, result, options = spoilt
    cut, tuned = result.table[1:]
    assert cut.loss < tuned.loss
    loss, right = losses_of(result.model, *digits(60))
    assert loss.mean() == pytest.approx(cut.loss, rel=1e-4) and right.mean() == pytest.approx(
        cut.top1
    )
    assert (
        "the result is the network that was cut out: the fine-tuning of 1 steps made it worse"
        in result.summary()
    )
    stored = keras.models.load_model(folder / "slimmed_param.keras")
    np.testing.assert_allclose(stored(digits()[0]), result.model(digits()[0]), rtol=1e-5)
    fine_tuned = keras.models.load_model(folder / "trained_param.keras")
    assert losses_of(fine_tuned, *digits(60))[0].mean() == pytest.approx(tuned.loss, rel=1e-3)


def test_a_finished_run_returns_the_same_network_again(spoilt, caplog):
    model, folder, result, options = spoilt
    (folder / "slimmed_param.keras").unlink()
    caplog.clear()
    again = ekg.prune(model, digits(), validation_data=digits(60), **options)
    assert again.choice == result.choice and (folder / "slimmed_param.keras").exists()
    assert caplog.text.count("fine-tuning takes 1 steps in all; fewer than 200") == 1
    assert all(
        (a == b).all() for a, b in zip(again.model.get_weights(), result.model.get_weights())
    )
    (folder / "slimmed_param.pkl").write_bytes(b"damaged")
    again = ekg.prune(model, digits(), validation_data=digits(60), **options)
    assert again.choice == result.choice
    assert all(
        (a == b).all() for a, b in zip(again.model.get_weights(), result.model.get_weights())
    )


def test_every_figure_has_its_standard_error_and_number(spoilt):
    result = spoilt[2]
    loss, right = losses_of(result.model, *digits(60))
    row = result.table[1]
    assert row.examples == 60
    assert row.errors["loss"] == pytest.approx(loss.std(ddof=1) / 60**0.5, rel=1e-3)
    assert row.errors["top1"] == pytest.approx(right.std(ddof=1) / 60**0.5, rel=1e-3)
    assert f"{row.loss:.4f} ±{row.errors['loss']:.4f}" in result.summary()
    assert "± is one standard error of the mean over 60 examples" in result.summary()
    choice = files.read_json(spoilt[1] / "summary.json")["choice"]
    assert choice["examples"] == 40 and set(choice["errors"]) == {"slimmed", "fine-tuned"}


def test_the_network_with_the_lower_loss_is_chosen_and_the_reason_is_logged():
    def metrics(loss):
        return Metrics(loss, {"top1": 0.5}, 40, {"loss": 0.01, "top1": 0.02})

    better = Choice.between(metrics(0.7), metrics(0.6), 300)
    assert better.name == "fine-tuned" and str(better) == (
        "the result is the fine-tuned network: its loss on the 40 images that the search "
        "evaluates on is 0.6000 ±0.0100, without fine-tuning 0.7000 ±0.0100"
    )
    assert Choice.between(metrics(0.6), metrics(0.6), 300).name == "fine-tuned"
    for worse in (metrics(0.7), metrics(float("nan"))):
        chosen = Choice.between(metrics(0.6), worse, 300)
        assert chosen.name == "slimmed" and "the fine-tuning made it worse" in str(chosen)


def test_the_rate_is_the_searchs_for_any_size_of_validation_images():
    images, labels = digits(60)
    inputs = keras.Input((None, None, 1))
    x = layers.Conv2D(6, 3, activation="relu", name="one")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu", name="two")(x))
    model = keras.Model(
        inputs,
        layers.Dense(10, activation="softmax", name="fc")(layers.Dense(40, name="hidden")(x)),
    )
    large = np.repeat(np.repeat(images, 2, 1), 2, 2)
    result = ekg.prune(
        model, digits(), validation_data=(large, labels), **JOB | {"epochs": None, "bank": None}
    )
    assert result.rate == result.history[-1].rate == result.table[1].flops / result.table[0].flops
    kept = [result.subnetwork.num_kept(i) for i in range(3)]

    def flops(size, one, two, hidden):
        return (
            (size - 2) ** 2 * 9 * one + (size - 4) ** 2 * 9 * one * two + two * hidden + hidden * 10
        )

    assert result.table[0].flops == flops(8, 6, 8, 40) and result.table[1].flops == flops(8, *kept)
    assert (
        "FLOPs and latencies are of 8x8x1, as in the search; at 16x16x1, what the rest is of, "
        f"the rate is {flops(16, *kept) / flops(16, 6, 8, 40):.4f}"
    ) in result.summary()


HEADS = {
    "dense": lambda x: layers.Dense(10, activation="softmax", name="fc")(x),
    "activation": lambda x: layers.Activation("softmax", name="soft")(
        layers.Dense(10, name="fc")(x)
    ),
    "layer": lambda x: layers.Softmax(name="soft")(layers.Dense(10, name="fc")(x)),
    "function": lambda x: keras.ops.softmax(layers.Dense(10, name="fc")(x)),
}


def without_and_with_its_head(model):
    """Returns (the logits of half a network, by its supernet, what comes back with the head)."""
    logits, head = without_head(model)
    supernet = ekg.Supernet(logits)
    assert supernet.classifier.layer.name == "fc"  # so its kernel keeps its norm
    cut = supernet.cut(supernet.whole().with_widths({group.name: 0.5 for group in supernet.groups}))
    found = np.asarray(cut(digits()[0]), np.float64)
    return found, head.put_back(cut)


@pytest.mark.parametrize("name", list(HEADS))
def test_heads_of_all_kinds_are_returned_alike(name):
    """The numbers, the class, and whether it is compiled."""
    plain = network(HEADS[name])
    model = Mine(plain.inputs, plain.outputs, name="own")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    logits, result = without_and_with_its_head(model)
    expected, _ = without_and_with_its_head(network(HEADS["dense"]))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert type(result) is Mine and result.compiled
    assert [layer.name for layer in result.layers if layer.name in ("fc", "soft")] == [
        layer.name for layer in model.layers if layer.name in ("fc", "soft")
    ]
    chances = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    np.testing.assert_allclose(result(digits()[0]), chances, rtol=1e-4)
    right = (chances.argmax(1) == digits()[1]).mean()
    assert result.evaluate(*digits(), verbose=0)[1] == pytest.approx(right)


@pytest.mark.parametrize("head", ["activation", "layer"])
def test_a_sequential_network_stays_sequential(head):
    last = (
        layers.Softmax(name="soft")
        if head == "layer"
        else layers.Activation("softmax", name="soft")
    )
    model = MineInARow(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(6, 3, name="one", activation="relu"),
            layers.Flatten(),
            layers.Dense(10, name="fc"),
            last,
        ],
        name="own",
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    logits, result = without_and_with_its_head(model)
    assert type(result) is MineInARow and result.compiled and result.layers[-1].name == "soft"
    np.testing.assert_allclose(
        result(digits()[0]), np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-4
    )


def test_a_softmax_along_another_axis_or_with_a_mask_is_refused():
    inputs = keras.Input((8, 8, 1))
    maps = layers.Conv2D(3, 1, name="maps")(layers.Conv2D(4, 1, name="conv")(inputs))
    model = keras.Model(inputs, layers.Softmax(axis=1, name="soft")(maps), name="own")
    labels = np.zeros((24, 8, 8), np.int64)
    with pytest.raises(
        ekg.EkgError,
        match=r"ends with 'soft' \(Softmax\), which reads a mask or works along another axis",
    ):
        ekg.prune(model, (digits(24)[0], labels), verbose=False)


class Trained(keras.Model):
    """A class that says itself how it is trained."""

    def train_step(self, data):
        return super().train_step(data)


def test_a_warning_says_that_a_custom_training_step_is_not_called(caplog):
    plain = network(softmax)
    for kind, number in ((Trained, 1), (Mine, 0)):
        caplog.clear()
        with pytest.raises(ekg.EkgError, match="cannot be reached"):
            ekg.prune(kind(plain.inputs, plain.outputs), digits(), target_rate=0.001, verbose=False)
        assert (
            caplog.text.count("has a train_step() of its own, which training here does not call")
            == number
        )


def top1_of_file(path, images, labels):
    """Returns the share of right answers of a .tflite file in 8 bits, run image by image."""
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = entry["quantization"]
    right = 0
    for image, label in zip(images, labels):
        levels = np.clip(np.round(image[None] / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(entry["index"], levels)
        interpreter.invoke()
        right += np.argmax(interpreter.get_tensor(result["index"])) == label
    return right / len(labels)


def test_the_table_has_the_accuracy_and_the_time_of_networks_in_8_bits(tmp_path):
    keras.utils.set_random_seed(0)
    model = network(softmax)
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(*digits(), epochs=12, verbose=0)
    run = {"exports": ("int8", "litert"), "runtimes": ("litert",)}
    options = JOB | {"epochs": None, "run_dir": tmp_path / "run", "run": run}
    held_out = digits(200)[0][120:], digits(200)[1][120:]
    result = ekg.prune(model, digits(), validation_data=held_out, **options)
    files_of = {
        row.name: tmp_path / "run/exported" / f"{row.name}.int8.tflite" for row in result.table
    }
    for row in result.table:
        assert row.int8["top1"] == pytest.approx(top1_of_file(files_of[row.name], *held_out))
        assert row.exports["int8"] == files_of[row.name].stat().st_size < row.exports["litert"]
        assert list(row.latencies) == [
            "litert, batch 1, 1 thread",
            "litert int8, batch 1, 1 thread",
        ]
    assert result.table[0].latencies["litert, batch 1, 1 thread"]["ratio"] == 1.0
    heading = result.summary().splitlines()[0]
    assert "int8 top-1 %" in heading and "ms, litert int8, batch 1, 1 thread" in heading
