"""A small run of ekg.prune on a network and data of its own, which stands for a user's program.

python -m tests.programs.stress_own FOLDER
"""

import utils  # before TensorFlow: it sets TensorFlow's environment
import keras
import numpy as np
import ekg
from keras import layers

NUM_IMAGES, CLASSES = 600, 4


def make_model():
    """Returns a network with a residual connection, with weights that are always the same."""
    keras.utils.set_random_seed(1)
    entry = keras.Input((12, 12, 1))
    x = layers.ReLU()(
        layers.BatchNormalization()(layers.Conv2D(12, 3, padding="same", use_bias=False)(entry))
    )
    y = layers.ReLU()(
        layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same", use_bias=False)(x))
    )
    y = layers.BatchNormalization()(layers.Conv2D(12, 3, padding="same", use_bias=False)(y))
    x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(entry, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))


def make_data():
    """Returns noise that is brighter in one of four places, and which."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, NUM_IMAGES)
    images = rng.normal(size=(NUM_IMAGES, 12, 12, 1)).astype(np.float32)
    for image, label in zip(images, labels):
        image[6 * (label // 2) :, 6 * (label % 2) :] += 1.0
    return images, labels


def main(args):
    result = ekg.prune(
        make_model(),
        make_data(),
        target_rate=0.6,
        epochs=3,
        run_dir=args.folder,
        seed=3,
        search={
            "search_step": 0.25,
            "val_per_class": 20,
            "subset_per_class": 40,
            "search_batch_size": 40,
        },
        fine_tune={"batch_size": 16},
        bank={"num_teacher": 3},
        run={"checkpoint_minutes": 0.01},
    )
    print(result.summary())


def parse_args():
    parser = utils.Parser()
    parser.add_argument("folder")
    return parser.parse_args()


if __name__ == "__main__":
    utils.run_script(main, parse_args)
