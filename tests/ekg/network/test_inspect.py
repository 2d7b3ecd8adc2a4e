import json

import keras
import pytest
from keras import layers

import ekg
from ekg.errors import EkgError
from tests.helpers.digits import digits, network, softmax
from tests.helpers.models import conv_bn


def test_an_inspection_reports_the_share_of_each_group(tiny_resnet):
    report, supernet = ekg.inspect(tiny_resnet), ekg.Supernet(tiny_resnet)
    whole = supernet.complexity(supernet.whole())
    for group in report.groups:
        cost = supernet.complexity(supernet.whole().with_widths({group.name: 0.0}))
        assert group.flops == pytest.approx(1 - cost.flops / whole.flops)
        assert group.params == pytest.approx(1 - cost.params / whole.params)
    assert report.smallest_rate == supernet.rate(supernet.smallest()) and report.complexity == whole
    assert report.closed == {"fc": "output of the network"}
    assert json.loads(json.dumps(report.to_json()))["groups"][0]["layers"] == ["stem", "a2"]
    assert "stem                  6      1" in str(report) and "fc  output of the network" in str(
        report
    )


def test_an_inspection_names_the_reason_that_closes_each_layer():
    inputs = keras.Input((8, 8, 3))
    x = conv_bn(conv_bn(conv_bn(inputs, 4, "free"), 5, "read"), 6, "kept")
    x = layers.Lambda(lambda x: x + 1, name="own")(x)
    model = keras.Model(inputs, layers.Dense(3, name="fc")(layers.GlobalAveragePooling2D()(x)))
    report = ekg.inspect(model, exclude="^read$")
    assert report.closed == {
        "read": "'read' is excluded",
        "kept": "read by 'own' (Lambda)",
        "fc": "output of the network",
    }


def test_a_network_that_cannot_be_pruned_is_still_inspected():
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    report = ekg.inspect(keras.Model(inputs, x + inputs, name="flat"))
    assert (
        report.groups == ()
        and report.smallest_rate == 1
        and "Nothing can be pruned." in str(report)
    )
    assert report.closed == {"conv": "input of the network"}
    assert report.complexity == ekg.Complexity(9 * 16 + 4, 64 * 9 * 16)


def test_uncounted_layers_are_named(caplog):
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(conv_bn(inputs, 4, "conv"))
    x = layers.SpectralNormalization(layers.Dense(3), name="unknown")(x)
    x = layers.Dense(3, name="fc")(layers.Dense(8, activation="relu", name="hidden")(x))
    report = ekg.inspect(keras.Model(inputs, x))
    assert report.uncounted == ("'unknown' (SpectralNormalization)",) and "are not counted" in str(
        report
    )


@pytest.mark.parametrize("layer", [layers.ReLU, layers.Flatten])
def test_a_network_without_flops_is_still_inspected(layer):
    inputs = keras.Input((8, 8, 3))
    report = ekg.inspect(keras.Model(inputs, layer()(inputs), name="bare"))
    assert report.complexity == ekg.Complexity(0, 0) and "Nothing can be pruned." in str(report)


def test_an_inspection_with_data_says_which_groups_can_give(tmp_path):
    model, data = network(softmax), digits()
    report = ekg.inspect(model, data, shares=(0.5,), search={"val_per_class": 4})
    names = [group.name for group in report.groups]
    assert [group.name for group in report.sensitivity.groups] == names
    assert "with one group narrowed" in str(report) and str(ekg.inspect(model)) in str(report)
    report.draw(tmp_path / "sensitivity.png")
    assert (tmp_path / "sensitivity.png").stat().st_size > 1000


def test_an_inspection_without_data_has_no_picture():
    model = network(softmax)
    with pytest.raises(EkgError, match="give `data`"):
        ekg.inspect(model).draw("sensitivity.png")
    with pytest.raises(EkgError, match="`search` has no effect"):
        ekg.inspect(model, search={"val_per_class": 4})
