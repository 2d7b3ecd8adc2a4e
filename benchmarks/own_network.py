"""Prunes a network of keras.applications with `ekg.prune`, as a user would.

    python -m benchmarks.own_network --out runs/own

MobileNetV2 with width 0.35 is trained from scratch on scikit-learn's handwritten digits at 96x96
pixels, pruned to a share of its FLOPs and of its latency in LiteRT, and exported as .tflite files
before and after. The result is a record for `analyze.py tables`; the same command resumes.
"""

from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import ekg
import keras
import tensorflow as tf
from analyses.records import RECORD, Record
from dataloader import digits
from ekg.io import files
from ekg.run.arguments import VERSIONS
from ekg.run.folder import RunFolder

FLAGS = ("flops", "latency", "baseline_epoch", "train_epoch", "seed")  # on which the result depends
RECIPE = 2  # version of the baseline training
SIZE = 96  # pixels
WIDTH = 0.35
BATCH = 32
LEARNING_RATE = 0.05
MOMENTUM = 0.9  # of moving statistics, which with Keras' .999 would lag behind after so few steps
NETWORK = f"MobileNetV2-{WIDTH}"
TRAINED = "trained.keras"


def parse_args(argv=None):
    parser = utils.Parser(
        description="Prune MobileNetV2 on handwritten digits, for FLOPs and latency."
    )
    parser.add_argument("--flops", type=float, default=0.5, help="share of the FLOPs to keep")
    parser.add_argument(
        "--latency", type=float, default=0.6, help="share of the latency in LiteRT to keep"
    )
    parser.add_argument(
        "--baseline_epoch", type=int, default=40, help="epochs of the network that is pruned"
    )
    parser.add_argument("--train_epoch", type=int, default=20, help="epochs of fine-tuning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/own"), help="folder for the run and the record"
    )
    return parser.parse_args(argv)


def load_images():
    """Returns (images, labels) for training and validation, images [n, 96, 96, 3] in [-1, 1]."""
    data = digits.load()
    return tuple(
        (tf.image.resize(split.images, (SIZE, SIZE)).numpy() / 127.5 - 1, split.labels)
        for split in (data.train, data.test)
    )


def shifted(images, seed):
    """Returns images shifted by up to an eighth of their size."""
    count = tf.shape(images)[0]
    moves = tf.cast(
        tf.random.stateless_uniform([count, 2], seed, -SIZE // 8, SIZE // 8 + 1, tf.int32),
        tf.float32,
    )
    ones = tf.ones([count])
    zeros = tf.zeros([count])
    transforms = tf.stack(
        [ones, zeros, moves[:, 0], zeros, ones, moves[:, 1], zeros, zeros], axis=1
    )
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=[SIZE, SIZE],
        fill_value=-1.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )


def train_baseline(train, epochs, seed):
    """Returns a MobileNetV2 with logits as output, trained by Keras on shifted images."""
    model = keras.applications.MobileNetV2(
        weights=None,
        classes=10,
        alpha=WIDTH,
        input_shape=(SIZE, SIZE, 3),
        classifier_activation=None,
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = MOMENTUM
    batches = (
        tf.data.Dataset.from_tensor_slices(train)
        .shuffle(len(train[0]), seed)
        .batch(BATCH)
        .enumerate()
    )
    moved = batches.map(
        lambda step, batch: (shifted(batch[0], tf.stack([seed, tf.cast(step, tf.int32)])), batch[1])
    )
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, epochs * len(moved))
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(moved, epochs=epochs, verbose=2)
    return model


def main(args):
    """Trains, prunes and measures; writes and returns the Record."""
    keras.utils.set_random_seed(args.seed)
    train, validation = load_images()
    folder = RunFolder.prepare(
        args.out,
        {"baseline_epoch": args.baseline_epoch, "recipe": RECIPE, "seed": args.seed, **VERSIONS},
    )
    trained = args.out / TRAINED
    if not trained.exists():
        with folder.timed("baseline"):
            train_baseline(train, args.baseline_epoch, args.seed).save(trained)
    result = ekg.prune(
        keras.models.load_model(trained),
        train,
        validation_data=validation,
        epochs=args.train_epoch,
        target={"flops": args.flops, "latency": ekg.Latency(ratio=args.latency)},
        augment=shifted,
        run={"runtimes": ["tensorflow", "litert"], "exports": ["litert"]},
        run_dir=args.out / "run",
        seed=args.seed,
    )
    record = to_record(args, RunFolder(args.out / "run").read_finished(), folder.phases())
    record.write(args.out / RECORD)
    print(result.summary())
    return record


def to_record(args, run, phases):
    """Returns the Record of a page.FinishedRun of ekg.prune.

    Args:
        args: arguments of the command line.
        run: the FinishedRun.
        phases: entries of phases before the run, {phase: its duration and memory}.
    """
    arguments = run.arguments | {
        "arch": NETWORK,
        "dataset": f"DIGITS at {SIZE}x{SIZE}",
        "target_rate": args.flops,
        "train_epoch": args.train_epoch,
        "trained_param": files.sha256(args.out / TRAINED),
    }
    flags = " ".join(f"--{name} {getattr(args, name)}" for name in FLAGS)
    return Record.of_finished(
        args.out.resolve().name,
        run,
        arguments=arguments,
        phases=phases | run.phases,
        given_command=f"python -m benchmarks.own_network {flags}",
    )


if __name__ == "__main__":
    utils.run_script(main, parse_args)
