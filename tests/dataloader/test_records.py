"""Records that tensorflow-datasets prepared from pictures made here."""

import builtins

import numpy as np
import pytest
import tensorflow as tf

import dataloader
from dataloader import photographs
from ekg.errors import EkgError

tfds = pytest.importorskip(
    "tensorflow_datasets", reason="tensorflow-datasets is a development dependency"
)
NAMES = ("n01440764", "n02101006")


def picture(number):
    """A picture whose grey level tells its number."""
    return np.full((240, 320, 3), 10 * number + 5, np.uint8)


class Pictures(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=NAMES),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {
            "train": self._generate_examples(range(8)),
            "validation": self._generate_examples(range(8, 12)),
        }

    def _generate_examples(self, numbers):
        for number in numbers:
            yield number, {"image": picture(number), "label": number % 2}


def prepare(folder, file_format):
    builder = Pictures(data_dir=folder, file_format=file_format)
    builder.download_and_prepare()
    return builder.data_dir


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("records"), "array_record")


def numbers_of(images):
    return [round((float(image.mean()) - 5) / 10) for image in images]


def test_records_hold_their_images_and_labels(prepared):
    data = dataloader.load("ILSVRC2012", prepared)
    assert data.num_classes == 2 and len(data.train) == 8 and len(data.test) == 4
    for split, numbers in ((data.train, range(8)), (data.test, range(8, 12))):
        pictured = numbers_of(split.read(np.arange(len(split))))
        assert sorted(pictured) == list(numbers) and list(split.labels) == [
            number % 2 for number in pictured
        ]
    for batch in data.epoch(4, seed=0, epoch=0, num_views=2):
        assert [number % 2 for number in numbers_of(batch["images"])] == list(batch["labels"])
    assert {
        number % 2 for number in numbers_of(data.last_of_each_class(1, 0).in_memory().images)
    } == {0, 1}


def test_a_damaged_record_is_named(prepared, monkeypatch):
    data = dataloader.load("ILSVRC2012", prepared)
    whole = data.train.source[3]["image"]
    assert tf.io.is_jpeg(whole)
    monkeypatch.setattr(
        photographs.tf.io, "decode_image", lambda *_, **__: tf.io.decode_png(b"no picture")
    )
    with pytest.raises(EkgError, match=r"train, record \d: cannot be read as an image"):
        data.train.read([0])


def test_records_that_cannot_be_read_in_any_order_are_refused(tmp_path):
    with pytest.raises(
        EkgError, match="in the array_record format, with the splits train and validation"
    ):
        dataloader.load("ILSVRC2012", prepare(tmp_path, "tfrecord"))


def test_the_missing_package_is_named(prepared, monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **options):
        if name == "tensorflow_datasets":
            raise ImportError(name=name)
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(EkgError, match="install tensorflow-datasets with pip"):
        dataloader.load("ILSVRC2012", prepared)
