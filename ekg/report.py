"""What a network costs and how good it is: one row of the final table."""

import statistics
import time
from pathlib import Path

import tensorflow as tf

import op_utils
import utils
from ekg import complexity
from ekg.graph import Graph

LATENCY_BATCHES = (1, 256)
LATENCY_WARMUP, LATENCY_RUNS, LATENCY_SECONDS = 2, 9, 20.0


def measure(name, model, path, data, strategy, batch_size, jit=False, shard=(0, 1)):
    """Returns the utils.Row of a network: exact test metrics, complexity, file size and latency.

    Args:
        name: first cell of the row.
        model: keras.Model.
        path: its parameter file.
        data: dataloader Dataset; its test split is read.
        strategy: tf.distribute.Strategy.
        batch_size: of the evaluation.
        jit: whether to compile with XLA.
        shard: (number of this process, number of processes) of the evaluation.
    """
    forward = Graph(model).stateless_call
    with utils.progress_bar(f"test {name}", len(data.test), "image") as progress:
        metrics = op_utils.evaluate(strategy, model, data.test, data.normalise, batch_size, forward=forward, jit=jit,
                                    progress=progress, shard=shard)
    cost = complexity.of_model(model)
    latencies = [measure_latency(model, data.image_shape, size, forward, jit) for size in LATENCY_BATCHES]
    return utils.Row(name, metrics.loss, metrics.top1, metrics.top5, cost.params, cost.flops, Path(path).stat().st_size,
                     *latencies)


def measure_latency(model, image_shape, batch_size, forward=None, jit=False):
    """Returns the median milliseconds of one forward pass of a batch of zeros, with moving statistics.

    A pass that takes seconds is not repeated as often as a fast one.
    """
    forward = op_utils.compiled(forward or model.stateless_call, "forward pass", jit)
    variables, images = op_utils.read_variables(model), tf.zeros((batch_size, *image_shape))
    seconds = []
    while len(seconds) < LATENCY_WARMUP + 1 or (
            len(seconds) < LATENCY_WARMUP + LATENCY_RUNS and sum(seconds) < LATENCY_SECONDS):
        start = time.perf_counter()
        forward(*variables, images, False)[0].numpy()
        seconds.append(time.perf_counter() - start)
        utils.check_stopped()
    return 1000 * statistics.median(seconds[LATENCY_WARMUP:])
