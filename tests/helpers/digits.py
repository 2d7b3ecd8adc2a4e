"""A user's own small network, and handwritten digits in the forms that a user has them in."""

import math

import keras
import numpy as np
from keras import layers
from sklearn import datasets

from tests.helpers.models import conv_bn, randomise_

QUICK = {
    "verbose": False,
    "search": {"search_step": 1.0, "val_per_class": 4, "subset_per_class": 8},
}


def digits(number=120):
    images, labels = datasets.load_digits(return_X_y=True)
    return images[:number].reshape(-1, 8, 8, 1).astype(np.float32) / 16, labels[:number]


def network(head, channels=1, size=8):
    """A network of two convolutions whose pooled features go through `head`."""
    inputs = keras.Input((size, size, channels))
    x = layers.GlobalAveragePooling2D()(conv_bn(conv_bn(inputs, 6, "one"), 8, "two"))
    return randomise_(keras.Model(inputs, head(x), name="own"))


def softmax(x):
    return layers.Dense(10, activation="softmax", name="fc")(x)


class Sequence(keras.utils.PyDataset):
    def __init__(self, images, labels):
        super().__init__()
        self.images, self.labels = images, labels

    def __len__(self):
        return math.ceil(len(self.labels) / 32)

    def __getitem__(self, number):
        part = slice(32 * number, 32 * number + 32)
        return self.images[part], self.labels[part]


def as_folder(path, images, labels):
    for number, (image, label) in enumerate(zip(images, labels)):
        (path / str(label)).mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(path / str(label) / f"{number:04}.png", image * 255, scale=False)
    return keras.utils.image_dataset_from_directory(
        path, image_size=(8, 8), color_mode="grayscale", shuffle=False, verbose=False
    )


def with_numbers(number=120):
    """Digits, each with the sums of its columns beside it: inputs by name, and labels."""
    images, labels = digits(number)
    return {"image": images, "columns": images.sum((1, 3)) / 4}, labels


def two_inputs(as_dict=True, size=8):
    """A network of an image and eight numbers, without a softmax; a dict or a list of inputs."""
    image = keras.Input((size, size, 1), name="image")
    columns = keras.Input((8,), name="columns")
    x = layers.GlobalAveragePooling2D()(conv_bn(conv_bn(image, 6, "one"), 8, "two"))
    y = layers.Dense(6, activation="relu", name="dense")(columns)
    outputs = layers.Dense(10, name="fc")(layers.Concatenate()([x, y]))
    inputs = {"image": image, "columns": columns} if as_dict else [image, columns]
    return randomise_(keras.Model(inputs, outputs, name="two"))
