import sys

import numpy as np
import pytest

from ekg.data import images as own
from ekg.data.inputs import Inputs
from ekg.data.sources import find_examples
from ekg.errors import EkgError

tfds = pytest.importorskip(
    "tensorflow_datasets", reason="tensorflow-datasets is a development dependency"
)


class Shades(tfds.core.GeneratorBasedBuilder):
    """Pictures whose grey level tells their number."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, _):
        return {
            "train": self._generate_examples(range(12)),
            "test": self._generate_examples(range(12, 20)),
        }

    def _generate_examples(self, numbers):
        for number in numbers:
            yield (
                number,
                {
                    "image": np.full((24 + number, 30, 3), 10 * number, np.uint8),
                    "label": number % 2,
                },
            )


def test_a_prepared_data_set_is_read_by_name_resized_and_rescaled(tmp_path, monkeypatch):
    Shades(data_dir=tmp_path).download_and_prepare()
    monkeypatch.setattr(
        tfds,
        "load",
        lambda *args, load=tfds.load, **options: load(*args, data_dir=tmp_path, **options),
    )
    for split, numbers in (("train", range(12)), ("test", range(12, 20))):
        data, classes = own.load("tfds:shades", (8, 8, 3), (-1, 1), split)
        examples = find_examples(data, Inputs(((8, 8, 3),)))
        images = examples.read(np.arange(len(examples.labels)))
        shades = np.round((images.mean(axis=(1, 2, 3)) + 1) * 127.5 / 10).astype(int)
        assert sorted(shades) == list(numbers) and classes is None and images.shape[1:] == (8, 8, 3)
        assert (shades % 2 == examples.labels).all()


def test_a_missing_data_set_or_package_is_named(monkeypatch):
    with pytest.raises(EkgError, match="tfds:nothing_of_this_name: cannot be loaded"):
        own.load("tfds:nothing_of_this_name", (8, 8, 3))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        EkgError, match="tfds:mnist needs the package tensorflow_datasets; install it"
    ):
        own.load("tfds:mnist", (8, 8, 3))
