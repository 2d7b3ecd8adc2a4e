"""Photographs in records of tensorflow-datasets, read in any order by its own reader.

It needs the package tensorflow-datasets, and records in the array_record format, which allows
random access.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from dataloader import photographs
from ekg.errors import EkgError
from ekg.process.progress import progress_bar

INFO_FILE = "dataset_info.json"
TRAIN = "train"
TEST = "validation"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RecordSplit(photographs.FileSplit):
    """Labelled images in records; `files` are record numbers, int64 [n].

    Attributes:
        source: sequence of {"image": contents of the file, "label": class number}.
        place: name of the source in messages.
    """

    source: Any
    place: str

    def name(self, index):
        return f"{self.place}, record {self.files[index]}"

    def _make_reader(self):
        numbers = tf.constant(self.files)

        def read(index):
            contents = tf.numpy_function(
                lambda number: self.source[int(number)]["image"],
                [tf.gather(numbers, index)],
                tf.string,
                stateful=False,
            )
            return tf.ensure_shape(contents, ())

        return read


def is_prepared(folder):
    """Returns whether a folder was prepared by tensorflow-datasets."""
    return (folder / INFO_FILE).is_file()


def load(folder, memory_budget):
    """Returns (names of the classes, [training RecordSplit, test RecordSplit]), sorted by class.

    Every record is read once for its label.

    Raises:
        EkgError: tensorflow-datasets is missing, or the records do not allow random access.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise EkgError(
            f"`data_path` {folder}: holds records of tensorflow-datasets; to read them, install "
            "tensorflow-datasets with pip."
        ) from None
    try:
        builder = tfds.builder_from_directory(folder)
        names = builder.info.features["label"].names
        sources = [
            builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
            for split in (TRAIN, TEST)
        ]
    except Exception as error:  # the package may raise anything
        reason = " ".join(str(error).split())[:160]
        raise EkgError(
            f"`data_path` {folder}: cannot be read as records of images with labels, in the "
            f"array_record format, with the splits {TRAIN} and {TEST} ({reason})."
        ) from None
    splits = []
    for split, source in zip((TRAIN, TEST), sources):
        with progress_bar(f"labels of {split}", len(source), "image") as progress:
            labels = np.empty(len(source), np.int32)
            for number in range(len(source)):
                labels[number] = source[number]["label"]
                progress.update(1)
        order = np.argsort(labels, kind="stable")
        splits.append(
            RecordSplit(order, labels[order], memory_budget, source, f"{folder}, {split}")
        )
    return names, splits
