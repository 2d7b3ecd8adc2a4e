"""Measures the networks of a run: the rows of the final table."""

import dataclasses
import logging
import math

import numpy as np

from ekg.deploy.keras_file import KerasFile
from ekg.graph.calls import Graph
from ekg.graph.complexity import model_complexity
from ekg.latency.timing import Conditions, measure_latency
from ekg.process.progress import progress_bar
from ekg.report.table import Row
from ekg.tasks.metrics import metric_named

logger = logging.getLogger(__name__)

BATCHES = (1, 256)  # batch sizes for latency in TensorFlow; other runtimes serve single examples
ROUNDS = 30  # largest number of rounds per latency
SECONDS = 20.0  # longest time per latency
LAG = 0.05  # loss of accuracy by lagging batch norm statistics that triggers a warning
SHARE = 0.05  # share of a run's time that all its latencies may take
LEAST_SECONDS = 1.0  # shortest time limit per latency


def measure(name, evaluation, file_size, shape=None):
    """Returns the Row of a network, without latency: test metrics, complexity and file size.

    Args:
        name: first cell of the row.
        evaluation: evaluate.Evaluation of the network on the test images.
        file_size: size of its parameter file, in bytes.
        shape: image shape for which FLOPs are counted; None takes that of the evaluation's images.
    """
    with progress_bar(f"test {name}", evaluation.batches.num_images, "image") as progress:
        metrics = evaluation(progress)
    task = evaluation.batches.task
    test_shape = image_shape(evaluation.batches)
    cost = model_complexity(evaluation.model, test_shape if shape is None else shape)
    shown = task.metrics_of(task.shape(Graph(evaluation.model, test_shape)))
    errors = {
        metric: error for metric, error in metrics.errors.items() if metric in ("loss", *shown)
    }
    return Row(
        name,
        metrics.loss,
        {metric: metrics.values[metric] for metric in shown},
        cost.params,
        cost.flops,
        file_size,
        examples=metrics.examples,
        errors=errors,
    )


def warn_of_lagging_statistics(evaluation, batches, found):
    """Warns if moving statistics make the unpruned network much worse than batch statistics.

    The statistics of pruned networks are estimated again, so compared with such a network they
    would look better than they are.

    Args:
        evaluation: evaluate.Evaluation of Θ₀, the unpruned network.
        batches: data.Batches of D_val, with the evaluation's batch size.
        found: first metric of the task on these images with batch statistics; HistoryEntry.accuracy
            of Θ₀.
    """
    name, value = next(iter(evaluation(batches=batches).values.items()))
    metric = metric_named(name)
    tolerance = max(LAG, batches.num_images**-0.5)  # chance moves the figure of few images more
    if metric.is_share and found - value > tolerance:
        logger.warning(
            "the unpruned network's moving statistics lag behind its weights: on the search's "
            "images it has %s %% %s with them, and %s %% with batch statistics. Pruned networks "
            "may look better in the table than they are; for a fair comparison train the "
            "unpruned network longer, or with a lower `momentum` of its batch norms.",
            metric.text(value),
            metric.words,
            metric.text(found),
        )


def image_shape(batches):
    """Returns the shape of an image of data.Batches, since a network may leave its size open."""
    return batches.split.read(np.zeros(1, np.int64)).shape[1:]


def conditions_for(runtimes, target=None):
    """Returns the list of Conditions under which the latencies of a table are measured.

    Args:
        runtimes: names from formats.RUNTIMES.
        target: Conditions of the search's latency target, or None.
    """
    conditions = [] if target is None else [target]
    for runtime in runtimes:
        if runtime == "tensorflow":
            conditions += [Conditions(runtime, batch) for batch in BATCHES]
        else:
            conditions.append(Conditions(runtime))
    return list(dict.fromkeys(conditions))


def with_latencies(rows, models, conditions, shape, use_xla=False, run_seconds=math.inf):
    """Returns the rows with latencies under each of the Conditions, measured in turns.

    Args:
        rows: list of Row.
        models: list of the keras.Model of each row; a model of several rows is measured once.
        conditions: list of Conditions.
        shape: shape of an image.
        use_xla: whether TensorFlow compiles with XLA.
        run_seconds: duration of the run that the networks come from; networks of short runs are
            measured in fewer rounds.
    """
    share_seconds = SHARE * run_seconds / max(len(conditions), 1)
    seconds = min(max(share_seconds, LEAST_SECONDS), SECONDS)
    latencies = [dict(row.latencies) for row in rows]
    distinct = {id(model): model for model in models}
    with progress_bar("latency", len(conditions), "runtime") as progress:
        for condition in conditions:
            runtime = condition.runtime
            if runtime == "tensorflow":
                runtime = KerasFile(use_xla)
            timings = measure_latency(
                distinct, runtime, condition.batch, condition.num_threads, shape, ROUNDS, seconds
            )
            for row_latencies, model in zip(latencies, models):
                row_latencies[str(condition)] = dataclasses.asdict(timings[id(model)])
            progress.update(1)
    return [
        dataclasses.replace(row, latencies=row_latencies)
        for row, row_latencies in zip(rows, latencies)
    ]
