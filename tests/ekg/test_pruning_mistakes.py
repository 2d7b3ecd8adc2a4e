"""Every mistake with networks, data, labels, tasks and settings is one line before the first
phase.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ekg
from ekg.errors import EkgError
from ekg.run import run as running
from tests.helpers.digits import Sequence, digits, network, softmax

IMAGES, LABELS = digits(60)


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    def run(*_):
        raise AssertionError("the work began")

    monkeypatch.setattr(running, "run_job", run)


def refused(message, data=(IMAGES, LABELS), model=None, **options):
    with pytest.raises(EkgError, match=message) as error:
        ekg.prune(network(softmax) if model is None else model, data, verbose=False, **options)
    assert "\n" not in str(error.value)


def dataset(images=IMAGES, labels=LABELS):
    return tf.data.Dataset.from_tensor_slices((images, labels))


class Noisy(Sequence):
    """Changes its images each time."""

    def __getitem__(self, number):
        images, labels = super().__getitem__(number)
        return images + np.random.default_rng().normal(size=images.shape), labels


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            object(),
            "`data` must be a pair .images, labels. of arrays.*received an object of type object",
        ),
        ((IMAGES, LABELS, LABELS, LABELS), "received a tuple of 4 entries"),
        (None, "received an object of type NoneType"),
        (
            (IMAGES, LABELS[:-1]),
            "images of shape .60, 8, 8, 1. and labels of shape .59,.; give as many labels as "
            "images",
        ),
        ((IMAGES[:0], LABELS[:0]), "`data` holds no examples"),
        ((IMAGES[:, :7], LABELS), "examples of shape .7, 8, 1., and the network takes .8, 8, 1."),
        ((np.repeat(IMAGES, 3, axis=-1), LABELS), "examples of shape .8, 8, 3."),
        (
            (IMAGES.astype(str), LABELS),
            "`data` holds strings; let the layer that makes numbers of them",
        ),
        (
            (IMAGES.astype(str).astype(object), LABELS),
            "such as TextVectorization, work on the data first",
        ),
        (([[1, 2], [3]], LABELS[:2]), "`data` cannot be taken as an array"),
        (
            ({"a": IMAGES, "b": IMAGES}, LABELS),
            "`data` has 2 inputs .* per example, and the network takes one",
        ),
        (
            (IMAGES, {"a": LABELS, "b": LABELS}),
            "`data`: `model` 'own' has no output 'a'; it has .'fc'.",
        ),
        ((IMAGES, [LABELS, LABELS]), "`data` has 2 entries, and `model` 'own' has 1 outputs"),
        ((IMAGES, [LABELS[:-1]]), "labels of shape .59,.; give as many labels as images"),
        (
            ekg.Data(None, lambda indices: IMAGES[indices]),
            "needs labels of all its examples, or their number as `count`",
        ),
        (ekg.Data(LABELS, lambda indices: IMAGES[indices], 59), "received .59, 60."),
        ((IMAGES, LABELS.astype(str)), "labels of `data` must be numbers; received <U"),
        (
            (IMAGES, LABELS + 1),
            r"labels of `data` must be in \[0, 9\], as there are 10 classes; received 1 to 10",
        ),
        ((IMAGES, LABELS - 1), "labels of `data` must be .* received -1 to 8"),
        ((IMAGES, LABELS + 0.5), "fit no task known here; give one of"),
        ((IMAGES, LABELS.astype(np.float32) * np.nan), "fit no task known here"),
        ((IMAGES, np.zeros((60, 4))), "labels of float64 and shape .60, 4. fit no task"),
        (
            (np.where(np.arange(60)[:, None, None, None] == 7, np.nan, IMAGES), LABELS),
            "`data` holds numbers that are not finite, NaN or infinite; the first in example 7 "
            "of 60",
        ),
        (
            (
                np.where(np.arange(60)[:, None, None, None] == 7, 1e300, IMAGES.astype(float)),
                LABELS,
            ),
            "not finite, NaN or infinite; the first in example 7",
        ),  # infinite in float32, which the network reads
        (
            (tf.ragged.constant([[1.0], [2.0, 3.0]]), LABELS[:2]),
            "`data` is a RaggedTensor, which is no array; make a dense array of it",
        ),
        (
            dataset(np.where(np.arange(60)[:, None, None, None] == 7, np.inf, IMAGES)).batch(20),
            "the first in example 7 of 20",
        ),
        (dataset(), "`data` gives single examples; batch them with .batch.32."),
        (
            tf.data.Dataset.from_tensors((IMAGES, LABELS, LABELS, LABELS)),
            "`data` has batches of 4 entries; give images, .images, labels., or",
        ),
        (dataset().batch(20).repeat(), "`data` never ends; leave its repeat.. out"),
        (
            dataset().shuffle(60, seed=1).batch(20),
            "it shuffles, or changes images, by itself. Pass it unshuffled",
        ),
        (Noisy(IMAGES, LABELS), "it shuffles, or changes images, by itself"),
        (
            tf.data.Dataset.from_tensor_slices(IMAGES),
            "`data` gives single examples; batch them with .batch.32.",
        ),
        (tf.data.Dataset.from_tensors(1.0), "`data` gives single examples"),
        (dataset().filter(lambda *_: False).batch(20), "`data` holds no examples"),
        (Sequence(IMAGES.astype(str), LABELS), "`data` holds strings"),
        (Sequence([IMAGES[0], IMAGES[1, :5]], LABELS[:2]), "`data` has several arrays per example"),
        (
            ekg.Data(LABELS, lambda indices: IMAGES[:3]),
            "its `read` was asked for 4 examples and gave an array of shape .3, 8",
        ),
        (
            ekg.Data(
                LABELS, lambda indices: np.random.default_rng().normal(size=(len(indices), 8, 8, 1))
            ),
            "its `read` gives other numbers for the same examples when it is asked again",
        ),
        (ekg.Data(np.zeros(0, int), lambda indices: IMAGES[indices]), "`data` holds no examples"),
    ],
)
def test_unusable_data_is_refused_in_one_line(data, message):
    refused(message, data)


def test_a_network_with_weights_that_are_not_finite_is_refused():
    model = network(softmax)
    kernel = model.get_layer("fc").kernel
    kernel.assign(np.where(np.arange(10) == 3, np.nan, kernel))
    refused("`model` 'own': its weight 'fc/kernel' holds NaN or infinite numbers", model=model)


class Tall(ekg.Target):
    name = "height"

    def __init__(self, most):
        self.most = most

    def cost(self, supernet, subnetwork):
        return subnetwork.num_kept(0) / supernet.groups[0].size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"validation_data": (IMAGES[:, :5], LABELS)},
            "`validation_data` has examples of shape .5, 8, 1.",
        ),
        (
            {"validation_data": (IMAGES, LABELS + 5)},
            "labels of `validation_data` must be .* received 5 to 14",
        ),
        ({"task": "detection"}, "`task` must be .auto., one of .*received 'detection'"),
        (
            {"task": "regression"},
            "labels of `data` have shape .. each, and the network returns .10,.",
        ),
        (
            {"task": "multi_label"},
            "labels of `data`: the network has 10 outputs, so .examples, 10. zeros and ones",
        ),
        ({"task": "dense_classification"}, "a dense classification needs a map of logits"),
        (
            {"task": ekg.tasks.Classification(output=1)},
            "has 1 outputs, and the task means output 1",
        ),
        ({"augment": "spin"}, "`augment` must be one of .'flip', 'flip_crop'., a function"),
        (
            {"augment": lambda images, seed: images[:, :4]},
            "`augment` makes .8, 4, 8, 1. of images of shape .8, 8, 8, 1.",
        ),
        (
            {"augment": lambda images, seed: tf.reshape(images, [3])},
            "`augment` fails on images of shape",
        ),
        ({"augment": lambda images: images}, "`augment` fails on images of shape"),
        ({"target_rate": 0.0}, "`target_rate` must be in .0, 1.; received 0"),
        ({"target_rate": 0.001}, "`target_rate` 0.001 cannot be reached"),
        (
            {"target_rate": 0.5, "target": {"flops": 0.5}},
            "`target_rate` and `target` exclude each other",
        ),
        ({"target": 0.5}, "`target` must be a dict, as"),
        (
            {"target": {"latency": 0.5}},
            "`target` 'latency': there are .flops. and .params., and objects of ekg.Target",
        ),
        ({"target": {"params": 1.5}}, "`target_params` must be in .0, 1.; received 1.5"),
        (
            {"target": {"params": 0.001}},
            "`target_params` 0.001 cannot be reached: one channel in every group still leaves",
        ),
        ({"target": Tall(0.001)}, "`target` 0.001 of the height cannot be reached"),
        ({"epochs": 0}, "`epochs` must be a whole number of at least 1, or None; received 0"),
        ({"epochs": 2.5}, "`epochs` must be a whole number of at least 1, or None; received 2.5"),
        ({"run_dir": 3}, "`run_dir` must be a path; received 3"),
        ({"search_from": 3}, "`search_from` must be a path; received 3"),
        ({"strategy": "gpu"}, "`strategy` must be a tf.distribute.Strategy; received 'gpu'"),
        (
            {"search": {"depth": 3}},
            "`depth` is no setting here; there are target_rate, search_step",
        ),
        (
            {"search": {"target_rate": 0.3}},
            "`search`: the target is given as `target_rate` or `target` of its own",
        ),
        ({"search": {"search_step": 0.0}}, "`search_step` must be in .0, 1."),
        ({"search": 0.4}, "`search` must be a dict of settings"),
        ({"search": {"val_per_class": 50}}, "lower `subset_per_class` or `val_per_class`"),
        ({"search": {"search_batch_size": 500}}, "`search_batch_size` 500 is larger than the"),
        (
            {"fine_tune": {"batch_size": 100}},
            "`batch_size` 100 is larger than the 60 images to train on",
        ),
        (
            {"fine_tune": {"num_views": 2}},
            "`num_views` 2 has no effect here: the data has no random views",
        ),
        ({"fine_tune": {"num_views": 3}}, "`num_views` must be from 1 to 2; received 3"),
        ({"fine_tune": {"lr": 0.1}}, "`lr` is no setting here"),
        ({"fine_tune": {"train_epoch": 3}}, "`fine_tune`: its length is given as `epochs`"),
        (
            {"epochs": None, "fine_tune": {"learning_rate": 0.1}},
            "`learning_rate` has no effect here: `epochs` is None",
        ),
        ({"bank": {"teachers": 3}}, "`bank`: `teachers` is no setting here; there is num_teacher"),
        (
            {"bank": False, "fine_tune": {"finetune_teacher": "ensemble"}},
            "exclude each other: the bank is what it knows",
        ),
        ({"run": {"precision": "float16"}}, "`precision` float16: needs a GPU"),
        ({"run": {"seed": 3}}, "`run`: the seed is given as `seed` of its own"),
        (
            {"run": {"accum": 7}, "fine_tune": {"batch_size": 32}},
            "`batch_size` 32 must be a multiple of 7",
        ),
        ({"seed": -1}, "`seed` must be from 0 to 4294967295"),
        ({"exclude": "no such layer"}, "no such layer"),
        ({"min_channels": -1}, "`min_channels` must be whole numbers from 0 on"),
    ],
)
def test_contradictory_choices_are_refused(options, message):
    refused(message, **options)


def two_inputs():
    inputs = [keras.Input((8, 8, 1), name="left"), keras.Input((8, 8, 1), name="right")]
    x = layers.Flatten()(layers.Conv2D(3, 3)(layers.Add()(inputs)))
    return keras.Model(inputs, layers.Dense(10)(x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: "MobileNetV2", "`model` must be a keras.Model; received str"),
        (two_inputs, "`data` has one array of inputs, and the network takes the inputs .'left'"),
        (
            lambda: network(lambda x: [softmax(x), layers.Dense(3)(x)]),
            "has the labels of one output, and the network has the outputs .'fc', ",
        ),
        (lambda: keras.Sequential([layers.Conv2D(3, 3)]), "has no input shape yet"),
        (
            lambda: keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)]),
            "nothing in `model`",
        ),
    ],
)
def test_networks_that_cannot_be_pruned_are_refused_in_one_line(model, message):
    refused(message, model=model())


def test_a_run_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refused("is not empty and holds no run; name a new folder", run_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    refused("cannot be written", run_dir=tmp_path / "notes.txt")
