"""The promise for the networks of keras.applications that have few layers;
test_applications_deep.py has the others.
"""

import keras
import pytest

from tests.helpers.networks import check_application


@pytest.fixture(autouse=True)
def memory():
    yield
    keras.backend.clear_session()


@pytest.mark.parametrize(
    "name",
    [
        "VGG16",
        "ResNet50",
        "ResNet50V2",
        "MobileNet",
        "MobileNetV2",
        "MobileNetV3Small",
        "MobileNetV3Large",
        "EfficientNetB0",
        "EfficientNetV2B0",
        "Xception",
        "ConvNeXtTiny",
    ],
)
def test_every_application_keeps_the_promise(name):
    check_application(name)


def test_one_filter_per_layer_is_over_a_hundredth_of_a_narrow_network():
    supernet = check_application("MobileNetV2", 0.012, model={"alpha": 0.35})
    cut = supernet.cut(supernet.smallest())
    assert {layer.filters for layer in cut.layers if type(layer) is keras.layers.Conv2D} == {1}
