"""Compares the input pipeline for photographs with tf.io.decode_and_crop_jpeg alone.

python -m benchmarks.bench_input --data_path ILSVRC2012
"""

import argparse
import os

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import keras
import nets
import numpy as np
import op_utils
import tensorflow as tf
from benchmarks import common
from dataloader import ilsvrc, photographs
from ekg.data.dataset import NUM_VIEWS
from ekg.distil import losses
from ekg.train.step import StepOptions, Trainer


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Time the input pipeline.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_path", required=True, help="folder with train/ and val/")
    parser.add_argument(
        "--images",
        type=int,
        default=2048,
        help="images per epoch; photographs are repeated if there are fewer",
    )
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--arch",
        default="ResNet-50",
        choices=nets.archs_for(ilsvrc.IMAGE_SHAPE),
        help="network whose training step is timed for comparison",
    )
    parser.add_argument(
        "--train_batch_size",
        type=int,
        default=16,
        help="images per training step, each in two views",
    )
    return parser.parse_args(argv)


def decode_alone(split, num_views):
    """Returns a function that decodes the crops of an epoch, with windows and contents given."""
    contents = tf.stack([tf.io.read_file(file) for file in split.files])

    def windows(content, index):
        shape = tf.image.extract_jpeg_shape(content)
        keys = [
            photographs.view_key(0, 0, index * num_views + number) for number in range(num_views)
        ]
        return tf.stack([photographs.sample_window(shape, key) for key in keys])

    indices = tf.range(len(split), dtype=tf.int64)
    all_windows = tf.data.Dataset.from_tensor_slices((contents, indices)).map(windows)
    all_windows = tf.constant(list(all_windows.as_numpy_iterator()))

    def decode(index):
        crops = [
            tf.io.decode_and_crop_jpeg(contents[index], all_windows[index, number], channels=3)
            for number in range(num_views)
        ]
        return tf.add_n([tf.size(crop) for crop in crops])

    examples = tf.data.Dataset.range(len(split)).map(decode, tf.data.AUTOTUNE, deterministic=True)
    return lambda: [None for _ in examples.batch(256).prefetch(2)]


def training_step(arch, data, batch_size):
    """Returns a function that runs one fine-tuning step with labels alone."""
    strategy = op_utils.make_strategy()
    with strategy.scope():
        model = nets.build(arch, data.num_classes)
    trainer = Trainer(
        strategy,
        model,
        losses.fine_tuning(data, "none", 10.0),
        weight_decay=1e-4,
        options=StepOptions(use_xla=op_utils.use_xla("auto")),
    )
    batch = next(data.epoch(batch_size, 0, 0, NUM_VIEWS))
    return lambda: trainer.step(batch, 0.01)["loss"].numpy()


def main(args):
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()  # as the training scripts do
    data = dataloader.load("ILSVRC2012", args.data_path)
    cores = len(os.sched_getaffinity(0))
    is_jpeg = [
        bool(tf.io.is_jpeg(tf.io.read_file(file))) for file in data.train.files[: args.images]
    ]
    split = data.train.take(np.resize(np.flatnonzero(is_jpeg), args.images))
    rows = []
    for num_views in (1, 2):

        def epoch(num_views=num_views):
            for batch in data.epoch(args.batch_size, 0, 0, num_views, split):
                batch["images"].sum(axis=(1, 2, 3, 4))[0]

        ours, alone = common.paired_seconds(epoch, decode_alone(split, num_views), args.runs)
        count = args.images // args.batch_size * args.batch_size * num_views
        speed = count / ours
        speed_alone = args.images * num_views / alone
        rows.append(
            [
                num_views,
                f"{speed:.0f}",
                f"{speed / cores:.0f}",
                f"{speed_alone / cores:.0f}",
                f"{speed / speed_alone:.2f}",
            ]
        )
    step = training_step(args.arch, data, args.train_batch_size)
    trained = NUM_VIEWS * args.train_batch_size / common.seconds(step, 3)
    print(
        f"{cores} cores, {len(set(split.files))} photographs; {args.arch} trains on {trained:.1f} "
        "views/s here"
    )
    common.print_table(
        [
            "views of an image",
            "views/s",
            "views/s per core",
            "decode_and_crop_jpeg alone, per core",
            "share",
        ],
        rows,
    )


if __name__ == "__main__":
    utils.run_script(main, parse_args)
