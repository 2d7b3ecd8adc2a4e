"""Measures a memory bank on disk: rows per second, memory for reading, and the error of float16.

python -m benchmarks.bench_bank --folder /tmp --images 200000
"""

import argparse
import tempfile
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import numpy as np
import tensorflow as tf
from benchmarks import common
from ekg.tasks.logits import kl_divergence
from ekg.distil import bank, bank_files, losses
from ekg.process.memory import peak_memory_mib, resident_mib

BLOCK = 1000  # images that are written at a time
# Properties of logits, roughly those of trained ImageNet networks
LABEL_LOGIT = 10.0
SPREAD = 2.5
DISAGREEMENT = 0.7


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Time a memory bank that need not fit into memory.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--folder", type=Path, help="folder in which the bank is written for a while"
    )
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--num_teacher", type=int, default=5)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument(
        "--batches", type=int, default=400, help="batches of random rows that are read and timed"
    )
    parser.add_argument("--temperature", type=float, default=10.0)
    return parser.parse_args(argv)


def make_logits(rng, count, num_teacher, classes):
    """Returns logits of teachers that mostly agree, float32 [count, num_teacher, classes]."""
    logits = SPREAD * rng.standard_normal((count, 1, classes), np.float32)
    logits[np.arange(count), 0, rng.integers(0, classes, count)] += LABEL_LOGIT
    return logits + DISAGREEMENT * rng.standard_normal((count, num_teacher, classes), np.float32)


def distillation_loss(logits, student, temperature):
    """Returns the mean distillation loss of a student's logits, given the logits of a bank."""
    knowledge, _ = losses.choose_knowledge(tf.cast(logits, tf.float32), student, temperature)
    return float(tf.reduce_mean(kl_divergence(knowledge, student, temperature)))


def distillation_change(args, rng):
    """Returns the largest relative change of the distillation loss by float16, in ten batches."""
    changes = []
    for _ in range(10):
        logits = make_logits(rng, args.batch_size, args.num_teacher, args.classes)
        student = logits[:, 0] + DISAGREEMENT * rng.standard_normal(logits[:, 0].shape, np.float32)
        whole, half = (
            distillation_loss(logits.astype(dtype), student, args.temperature)
            for dtype in (np.float32, np.float16)
        )
        changes.append(abs(half - whole) / whole)
    return max(changes)


def main(args):
    rng = np.random.default_rng(0)
    shape = (args.images, args.num_teacher, args.classes)
    change = distillation_change(args, rng)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        block = make_logits(rng, BLOCK, args.num_teacher, args.classes).astype(np.float16)
        path = Path(folder) / bank_files.ARRAY_FILE
        with open(path, "wb") as file:
            file.write(bank_files.header(shape, np.float16))
            for start in range(0, args.images, BLOCK):
                block[:, 0, 0] = np.arange(start, start + BLOCK) % 2048  # identifies the row
                file.write(block[: args.images - start].tobytes())
        size = path.stat().st_size
        memory_bank = bank.open_bank(Path(folder))
        batches = rng.integers(0, args.images, (args.batches, args.batch_size))
        with open(path, "rb") as file:  # brings the file into the system's cache
            while file.read(2**24):
                pass
        before = resident_mib()
        peak_before = peak_memory_mib()
        largest = 0.0

        def read():
            nonlocal largest
            for index in batches:
                rows = memory_bank.rows(index)
                if (rows[:, 0, 0] != index % 2048).any():
                    raise AssertionError("the bank returned another row than the requested one.")
                largest = max(largest, resident_mib())

        spent = common.seconds(read, runs=3, warmup=1)
        peak_growth = peak_memory_mib() - peak_before
    print(
        f"{shape[0]:,} x {shape[1]} x {shape[2]} float16, {size:,} bytes, batches of "
        f"{args.batch_size} random rows"
    )
    common.print_table(
        [
            "rows/s",
            "resident memory grows by, MiB",
            "its peak by, MiB",
            "float16 changes the loss by",
        ],
        [
            [
                f"{batches.size / spent:,.0f}",
                f"{largest - before:.0f}",
                f"{peak_growth:.0f}",
                f"{change:.5%}",
            ]
        ],
    )


if __name__ == "__main__":
    utils.run_script(main, parse_args)
