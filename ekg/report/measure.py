"""What a network costs and how good it is: one row of the final table."""

import statistics
import time

import numpy as np
import tensorflow as tf

from ekg import stopping
from ekg.devices.compute import compiled
from ekg.graph.complexity import model_complexity
from ekg.graph.execute import pure_forward, read_variables
from ekg.progress import progress_bar
from ekg.report.table import Row
from ekg.train.evaluate import evaluate

LATENCY_BATCHES = (1, 256)
LATENCY_WARMUP, LATENCY_RUNS, LATENCY_SECONDS = 2, 9, 20.0


def measure(name, model, file_size, batches, compute):
    """Returns the Row of a network: exact test metrics, complexity, file size and latency.

    Args:
        name: first cell of the row.
        model: functional keras.Model.
        file_size: of its parameter file, bytes.
        batches: data.Batches of the test images.
        compute: Compute of the evaluation.
    """
    with progress_bar(f"test {name}", batches.num_images, "image") as progress:
        metrics = evaluate(model, batches, compute, progress)
    shape = batches.split.read(np.zeros(1, np.int64)).shape[1:]  # a network may leave the size of its images open
    cost = model_complexity(model, shape)
    latencies = [measure_latency(model, size, compute.use_xla, shape) for size in LATENCY_BATCHES]
    return Row(name, metrics.loss, metrics.values, cost.params, cost.flops, file_size, *latencies)


def measure_latency(model, batch_size, use_xla=False, shape=None):
    """Returns the median milliseconds of one forward pass of a batch of zeros, with moving statistics.

    A pass that takes seconds is not repeated as often as a fast one.

    Args:
        model: functional keras.Model.
        batch_size: images.
        use_xla: whether to compile with XLA.
        shape: of an image; None takes the model's.
    """
    forward = compiled(pure_forward(model), "forward pass", use_xla)
    images = tf.zeros((batch_size, *(shape or model.input_shape[1:])), model.inputs[0].dtype)
    variables, seconds = read_variables(model), []
    while len(seconds) < LATENCY_WARMUP + 1 or (
            len(seconds) < LATENCY_WARMUP + LATENCY_RUNS and sum(seconds) < LATENCY_SECONDS):
        start = time.perf_counter()
        tf.nest.flatten(forward(*variables, images, False)[0])[0].numpy()
        seconds.append(time.perf_counter() - start)
        stopping.check()
    return 1000 * statistics.median(seconds[LATENCY_WARMUP:])
