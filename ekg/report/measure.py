"""Measures the networks of a run: the rows of the final table."""

import dataclasses
import logging
import math

import numpy as np

from ekg.data.inputs import one_or_list, shapes_of
from ekg.deploy.format import Source
from ekg.deploy.formats import AUTO_RUNTIMES, FORMATS, LITERT, runtime_named
from ekg.deploy.keras_file import KerasFile
from ekg.deploy.packages import is_installed
from ekg.errors import EkgError
from ekg.graph.calls import Graph
from ekg.graph.complexity import model_complexity
from ekg.latency.timing import Conditions, measure_passes
from ekg.process.progress import progress_bar
from ekg.report.table import LITERT_INT8, Row
from ekg.tasks.metrics import metric_named

logger = logging.getLogger(__name__)

BATCHES = (1, 256)  # batch sizes for latency in TensorFlow; other runtimes serve single examples
(LITERT_PACKAGE,) = FORMATS[LITERT].packages
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
        shape: shape of an example, or a list of one per input, for which FLOPs are counted; None
            takes that of the evaluation's examples.
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
    """Returns the shape of an example of data.Batches, since a network may leave its size open; of
    several inputs a list of shapes.
    """
    return one_or_list(shapes_of(batches.split.read(np.zeros(1, np.int64))))


def automatic_runtimes():
    """Returns the runtimes of a table for which none is named."""
    return ["tensorflow", LITERT] if is_installed(LITERT_PACKAGE) else ["tensorflow"]


def conditions_for(runtimes, target=None):
    """Returns the list of Conditions under which the latencies of a table are measured.

    Args:
        runtimes: names from formats.RUNTIMES, or AUTO_RUNTIMES.
        target: Conditions of the search's latency target, or None.
    """
    conditions = [] if target is None else [target]
    for runtime in runtimes:
        for name in automatic_runtimes() if runtime == AUTO_RUNTIMES else [runtime]:
            if name == "tensorflow":
                conditions += [Conditions(name, batch) for batch in BATCHES]
            else:
                conditions.append(Conditions(name))
    return list(dict.fromkeys(conditions))


def with_latencies(
    rows, models, runtimes, shape, *, target=None, int8=None, use_xla=False, run_seconds=math.inf
):
    """Returns the rows with latencies in each runtime, measured in turns.

    A runtime that was not asked for by name is left out where it does not take the networks.

    Args:
        rows: list of Row.
        models: list of the keras.Model of each row; a model of several rows is measured once.
        runtimes, target: see conditions_for.
        shape: shape of an example, or a list of one per input.
        int8: list of the path of each row's network in LiteRT's 8 bits, timed in turn with the
            networks in 32 bits; or None.
        use_xla: whether TensorFlow compiles with XLA.
        run_seconds: duration of the run that the networks come from; networks of short runs are
            measured in fewer rounds.
    """
    conditions = conditions_for(runtimes, target)
    asked = {*runtimes, target.runtime if target else None}
    if AUTO_RUNTIMES in asked and not is_installed(LITERT_PACKAGE):
        logger.info(
            "the table has no latencies of LiteRT, in which networks are served on phones and "
            "small boards; pip install %s adds them.",
            LITERT_PACKAGE,
        )
    share_seconds = SHARE * run_seconds / max(len(conditions), 1)
    seconds = min(max(share_seconds, LEAST_SECONDS), SECONDS)
    latencies = [dict(row.latencies) for row in rows]
    with progress_bar("latency", len(conditions), "runtime") as progress:
        for condition in conditions:
            runtime = runtime_named(condition.runtime)
            if condition.runtime == "tensorflow":
                runtime = KerasFile(use_xla)
            further = int8 if int8 and condition == Conditions(LITERT) else []
            try:
                measured = _measure_in_turn(models, further, runtime, condition, shape, seconds)
            except EkgError as error:
                if condition.runtime in asked or condition.runtime != LITERT:
                    raise
                logger.info("the table has no latencies of LiteRT: %s", error)
                continue
            finally:
                progress.update(1)
            names = [str(condition), str(dataclasses.replace(condition, runtime=LITERT_INT8))]
            for row_latencies, timings in zip(latencies, measured):
                row_latencies.update(zip(names, timings))
    return [
        dataclasses.replace(row, latencies=row_latencies)
        for row, row_latencies in zip(rows, latencies)
    ]


def _measure_in_turn(models, int8, runtime, condition, shape, seconds):
    """Returns a list per network of timing.Timing as dicts: the network's and, if there is one, its
    int8 file's.
    """
    batch, threads = condition.batch, condition.num_threads
    distinct = {id(model): model for model in models}
    passes = {key: runtime.timed(model, batch, threads, shape) for key, model in distinct.items()}
    for path, model in zip(int8, models):
        source = Source(model, Graph(model, shape))
        passes[path] = runtime.timed_file(path, source, batch, threads)
    timings = measure_passes(passes, ROUNDS, seconds)
    by_network = [[dataclasses.asdict(timings[id(model)])] for model in models]
    for entry, path in zip(by_network, int8):
        entry.append(dataclasses.asdict(timings[path]))
    return by_network
