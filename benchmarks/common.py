"""Timing that several benchmarks share. Figures of one run are compared with each other, never with
another run's.
"""

import math
import statistics
import time

import dataloader
import nets
import numpy as np
import tensorflow as tf
from analyses.results import markdown_table
from ekg.data.dataset import Dataset, Split
from ekg.graph import records, registry
from ekg.searching.settings import SearchSettings

PEAK_SIZE, PEAK_RUNS = 4096, 5


def seconds(function, runs=5, warmup=1):
    """Returns the median seconds of calls of a function, which must wait for its result."""
    times = []
    for run in range(warmup + runs):
        start = time.perf_counter()
        function()
        if run >= warmup:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def paired_seconds(first, second, runs=5, prepare=lambda: None):
    """Returns the median seconds of two functions that are called in turn, so that a drift of the
    machine hits both.

    `prepare` is called before each of them, untimed.
    """
    times = [], []
    for run in range(runs + 1):
        for function, function_times in zip((first, second), times):
            prepare()
            spent = seconds(function, runs=1, warmup=0)
            if run:
                function_times.append(spent)
    return tuple(statistics.median(function_times) for function_times in times)


def measure_peak(dtype="float32", size=PEAK_SIZE):
    """Returns floating-point operations a second (two for a multiply-accumulate) of a matrix
    product in a format.
    """
    matrix = tf.cast(tf.random.stateless_normal((size, size), (0, 0)), dtype)
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(matrix, matrix)))
    return 2 * size**3 / seconds(lambda: product().numpy(), PEAK_RUNS)


def call_flops(graph):
    """Returns {tensor number: multiply-accumulates of the call that writes it}, nothing masked."""
    flops = {}
    for call in graph.calls:
        record, shape = registry.record_of(call.layer), graph.shapes[call.output]
        weights = [
            weight
            for weight in getattr(call.layer, "weights", ())
            if record and weight.name in record.multiplies
        ]
        flops[call.output] = records.spatial_size(shape, len(shape) - 1) * sum(
            math.prod(weight.shape) for weight in weights
        )
    return flops


def print_table(head, rows):
    """Prints rows of cells as a Markdown table."""
    print(markdown_table(head, rows))


def random_data(count, size=32, classes=10):
    """Returns a Dataset of noise: `count` images [size, size, 3], which are training and test
    images at once.
    """
    rng = np.random.default_rng(0)
    split = Split(
        rng.integers(0, 256, (count, size, size, 3)).astype(np.uint8),
        (np.arange(count) % classes).astype(np.int32),
    )
    return Dataset("RANDOM", classes, split, split, (127.5,) * 3, (74.0,) * 3)


def search_data(path):
    """Returns CIFAR-10 from a path, or noise of the size of its D_val without one."""
    return (
        dataloader.load("CIFAR10", path)
        if path
        else random_data(SearchSettings().val_per_class * 10)
    )


def add_network_flags(parser):
    """Adds the flags of a CIFAR network and of what search_data() takes."""
    parser.add_argument("--arch", default="ResNet-56", choices=nets.archs_for((32, 32, 3)))
    parser.add_argument("--trained_param", help="parameter file; without it weights are random")
    parser.add_argument("--data_path", help="CIFAR-10; without it images are random")
