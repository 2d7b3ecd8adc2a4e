"""No operation of a job lacks a deterministic kernel on GPUs, as every graph that is made shows, on
a CPU, too.

The list is of TensorFlow 2.21: its library holds the text of each such error ("... deterministic
... is not currently available", "Determinism is not yet supported in ..."). Sums over segments, and
so the gradient of an embedding, have deterministic kernels by now; the gradient of a depthwise
kernel has one in cuDNN.
"""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from tensorflow.python.framework import op_callbacks

import ekg
from ekg.data.dataset import TrainingBatches
from ekg.devices import kind
from ekg.devices.compute import in_graph
from ekg.distil import losses
from ekg.distil.bank import build_bank
from ekg.graph.execute import pure_forward, read_variables
from ekg.run import phases
from ekg.searching import criteria
from ekg.searching.history import HistoryEntry
from ekg.train.batch_norm_statistics import estimate_statistics_
from ekg.train.step import StepOptions, Trainer
from tests.helpers.comparisons import make_objective, mirrored
from tests.helpers.digits import QUICK, digits
from tests.helpers.models import conv_bn, make_tiny_resnet, randomise_

WITHOUT_KERNEL = {
    "AdjustContrast",
    "AdjustContrastv2",
    "Bincount",
    "CropAndResizeGradBoxes",
    "CropAndResizeGradImage",
    "DenseBincount",
    "Dilation2DBackpropFilter",
    "Dilation2DBackpropInput",
    "FakeQuantWithMinMaxVarsGradient",
    "FakeQuantWithMinMaxVarsPerChannelGradient",
    "MaxPoolGradWithArgmax",
    "ResizeNearestNeighborGrad",
    "ScatterAdd",
    "ScatterSub",
    "ScatterUpdate",
    "SoftmaxCrossEntropyWithLogits",
    "SparseSoftmaxCrossEntropyWithLogits",
    "SparseTensorDenseMatMul",
}
OF_GIVEN_STATISTICS = {
    "FusedBatchNormGrad",
    "FusedBatchNormGradV2",
    "FusedBatchNormGradV3",
}  # where is_training is False


@pytest.fixture
def as_with_a_gpu(monkeypatch):
    """Decisions of what is computed are those of a machine with a GPU; the devices are those that
    are there.
    """
    monkeypatch.setattr(kind, "has_all_gradients", lambda: False)
    monkeypatch.setattr(kind, "tiles_norms", lambda: False)


@contextlib.contextmanager
def operations():
    """Gives the set of the names of all operations that are run or put into graphs by this thread
    in the meantime.
    """
    seen = set()

    def note(op_type, inputs, attrs, outputs, op_name=None, graph=None):
        name = op_type.decode() if isinstance(op_type, bytes) else op_type
        named = dict(zip(attrs[::2], attrs[1::2])) if attrs else {}
        is_training = named.get("is_training", named.get(b"is_training"))
        is_training = is_training.b if hasattr(is_training, "b") else is_training
        seen.add(
            f"{name} of given statistics"
            if name in OF_GIVEN_STATISTICS and not is_training
            else name
        )

    op_callbacks.add_op_callback(note)
    try:
        yield seen
    finally:
        op_callbacks.remove_op_callback(note)


def lacking(seen):
    return sorted(
        name for name in seen if name in WITHOUT_KERNEL or name.endswith("of given statistics")
    )


def gradient(model, x):
    """Returns the gradients of a model in training by its inputs and weights, as the training step
    computes them.
    """
    forward, variables = pure_forward(model), read_variables(model)

    def step(trainable, non_trainable, x):
        with tf.GradientTape() as tape:
            tape.watch([trainable, x])
            y = forward(trainable, non_trainable, x, True)[0]
            loss = tf.reduce_sum(
                y * tf.reshape(tf.sin(tf.range(tf.size(y), dtype=y.dtype)), tf.shape(y))
            )
        return tape.gradient(loss, [x, trainable], unconnected_gradients="zero")

    return tf.nest.flatten(in_graph(step)(*variables, x))


def images(*size, channels=4):
    return tf.constant(np.random.default_rng(0).normal(size=(2, *size, channels)), tf.float32)


def of(layer, shape=(8, 8, 4)):
    inputs = keras.Input(shape)
    return randomise_(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layer(inputs)))))


def frozen(x):
    norm = layers.BatchNormalization()
    norm.trainable = False
    return norm(layers.Conv2D(5, 3, padding="same")(x))


RESIZINGS = {
    "nearest up": layers.Resizing(13, 11, interpolation="nearest"),
    "nearest down": layers.Resizing(3, 5, "nearest"),
    "nearest padded": layers.Resizing(16, 8, "nearest", pad_to_aspect_ratio=True),
    "nearest cropped": layers.Resizing(16, 8, "nearest", crop_to_aspect_ratio=True),
    "nearest by an operation": lambda x: ops.image.resize(x, (5, 12), interpolation="nearest"),
    "same size": layers.Resizing(8, 8, "nearest"),
}
KINDS = {
    "frozen norm": frozen,
    "depthwise": layers.DepthwiseConv2D(3),
    "grouped": layers.Conv2D(6, 3, groups=2),
    "separable": layers.SeparableConv2D(5, 3),
    "transposed": layers.Conv2DTranspose(5, 3, strides=2),
    "nearest by repetition": layers.UpSampling2D(2),
    "bilinear": layers.UpSampling2D(2, interpolation="bilinear"),
    "bicubic": layers.Resizing(5, 5, interpolation="bicubic"),
    "greatest": layers.MaxPooling2D(3, 2),
    "mean": layers.AveragePooling2D(2),
    "dropout": layers.SpatialDropout2D(0.5),
    "layer norm": layers.LayerNormalization(),
    "group norm": layers.GroupNormalization(2),
    "attention": lambda x: layers.MultiHeadAttention(2, 3)(
        layers.Reshape((64, 4))(x), layers.Reshape((64, 4))(x)
    ),
    **RESIZINGS,
}


@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_layers_have_kernels(as_with_a_gpu, name):
    keras.utils.set_random_seed(0)
    with operations() as seen:
        gradient(of(KINDS[name]), images(8, 8))
    assert not lacking(seen) and len(seen) > 5


def test_gradients_of_three_axes_and_of_embeddings_have_kernels(as_with_a_gpu):
    words = keras.Input((6,), dtype="int32")
    embedded = keras.Model(words, layers.Dense(3)(layers.Flatten()(layers.Embedding(9, 4)(words))))
    deep = of(layers.MaxPooling3D(2), (4, 4, 4, 2)), of(layers.Conv3DTranspose(3, 2), (4, 4, 4, 2))
    forward, variables = pure_forward(embedded), read_variables(embedded)

    def step(trainable, non_trainable, x):
        with tf.GradientTape() as tape:
            tape.watch(trainable)
            loss = tf.reduce_sum(forward(trainable, non_trainable, x, True)[0])
        return list(map(tf.convert_to_tensor, tape.gradient(loss, trainable)))

    with operations() as seen:
        in_graph(step)(*variables, tf.zeros((2, 6), tf.int32))
        for model in deep:
            gradient(model, images(4, 4, 4, channels=2))
    assert not lacking(seen) and "UnsortedSegmentSum" in seen


@pytest.mark.parametrize("name", ["frozen norm", *RESIZINGS])
def test_the_forms_that_have_kernels_give_the_same_gradients(name, monkeypatch):
    keras.utils.set_random_seed(0)
    model = of(KINDS[name])
    with operations() as seen:
        expected = gradient(model, images(8, 8))
    assert lacking(seen)  # so the plain form has none: the test would notice it
    monkeypatch.setattr(kind, "has_all_gradients", lambda: False)
    for ours, theirs in zip(gradient(model, images(8, 8)), expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


class Rehearsed(Exception):
    """Ends a job after its preflight."""


def network():
    """A network whose training needs most kinds of kernels, with a norm that is frozen."""
    inputs = keras.Input((8, 8, 1))
    x = conv_bn(layers.Resizing(10, 10, "nearest")(conv_bn(inputs, 6, "one")), 8, "two", strides=2)
    x = layers.ReLU()(
        layers.BatchNormalization(name="norm")(layers.DepthwiseConv2D(3, padding="same")(x))
    )
    x = layers.GlobalAveragePooling2D()(layers.MaxPooling2D(2)(layers.Dropout(0.1)(x)))
    model = randomise_(
        keras.Model(inputs, layers.Dense(10, activation="softmax", name="fc")(x), name="own")
    )
    model.get_layer("norm").trainable = False
    return model


@pytest.mark.parametrize(
    ("run", "tuning", "search"),
    [
        ({"accum": 2}, {"finetune_teacher": "single"}, {"log_condition": True}),
        (
            {"precision": "bfloat16"},
            {"finetune_teacher": "ensemble", "label_smoothing": 0.1},
            {"search_teacher": "single"},
        ),
    ],
)
@pytest.mark.rehearsed
def test_every_phase_has_kernels(as_with_a_gpu, monkeypatch, run, tuning, search):
    """One step of the epoch before the search, importance, candidates, landscape, training,
    evaluation: the preflight.
    """

    def stop(*_):
        raise Rehearsed

    monkeypatch.setattr(phases, "warm_up", stop)
    options = {**QUICK, "search": QUICK["search"] | search}
    with operations() as seen, pytest.raises(Rehearsed):
        ekg.prune(
            network(),
            digits(),
            epochs=1,
            target_rate=0.7,
            fine_tune=tuning,
            run=run,
            augment="flip_crop",
            **options,
        )
    assert (
        not lacking(seen)
        and {"FusedBatchNormGradV3", "DepthwiseConv2dNativeBackpropFilter", "MaxPoolGrad"} <= seen
    )


def test_every_criterion_has_kernels(as_with_a_gpu, tiny_data):
    objective = make_objective(make_tiny_resnet(), tiny_data)
    with operations() as seen:
        objective.add_knowledge(objective.supernet.whole())
        for name in criteria.CRITERIA:
            criteria.score_channels(
                name, criteria.CriterionContext(objective, objective.supernet.whole(), 0)
            )
    assert not lacking(seen) and "Conv2DBackpropInput" in seen


def test_synchronised_norms_and_the_memory_bank_have_kernels(as_with_a_gpu, tiny_data, tmp_path):
    """Norms of two replicas together, one of them frozen; then what only runs forward."""
    with mirrored(2).scope():
        model = make_tiny_resnet()
        model.get_layer("a1_bn").trainable = False
        trainer = Trainer(
            mirrored(2),
            model,
            losses.fine_tuning(tiny_data, "none", 4.0),
            weight_decay=1e-3,
            options=StepOptions(sync_norms=True),
        )
    batch = next(TrainingBatches(tiny_data, 8, 0, num_views=2).epoch(0))
    supernet = ekg.Supernet(make_tiny_resnet())
    teachers = [HistoryEntry(0, None, supernet.whole(), 1.0, 0.1, 0.5, 0.0, 1, 0.0)]
    batches = tiny_data.batches(tiny_data.train, 32)
    with operations() as training:
        assert np.isfinite(float(trainer.step(batch, 0.01)["loss"]))
    with operations() as forward:
        build_bank(tmp_path / "bank", supernet, teachers, batches)
        estimate_statistics_(supernet.model, batches)
    assert not lacking(training) and "Conv2DBackpropFilter" in training
    assert not lacking(forward) and "Conv2D" in forward
