"""What an exported network is held against: each channel's own range, and the task's metric where
there are labels.
"""

import os

import keras
import numpy as np
import pytest
from keras import layers

import ekg
from ekg.data.own import make_data
from ekg.deploy import proof
from ekg.deploy.accuracy import measure_exported
from ekg.deploy.format import Reader
from ekg.deploy.packages import quiet
from ekg.errors import EkgError
from ekg.pruning import PruneResult
from ekg.tasks.kinds import Classification, MultiLabel
from tests.helpers.models import randomise_

IMAGES = np.random.default_rng(0).normal(size=(256, 8, 8, 3)).astype(np.float32)


def pooled(x):
    return layers.GlobalAveragePooling2D()(layers.Conv2D(16, 3, activation="relu")(x))


# ------------------------------------------ each channel against its own range


def test_scales_equal_hand_computed_ones():
    output = np.array(
        [[0.0, 100.0, 3.0, 0.0], [1.0, 300.0, 3.0, 0.0], [0.5, 200.0, 3.0, 0.0]], np.float32
    )
    np.testing.assert_allclose(
        proof.scales_of(output, 1, "int8"), [1, 200, 3, 300]
    )  # of all zeros: the greatest of all
    np.testing.assert_allclose(
        proof.scales_of(output, 1, None), [3, 200, 3, 300]
    )  # .01 of the greatest at least
    np.testing.assert_allclose(proof.scales_of(output, 1, "int8", shares_one_scale=True), 300)
    np.testing.assert_allclose(proof.scales_of(output, None, "int8"), [300])
    maps = np.zeros((1, 2, 5, 5), np.float32)
    maps[0, 1, 2, 3] = 7
    np.testing.assert_allclose(proof.scales_of(maps, 1, "int8"), [7, 7])


def test_the_channel_with_the_largest_difference_is_named():
    ours = [
        np.array([[0.0, 1.0], [2.0, 0.0]], np.float32),
        np.array([[0.0, 100.0], [1.0, 300.0]], np.float32),
    ]
    theirs = [ours[0] + np.float32(0.1), ours[1] + np.array([[0.0, 2.0], [0.5, 0.0]], np.float32)]
    found = proof.compare(ours, theirs, [1, 1], "int8")
    assert found.worst() == (pytest.approx(0.5), 1, 0) and found.worst([0]) == (
        pytest.approx(0.1),
        0,
        1,
    )
    assert found.difference == 2 and found.largest == 300 and found.agreement == 1
    with pytest.raises(
        EkgError, match=r"differs by 0.5 in channel 0 of output 'b', whose range is 1; 0.3 of it"
    ):
        proof.check(found, "a.tflite", ["a", "b"], "int8")
    proof.check(found, "a.tflite", ["a", "b"], "int8", tolerance=0.6)
    theirs[0][0, 0] = np.nan
    with pytest.raises(EkgError, match="differs by inf in channel 0 of output 'a'"):
        proof.check(
            proof.compare(ours, theirs, [1, 1], "int8"),
            "a.tflite",
            ["a", "b"],
            "int8",
            tolerance=0.6,
        )


def boxes_and_classes(x):
    x = pooled(x)
    return layers.Concatenate()(
        [layers.Rescaling(1000.0)(layers.Dense(4)(x)), layers.Dense(3, activation="softmax")(x)]
    )


def depth_and_mask(x):
    x = layers.Conv2D(8, 3, activation="relu")(x)
    return layers.Concatenate()(
        [
            layers.Rescaling(500.0)(layers.Conv2D(1, 1)(x)),
            layers.Conv2D(1, 1, activation="sigmoid")(x),
        ]
    )


@pytest.mark.parametrize("make", [boxes_and_classes, depth_and_mask])
def test_small_outputs_beside_large_ones_are_not_lost_in_int8(tmp_path, make):
    entry = keras.Input((8, 8, 3))
    model = randomise_(keras.Model(entry, make(entry)))
    with pytest.raises(
        EkgError, match="differs by .* in channel .* of output 'output_0', whose range is"
    ):
        ekg.export(model, tmp_path / "a.tflite", quantize="int8", examples=IMAGES)
    result = ekg.export(model, tmp_path / "a.tflite", examples=IMAGES)
    assert (
        result.share < 1e-4
        and result.channel[0] == "output_0"
        and "of a channel's range" in str(result)
    )


# ---------------------------------------------------------------- the task's metric


def logits_and_wrong(share, number=200, classes=10):
    """Returns (labels, logits that are all right, logits of which a share is wrong), all as far
    apart.
    """
    labels = np.arange(number) % classes
    right = np.eye(classes, dtype=np.float32)[labels]
    wrong = right.copy()
    places = np.arange(int(share * number))
    wrong[places] = np.roll(wrong[places], 1, axis=1)
    return labels, right, wrong


@pytest.mark.parametrize(("share", "is_kept"), [(0.0, True), (0.02, True), (0.15, False)])
def test_the_share_of_right_answers_decides_where_there_are_labels(share, is_kept):
    labels, right, wrong = logits_and_wrong(share)
    found = proof.compare(
        [right], [wrong], [1], "int8", labels=proof.Labels(Classification(), labels)
    )
    assert found.metrics["top1"] == (1.0, pytest.approx(1 - share)) and found.losses["top1"][
        0
    ] == pytest.approx(share)
    if is_kept:
        proof.check(found, "a", ["y"], "int8", decided=(0,))
    else:
        with pytest.raises(
            EkgError,
            match="has top-1 % 85.00 where the one in memory has 100.00, on 200 examples; 2.00",
        ):
            proof.check(found, "a", ["y"], "int8", decided=(0,))
    # a channel changed by its whole range, which counts in float32, and where a tolerance is named
    if share:
        for options in ({"quantize": None}, {"quantize": "int8", "tolerance": 0.3}):
            with pytest.raises(EkgError, match="in channel 0 of output 'y'"):
                proof.check(
                    found, "a", ["y"], options["quantize"], options.get("tolerance"), decided=(0,)
                )


def test_outputs_without_labels_are_compared_to_their_ranges():
    labels, right, _ = logits_and_wrong(0)
    boxes = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    found = proof.compare(
        [right, boxes],
        [right, np.roll(boxes, 1, axis=0)],
        [1, 1],
        "int8",
        labels=proof.Labels(Classification(), labels),
    )
    with pytest.raises(EkgError, match="of output 'boxes'"):
        proof.check(found, "a", ["y", "boxes"], "int8", decided=(0,))


def test_the_metric_of_an_int8_file_is_computed_in_its_own_runtime(tmp_path):
    entry = keras.Input((8, 8, 3))
    model = randomise_(keras.Model(entry, layers.Dense(10, activation="softmax")(pooled(entry))))
    labels = model.predict(IMAGES, verbose=0).argmax(-1)
    result = ekg.export(
        model, tmp_path / "a.tflite", quantize="int8", examples=IMAGES, labels=labels
    )
    theirs = result.reader.run([IMAGES[128:]])[0].argmax(-1)
    assert result.metrics["top1"] == (1.0, pytest.approx((theirs == labels[128:]).mean()))
    with pytest.raises(EkgError, match="`labels` have no effect here"):
        ekg.export(model, tmp_path / "b.tflite", labels=labels)


class Given(Reader):
    def __init__(self, outputs):
        self.outputs = outputs

    def run(self, arrays):
        return [self.outputs[: len(arrays[0])]]


def test_a_binary_probability_counts_as_yes_from_one_half():
    """By hand: of the labels 1 0 / 1 1 the probabilities .6 .4 / .2 .9 get three right."""
    entry = keras.Input((3,))
    data = make_data(
        keras.Model(entry, layers.Dense(2, activation="sigmoid")(entry)),
        (np.zeros((2, 3), np.float32), np.array([[1, 0], [1, 1]])),
        task="multi_label",
    )
    reader = Given(np.array([[0.6, 0.4], [0.2, 0.9]], np.float32))
    assert measure_exported(reader, data.batches(data.train, 1), {0: "sigmoid"}) == {
        "accuracy": 0.75
    }
    measured = proof.Labels(MultiLabel(), data.train.labels, {0: "sigmoid"}).measure(
        [reader.outputs]
    )
    np.testing.assert_allclose(measured["accuracy"], [1, 0.5])


@pytest.mark.parametrize("classes", [2, 9, 10])
def test_top_5_is_reported_from_ten_classes(classes):
    outputs = np.eye(classes, dtype=np.float32)[[0, 1]]
    measured = proof.Labels(Classification(), np.array([0, 0])).measure([outputs])
    assert measured["top1"].tolist() == [1, 0] and ("top5" in measured) == (classes == 10)


# ------------------------------------------ result.export, and converters' words


def test_a_result_is_exported_with_given_examples(tmp_path):
    entry = keras.Input((8, 8, 3))
    model = randomise_(keras.Model(entry, layers.Dense(3)(pooled(entry))))
    labels = model.predict(IMAGES, verbose=0).argmax(-1)
    data = make_data(model, (IMAGES[:100], labels[:100]))
    result = PruneResult(model, None, (), [], "", "", None, False, data)
    assert result.export(tmp_path / "a.onnx").metrics == {
        "top1": (1.0, 1.0)
    }  # training images and their labels
    given = result.export(tmp_path / "b.onnx", examples=IMAGES[:70], labels=1 - labels[:70] % 2)
    expected = (1 - labels[:70] % 2 == labels[:70]).mean()
    assert given.examples == 70 and given.metrics["top1"] == pytest.approx((expected, expected))
    assert result.export(tmp_path / "c.onnx", examples=IMAGES[:80]).metrics == {}


def test_converters_are_silent_unless_they_fail(capfd):
    with quiet():
        os.write(2, b"a line of the converter\n")
        os.write(1, b"another\n")
    assert capfd.readouterr() == ("", "")
    with pytest.raises(RuntimeError), quiet():
        os.write(2, b"why it failed\n")
        raise RuntimeError
    assert capfd.readouterr() == ("", "why it failed\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
