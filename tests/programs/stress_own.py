"""A small job of ekg.prune or ekg.front on a network and data of its own, like a user's program.

python -m tests.programs.stress_own FOLDER --job front
"""

import utils  # before TensorFlow: it sets TensorFlow's environment
import keras
import numpy as np
import ekg
from keras import layers

NUM_IMAGES, CLASSES = 600, 4


def make_model(has_several_outputs=False):
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
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Add()([x, y])))
    place = layers.Dense(CLASSES, name="place")(x)
    if not has_several_outputs:
        return keras.Model(entry, place)
    return keras.Model(entry, {"place": place, "light": layers.Dense(1, name="light")(x)})


def make_data():
    """Returns noise that is brighter in one of four places, and which."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, NUM_IMAGES)
    images = rng.normal(size=(NUM_IMAGES, 12, 12, 1)).astype(np.float32)
    for image, label in zip(images, labels):
        image[6 * (label // 2) :, 6 * (label % 2) :] += 1.0
    return images, labels


def run_single(folder):
    """Prunes to a share of the FLOPs; the network that is cut out is repaired."""
    return ekg.prune(make_model(), make_data(), target_rate=0.6, run_dir=folder, **OPTIONS)


def run_outputs(folder):
    """Prunes a network of two outputs."""
    images, labels = make_data()
    labels = {"place": labels, "light": images.mean(axis=(1, 2))}
    return ekg.prune(make_model(True), (images, labels), target_rate=0.6, run_dir=folder, **OPTIONS)


def run_front(folder):
    """Prunes to two shares of the FLOPs."""
    return ekg.front(make_model(), make_data(), rates=(0.8, 0.5), run_dir=folder, **OPTIONS)


def run_goal(folder):
    """Finds the smallest network within a drop of accuracy."""
    goal = {"drop": 0.4, "held_out": 0.2, "lowest_rate": 0.6, "probe_epochs": 0}
    model = make_model()
    model.compile(keras.optimizers.Adam(0.02), LOSS)
    model.fit(*make_data(), epochs=3, verbose=0)
    return ekg.prune(model, make_data(), target=goal, run_dir=folder, **OPTIONS)


JOBS = {"single": run_single, "outputs": run_outputs, "front": run_front, "goal": run_goal}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
OPTIONS = {
    "epochs": 3,
    "seed": 3,
    "search": {
        "search_step": 0.25,
        "val_per_class": 20,
        "subset_per_class": 40,
        "search_batch_size": 40,
    },
    "fine_tune": {"batch_size": 16},
    "bank": {"num_teacher": 3},
    "run": {"checkpoint_minutes": 0.01, "runtimes": ()},
}


def main(args):
    print(JOBS[args.job](args.folder).summary())


def parse_args(argv=None):
    parser = utils.Parser()
    parser.add_argument("folder")
    parser.add_argument("--job", default="single", choices=JOBS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    utils.run_script(main, parse_args)
