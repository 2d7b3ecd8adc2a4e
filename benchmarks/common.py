"""Timing that several benchmarks share. Figures of one run are compared with each other, never with another run's."""

import statistics
import time

import numpy as np
import tensorflow as tf

from ekg import complexity

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
    """Returns the median seconds of two functions that are called in turn, so that a drift of the machine hits both.

    `prepare` is called before each of them, untimed.
    """
    times = [], []
    for run in range(runs + 1):
        for function, own in zip((first, second), times):
            prepare()
            spent = seconds(function, runs=1, warmup=0)
            if run:
                own.append(spent)
    return tuple(statistics.median(own) for own in times)


def measure_peak():
    """Returns floating-point operations a second (two for a multiply-accumulate) of a float32 matrix product."""
    matrix = tf.random.stateless_normal((PEAK_SIZE, PEAK_SIZE), (0, 0))
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(matrix, matrix)))
    return 2 * PEAK_SIZE**3 / seconds(lambda: product().numpy(), PEAK_RUNS)


def call_flops(graph, layout):
    """Returns {tensor number: multiply-accumulates of the call that writes it}, nothing masked."""
    flops = {}
    for call in graph.calls:
        count = complexity.COSTS.get(type(call.layer))
        cost = count(call.layer, graph.shapes[call.output]) if count else None
        channels_in, channels_out = len(layout.index[call.inputs[0]]), len(layout.index[call.output])
        flops[call.output] = cost.pair_flops * channels_in * channels_out + cost.out_flops * channels_out if cost else 0
    return flops


def print_table(head, rows):
    """Prints rows of cells as a Markdown table."""
    cells = [head, ["---"] * len(head), *rows]
    print("\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in cells))


def random_images(count, size=32, classes=10):
    """Returns (uint8 images [count, size, size, 3], labels [count]) of noise."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, size, size, 3)).astype(np.uint8), (np.arange(count) % classes).astype(np.int32)
