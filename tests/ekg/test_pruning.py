"""The whole job in one call, on a user's own network and data."""

import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from sklearn import datasets

import ekg
from ekg.errors import EkgError
from ekg.io import files
from ekg.train.checkpoints import Checkpoints
from tests.helpers import runs
from tests.helpers.digits import QUICK, Sequence, as_folder, digits, network, softmax
from tests.helpers.made_up_runtime import install, seconds_of
from tests.helpers.models import conv_bn, make_data, make_tiny_resnet, randomise_

TUNED = {**QUICK, "epochs": 1, "target_rate": 0.7, "augment": "flip", "bank": {"num_teacher": 2}}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """(network, (images, labels), run folder, PruneResult of the whole job)."""
    model, data, folder = network(softmax), digits(), tmp_path_factory.mktemp("runs") / "run"
    return (
        model,
        data,
        folder,
        ekg.prune(model, data, validation_data=digits(60), run_dir=folder, **TUNED),
    )


def test_the_result_is_a_plain_smaller_keras_network(pruned, tmp_path):
    model, (images, labels), _, result = pruned
    assert type(result.model) is type(model) and result.rate <= 0.7
    before, after = (
        ekg.Supernet(network).complexity(ekg.Supernet(network).whole())
        for network in (model, result.model)
    )
    assert after.flops / before.flops == result.rate == result.history[-1].rate
    np.testing.assert_allclose(
        result.model(images).numpy().sum(axis=1), 1, rtol=1e-5
    )  # the softmax is back
    result.model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(images), result.model(images), rtol=1e-6)
    loaded.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    loss, accuracy = loaded.evaluate(*digits(60), verbose=0)
    assert result.table[2].loss == pytest.approx(loss, rel=1e-4)
    assert result.table[2].top1 == pytest.approx(accuracy)
    assert [row.name for row in result.table] == ["baseline", "slimmed", "fine-tuned"]


def test_the_users_network_is_left_as_it_was(pruned):
    model, (images, _), *_ = pruned
    assert model.get_layer("fc").activation is keras.activations.softmax
    assert all((a == b).all() for a, b in zip(model.get_weights(), network(softmax).get_weights()))


@pytest.mark.rendered
def test_the_summary_and_the_report_describe_the_result(pruned, tmp_path):
    result = pruned[3]
    assert (
        "fine-tuned" in result.summary()
        and "measured on 60 validation examples" in result.summary()
    )
    assert "% of the FLOPs" in result.report(tmp_path / "out")
    assert (tmp_path / "out" / "report.png").stat().st_size > 10_000 and "own" in (
        tmp_path / "out/report.html"
    ).read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(EkgError, match="cannot be written"):
        result.report(tmp_path / "file")


def test_the_same_call_shows_a_finished_run_again(pruned):
    model, data, folder, result = pruned
    again = ekg.prune(
        model, data, validation_data=digits(60), run_dir=folder, **TUNED, fine_tune={"num_views": 2}
    )  # what it takes anyway
    assert again.table == result.table and again.subnetwork == result.subnetwork
    assert all(
        (a == b).all() for a, b in zip(again.model.get_weights(), result.model.get_weights())
    )


def test_other_settings_or_another_network_are_refused_in_a_run_folder(pruned):
    model, data, folder, _ = pruned
    with pytest.raises(EkgError, match="name a new `run_dir`, which .*:\n  seed: 0 there, 3 here"):
        ekg.prune(model, data, validation_data=digits(60), run_dir=folder, **TUNED, seed=3)
    other = network(softmax)
    other.get_layer("one").kernel.assign_add(np.ones((3, 3, 1, 6)))
    with pytest.raises(EkgError, match="\n  model: "):
        ekg.prune(other, data, validation_data=digits(60), run_dir=folder, **TUNED)
    with pytest.raises(EkgError, match=r"\n  num_views: 2 there, 1 here$"):
        ekg.prune(
            model,
            data,
            validation_data=digits(60),
            run_dir=folder,
            **TUNED,
            fine_tune={"num_views": 1},
        )
    with pytest.raises(EkgError, match="\n  groups: "):
        ekg.prune(model, data, validation_data=digits(60), run_dir=folder, **TUNED, min_channels=2)
    with pytest.raises(
        EkgError, match=r"\n  test_data: .*'images': 60.* there, .*'images': 50.* here$"
    ):
        ekg.prune(model, data, validation_data=digits(50), run_dir=folder, **TUNED)


def test_a_stopped_job_resumes_to_the_same_weights(pruned, tmp_path, monkeypatch):
    model, data, folder, result = pruned
    original = Checkpoints.save

    def save(self, position):
        original(self, position)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        for _ in range(2):  # in the epoch before the search, and in fine-tuning
            with pytest.raises(KeyboardInterrupt):
                ekg.prune(
                    model, data, validation_data=digits(60), run_dir=tmp_path / "run", **TUNED
                )
    resumed = ekg.prune(model, data, validation_data=digits(60), run_dir=tmp_path / "run", **TUNED)
    assert all(
        (a == b).all() for a, b in zip(resumed.model.get_weights(), result.model.get_weights())
    )
    assert [line["kept"] for line in files.read_json_lines(tmp_path / "run" / "history.jsonl")] == [
        line["kept"] for line in files.read_json_lines(folder / "history.jsonl")
    ]


def test_a_data_set_of_the_project_gives_the_same_result_as_the_scripts():
    """The data set has its own views, constants and test images."""
    data = make_data()
    result = ekg.prune(
        make_tiny_resnet(),
        data,
        target_rate=0.7,
        epochs=None,
        verbose=False,
        search={"subset_per_class": 8, "val_per_class": 4},
    )
    assert result.history[-1].rate <= 0.7 and result.table[-1].name == "slimmed"
    with pytest.raises(EkgError, match="`augment` has no effect here: the data set has its own"):
        ekg.prune(make_tiny_resnet(), data, augment="flip", verbose=False)


# ---------------------------------------------------------------- forms of data


@pytest.fixture(scope="module")
def of_arrays():
    return ekg.prune(network(softmax), digits(), epochs=None, target_rate=0.7, **QUICK)


def one_hot(labels):
    return np.eye(10)[labels]


@pytest.mark.parametrize(
    "make",
    [
        lambda images, labels: tf.data.Dataset.from_tensor_slices((images, labels)).batch(32),
        lambda images, labels: Sequence(images, labels),
        lambda images, labels: ekg.Data(labels, lambda indices: images[indices]),
        lambda images, labels: (images.tolist(), labels.tolist()),
        lambda images, labels: (tf.constant(images), labels[:, None]),
        lambda images, labels: (images[..., 0].astype(np.float64), one_hot(labels)),
        lambda images, labels: tf.data.Dataset.from_tensor_slices((images, one_hot(labels))).batch(
            50
        ),
    ],
)
def test_the_form_of_the_data_does_not_matter(of_arrays, make):
    result = ekg.prune(network(softmax), make(*digits()), epochs=None, target_rate=0.7, **QUICK)
    assert (
        result.subnetwork == of_arrays.subnetwork
        and result.table[1].loss == of_arrays.table[1].loss
    )


def test_a_folder_of_images_and_uint8(tmp_path):
    images, labels = digits()
    images = np.round(images * 255)
    result = ekg.prune(
        network(softmax),
        as_folder(tmp_path, images / 255, labels),
        epochs=None,
        target_rate=0.7,
        **QUICK,
    )
    order = np.argsort(labels, kind="stable")
    expected = ekg.prune(
        network(softmax),
        (images[order].astype(np.uint8), labels[order]),
        epochs=None,
        target_rate=0.7,
        **QUICK,
    )
    assert result.subnetwork == expected.subnetwork and result.table[1].loss == pytest.approx(
        expected.table[1].loss
    )


# ---------------------------------------------------------------- tasks


def breast_cancer():
    table, labels = datasets.load_breast_cancer(return_X_y=True)
    return ((table - table.mean(0)) / table.std(0)).astype(np.float32), labels


def trained_mlp(data, units, activation, loss):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((data[0].shape[1],))
    x = layers.Dense(24, activation="relu", name="one")(inputs)
    x = layers.Dense(16, activation="relu", name="two")(x)
    model = keras.Model(
        inputs, layers.Dense(units, activation=activation, name="out")(x), name="mlp"
    )
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(*data, epochs=12, verbose=0)
    return model


def test_a_binary_classifier_of_a_table():
    data = breast_cancer()
    model = trained_mlp(data, 1, "sigmoid", "binary_crossentropy")
    result = ekg.prune(
        model,
        data,
        validation_data=data,
        target_rate=0.3,
        epochs=12,
        verbose=False,
        bank={"num_teacher": 2},
        search={"search_step": 0.5},
    )
    rows = result.table
    assert list(rows[0].metrics) == ["accuracy"] and rows[0].metrics["accuracy"] > 0.97
    assert rows[2].metrics["accuracy"] > 0.95 and result.rate <= 0.3
    assert (result.model(data[0]).numpy() >= 0).all() and result.model.layers[
        -1
    ].activation is keras.activations.sigmoid
    predicted = result.model.predict(data[0], verbose=0)[:, 0] > 0.5
    assert (predicted == data[1]).mean() == pytest.approx(rows[2].metrics["accuracy"], abs=1e-6)


def test_a_regression_of_diabetes_leaves_kernel_norms_as_they_are_cut():
    table, target = datasets.load_diabetes(return_X_y=True)
    data = (
        20 * table.astype(np.float32),
        ((target - target.mean()) / target.std()).astype(np.float32),
    )
    model = trained_mlp(data, 1, None, "mse")
    result = ekg.prune(
        model,
        data,
        validation_data=data,
        target_rate=0.3,
        epochs=12,
        verbose=False,
        bank={"num_teacher": 2},
        fine_tune={"temperature": 2.0},
        search={"search_step": 0.5},
    )
    assert list(result.table[0].metrics) == ["mae"]
    model.compile(loss="mse", metrics=["mae"])
    assert result.table[0].loss == pytest.approx(model.evaluate(*data, verbose=0)[0], rel=1e-4)
    assert (
        result.table[2].loss < 1.3 * result.table[0].loss < 0.8
    )  # 1 is what the mean alone reaches


@pytest.mark.rehearsed
def test_a_segmentation_of_digits_into_digit_and_background():
    images, _ = digits(200)
    maps = (images[..., 0] > 0.4).astype(np.int32)
    inputs = keras.Input((8, 8, 1))
    x = conv_bn(conv_bn(inputs, 8, "one"), 8, "two")
    keras.utils.set_random_seed(0)
    model = keras.Model(
        inputs, layers.Conv2D(2, 1, activation="softmax", name="maps")(x), name="segments"
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(images, maps, epochs=8, verbose=0)
    result = ekg.prune(
        model,
        (images, maps),
        validation_data=(images, maps),
        target_rate=0.4,
        epochs=2,
        verbose=False,
        bank={"num_teacher": 2},
        search={"search_step": 0.5},
    )
    assert result.table[2].metrics["pixel_accuracy"] > 0.85 and result.rate <= 0.4
    right = (result.model.predict(images, verbose=0).argmax(-1) == maps).mean()
    assert right == pytest.approx(result.table[2].metrics["pixel_accuracy"], abs=1e-6)


def test_one_output_of_several_is_named_and_all_are_kept():
    model = network(lambda x: {"wide": layers.Dense(4, name="wide")(x), "classes": softmax(x)})
    result = ekg.prune(
        model,
        digits(),
        epochs=None,
        target_rate=0.7,
        **QUICK,
        task=ekg.tasks.Classification(output=0),
    )
    outputs = result.model(digits()[0])
    assert set(outputs) == {"wide", "classes"} and outputs["wide"].shape == (120, 4)
    np.testing.assert_allclose(outputs["classes"].numpy().sum(axis=1), 1, rtol=1e-5)


def test_the_arguments_of_a_run_are_plain(pruned):
    arguments = files.read_json(pruned[2] / "arguments.json")
    assert (
        arguments["task"] == "classification"
        and arguments["epochs"] == 1
        and arguments["target_rate"] == 0.7
    )
    assert json.dumps(arguments)


def test_a_network_of_images_of_any_size_stays_one():
    result = ekg.prune(network(softmax, size=None), digits(), epochs=None, target_rate=0.7, **QUICK)
    assert result.model.input_shape == (None, None, None, 1) and result.rate <= 0.7
    assert result.model(np.zeros((2, 11, 13, 1))).shape == (2, 10)


@pytest.mark.rehearsed
def test_batched_data_is_never_in_memory_as_a_whole():
    """In a process of its own: 1.2 GiB of images take no more memory than a few of them."""
    program = """
import utils, sys, numpy as np, tensorflow as tf
from ekg.process.memory import peak_memory_mib
from ekg.data.inputs import Inputs
from ekg.data.sources import find_examples
def examples(number):
    def batches():
        for first in range(0, number, 100):
            yield np.full((100, 128, 128, 3), first, np.float32), np.arange(100) % 3
    spec = tf.TensorSpec((None, 128, 128, 3)), tf.TensorSpec((None,), tf.int64)
    dataset = tf.data.Dataset.from_generator(batches, output_signature=spec)
    return find_examples(dataset, Inputs(((128, 128, 3),)))
examples(200).read(np.arange(100))
before = peak_memory_mib()
many = examples(6400)
assert many.read(np.array([6399, 0, 150]))[:, 0, 0, 0].tolist() == [6300, 0, 100]
print(peak_memory_mib() - before)
"""
    ((code, output),) = runs.finish(runs.start("-c", program, TF_CPP_MIN_LOG_LEVEL="3"))
    assert code == 0 and float(output.splitlines()[-1]) < 256, output


@pytest.mark.parametrize("verbose", [True, False])
def test_decisions_are_logged_unless_verbose_is_off(verbose, capfd):
    with pytest.raises(EkgError, match="`target_rate` 0.001 cannot be reached"):
        ekg.prune(network(softmax), digits(), target_rate=0.001, verbose=verbose)
    told = capfd.readouterr().err
    assert ("task: classification, inferred from an output of shape" in told) == verbose
    assert ("'fc' (softmax) is taken off" in told) == verbose


def test_networks_of_embedded_words_are_pruned_after_the_embedding():
    rng = np.random.default_rng(0)
    words, labels = rng.integers(0, 50, (90, 12)), np.arange(90) % 2
    model = randomise_(
        keras.Sequential(
            [
                keras.Input((12,), dtype="int32"),
                layers.Embedding(50, 8),
                layers.Conv1D(8, 3, activation="relu"),
                layers.Conv1D(8, 3, activation="relu"),
                layers.GlobalMaxPooling1D(),
                layers.Dense(2),
            ]
        )
    )
    result = ekg.prune(
        model,
        (words, labels),
        target_rate=0.7,
        epochs=1,
        verbose=False,
        bank={"num_teacher": 2},
        search={"search_step": 1.0},
    )
    assert result.rate <= 0.7 and result.model.layers[0].output_dim == 8
    assert np.isfinite(result.model.predict(words, verbose=0)).all()


def test_a_class_without_examples_is_left_out_of_the_draws():
    images, labels = digits()
    is_kept = labels != 3
    result = ekg.prune(
        network(softmax), (images[is_kept], labels[is_kept]), epochs=None, target_rate=0.7, **QUICK
    )
    assert result.rate <= 0.7 and np.isfinite(result.table[1].loss)


def test_infinite_weights_are_reported_and_not_written(tmp_path):
    images, labels = digits()
    with pytest.raises(FloatingPointError, match="not finite|non-finite"):
        ekg.prune(
            network(softmax),
            (images * 1e30, labels),
            target_rate=0.7,
            epochs=1,
            verbose=False,
            run_dir=tmp_path / "r",
        )
    assert not (tmp_path / "r" / "trained_param.pkl").exists()


@pytest.mark.parametrize(
    "exclude",
    [
        lambda model: model.get_layer("one"),
        lambda _: "^one$",
        lambda model: [lambda layer: layer is model.get_layer("one")],
    ],
)
def test_layers_of_the_users_own_network_are_excluded(exclude):
    model = network(softmax)
    result = ekg.prune(
        model, digits(), epochs=None, target_rate=0.8, exclude=exclude(model), **QUICK
    )
    assert result.model.get_layer("one").filters == 6 and result.model.get_layer("two").filters < 8


def test_a_result_is_exported_and_proved_on_training_images(pruned, tmp_path):
    _, _, _, result = pruned
    whole = result.export(tmp_path / "a.tflite")
    assert whole.examples == 256 and whole.difference < 1e-5 and whole.agreement == 1
    small = result.export(tmp_path / "small.tflite", quantize="int8")
    assert small.examples == 128 and small.agreement > 0.9 and small.difference > whole.difference


def test_latency_is_one_target_among_others_and_measuring_resumes(tmp_path, monkeypatch):
    clock = install(monkeypatch)
    arguments = {
        **QUICK,
        "epochs": None,
        "run_dir": tmp_path / "run",
        "target": {"latency": ekg.Latency(ratio=0.8)},
        "run": {"runtimes": ()},
    }  # TensorFlow's time would be real
    model, data = network(softmax), digits()
    result = ekg.prune(model, data, **arguments)
    supernet = ekg.Supernet(network(lambda x: layers.Dense(10, name="fc")(x)))
    shares = [
        seconds_of(supernet.cut(entry.subnetwork)) / seconds_of(supernet.model)
        for entry in result.history
    ]
    assert shares[-1] <= 0.8 < min(shares[:-1])
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "slimmed_param.pkl").unlink()
    loads = clock.loads
    again = ekg.prune(model, data, **arguments)
    assert (
        again.history == result.history and clock.loads - loads < 10
    )  # no kernel is measured again
    result.report(tmp_path / "report")
    assert "litert, batch 1, 1 thread" in (tmp_path / "report" / "report.html").read_text()


def test_the_preferred_multiple_of_a_runtime_is_measured_once(tmp_path, monkeypatch):
    answers = [4, 2]
    monkeypatch.setattr(sys.modules["ekg.pruning"], "find_multiple", lambda *_: answers.pop(0))
    arguments = {
        **QUICK,
        "epochs": None,
        "run_dir": tmp_path / "run",
        "target_rate": 0.7,
        "multiple_of": "auto",
    }
    results = [ekg.prune(network(softmax), digits(), **arguments) for _ in range(2)]
    assert answers == [2] and results[0].subnetwork == results[1].subnetwork
    assert all(
        count % 4 == 0 or count == len(order)
        for count, order in zip(results[0].subnetwork.kept_counts, results[0].subnetwork.order)
    )
