"""Times a training step and the memory bank, compared with Keras' own call and with the peak.

python -m benchmarks.bench_training --arch ResNet-56
"""

import argparse
from unittest import mock

import utils  # before TensorFlow: it sets TensorFlow's environment
import keras
import nets
import numpy as np
import op_utils
import tensorflow as tf
from benchmarks import common
from ekg.data import augment
from ekg.data.dataset import NUM_VIEWS
from ekg.distil import losses
from ekg.graph.execute import read_variables
from ekg.network.supernet import Supernet
from ekg.process.memory import peak_memory_mib
from ekg.train import step


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Time training and the bank.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--arch", default="ResNet-56", choices=nets.archs_for((32, 32, 3)))
    parser.add_argument(
        "--batch_size", type=int, default=128, help="images per training step, each in two views"
    )
    parser.add_argument("--bank_batch_size", type=int, default=256)
    parser.add_argument("--accum", type=int, default=1)
    parser.add_argument("--compile", default="auto", choices=op_utils.COMPILE_CHOICES)
    parser.add_argument("--runs", type=int, default=5)
    return parser.parse_args(argv)


def make_trainer(args, strategy, data, use_xla, pure_forward=step.pure_forward):
    """Returns a fine-tuning Trainer with the forward pass of pure_forward(model, options)."""
    with strategy.scope():
        model = nets.build(args.arch, 10)
    # A Trainer builds its forward pass itself, and all else must be equal for both.
    with mock.patch.object(step, "pure_forward", pure_forward):
        return step.Trainer(
            strategy,
            model,
            losses.fine_tuning(data, "ensemble", 4.0),
            weight_decay=5e-4,
            options=step.StepOptions(args.accum, use_xla),
        )


def main(args):
    keras.utils.set_random_seed(0)
    strategy = op_utils.make_strategy()
    use_xla = op_utils.use_xla(args.compile)
    data = common.random_data(max(args.batch_size, args.bank_batch_size))
    split = data.train
    rng = np.random.default_rng(0)
    batch = {
        "images": split.images[: args.batch_size],
        "labels": split.labels[: args.batch_size],
        "draws": rng.random((args.batch_size, NUM_VIEWS, augment.NUM_DRAWS), np.float32),
        "bank": rng.normal(size=(args.batch_size, 5, 10)).astype(np.float32),
    }
    trainers = [
        make_trainer(args, strategy, data, use_xla),
        make_trainer(args, strategy, data, use_xla, lambda model, options: model.stateless_call),
    ]
    steps = [
        lambda trainer=trainer: trainer.step(batch, 0.01)["loss"].numpy() for trainer in trainers
    ]
    train = common.paired_seconds(*steps, args.runs)
    supernet = Supernet(trainers[0].model)
    flops = supernet.complexity(supernet.whole()).flops
    mask = tf.constant(supernet.mask(supernet.whole()))
    weights = supernet.weights()
    images = tf.constant(split.images[: args.bank_batch_size])
    keras_model = trainers[1].model

    def masked_forward(images):
        return supernet.forward(weights, mask, data.normalise(images))

    def keras_forward(images):
        variables = read_variables(keras_model)
        return keras_model.stateless_call(*variables, data.normalise(images), training=True)[0]

    masked = tf.function(masked_forward, jit_compile=use_xla)
    plain = tf.function(keras_forward, jit_compile=use_xla)
    bank = common.paired_seconds(
        lambda: masked(images).numpy(), lambda: plain(images).numpy(), args.runs
    )
    peak = common.measure_peak()
    rows = []
    for name, num_images, factor, (ours, keras_own) in (
        ("training step, two views", NUM_VIEWS * args.batch_size, 3, train),
        ("memory bank, one teacher", args.bank_batch_size, 1, bank),
    ):
        rows.append(
            [
                name,
                f"{num_images / ours:.0f}",
                f"{num_images / keras_own:.0f}",
                f"{ours / keras_own:.3f}",
                f"{2 * factor * flops * num_images / ours / peak:.2f}",
            ]
        )
    print(
        f"{args.arch}, float32 matrix product {peak / 1e9:.0f} GFLOP/s, peak memory "
        f"{peak_memory_mib():.0f} MiB (a training step counts as three forward)"
    )
    common.print_table(
        ["work", "images/s", "images/s, Keras' own call", "ratio of seconds", "share of peak"], rows
    )


if __name__ == "__main__":
    utils.run_script(main, parse_args)
