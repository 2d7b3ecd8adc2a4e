"""A trained ResNet-56 on real CIFAR-10 images, where the checkout has the project's development
data beside it.
"""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import ekg
import nets
import utils
from dataloader import cifar
from ekg.data import augment
from tests.helpers.comparisons import random_subnetwork, relative_difference

DATA = Path(__file__).parents[2] / "shared" / "data"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_CLASS = 30

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no development data in {DATA}")


@pytest.fixture(scope="module")
def pictures():
    """(uint8 images, labels) of the first test images of every class in the archive."""
    images, labels = [], []
    with tarfile.open(DATA / "cifar10_jpeg.tar.xz") as archive:
        for member in archive:
            split, name = member.name.split("/")[:2] if "/" in member.name else ("", "")
            if (
                member.isfile()
                and split == "test"
                and labels.count(CLASSES.index(name)) < PER_CLASS
            ):
                images.append(
                    tf.io.decode_jpeg(archive.extractfile(member).read(), channels=3).numpy()
                )
                labels.append(CLASSES.index(name))
                if len(labels) == PER_CLASS * len(CLASSES):
                    break
    return np.stack(images), np.array(labels)


@pytest.fixture(scope="module")
def model():
    file = DATA / "res56_cifar10_jpeg.pkl"
    return nets.from_params("ResNet-56", utils.load_params(file), 10, file)


def normalised(images):
    return augment.normalise(images, cifar.SOURCES["CIFAR10"].mean, cifar.SOURCES["CIFAR10"].std)


def test_a_published_file_is_read_with_its_metadata():
    params = utils.load_params(DATA / "res56_cifar10_published.pkl")
    assert len(params) == 287 and nets.from_params("ResNet-56", params, 10).name == "ResNet-56"


def test_the_trained_network_knows_real_images(model, pictures):
    """90.3 % on the whole test set; wrong names, padding or normalisation leave far less than 84 %
    of 300 images.
    """
    images, labels = pictures
    assert (model(normalised(images)).numpy().argmax(axis=1) == labels).mean() > 0.84


def test_masked_and_cut_agree_on_real_weights(model, pictures):
    supernet, images = ekg.Supernet(model), normalised(pictures[0][:32])
    for seed in range(2):
        subnetwork = random_subnetwork(supernet, seed)
        cut = supernet.cut(subnetwork)
        for training in (False, True):
            masked = supernet.logits(images, subnetwork, training=training)
            assert relative_difference(cut(images, training=training), masked) < 1e-4
