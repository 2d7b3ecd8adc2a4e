"""The promise for the networks of keras.applications that have hundreds of layers, as in
test_applications.py.
"""

import keras
import pytest

from tests.helpers.networks import check_application, smooth_images


@pytest.fixture(autouse=True)
def memory():
    yield
    keras.backend.clear_session()


@pytest.mark.parametrize("name", ["DenseNet121", "InceptionResNetV2", "NASNetMobile"])
def test_every_deep_application_keeps_the_promise(name):
    check_application(name)


def test_inception_keeps_the_promise():
    # Its norms enlarge a change of the images by 1e-6 to 3e-4 of the logits; less in this
    # sub-network, on these images.
    check_application("InceptionV3", seed=3, inputs=smooth_images())
