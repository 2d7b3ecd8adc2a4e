"""What networks cost and how good they are: the rows of the final table."""

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

BATCHES = (1, 256)  # of the latency in TensorFlow; other runtimes serve one example at a time
ROUNDS, SECONDS = 30, 20.0  # of a latency, at most
LAG = 0.05  # share of right answers that lagging statistics cost, from which on it is worth a word
SHARE, LEAST_SECONDS = (
    0.05,
    1.0,
)  # of the seconds of a run, for all its latencies; and of one latency


def measure(name, evaluation, file_size, shape=None):
    """Returns the Row of a network but for its latency: exact test metrics, complexity, file size.

    Args:
        name: first cell of the row.
        evaluation: evaluate.Evaluation of the network on the test images.
        file_size: of its parameter file, bytes.
        shape: of the image that FLOPs are counted for; None takes that of the evaluation's images.
    """
    with progress_bar(f"test {name}", evaluation.batches.num_images, "image") as progress:
        metrics = evaluation(progress)
    task, own_shape = evaluation.batches.task, image_shape(evaluation.batches)
    cost = model_complexity(evaluation.model, own_shape if shape is None else shape)
    shown = task.metrics_of(task.shape(Graph(evaluation.model, own_shape)))
    return Row(
        name,
        metrics.loss,
        {metric: metrics.values[metric] for metric in shown},
        cost.params,
        cost.flops,
        file_size,
        examples=metrics.examples,
        errors={
            metric: error for metric, error in metrics.errors.items() if metric in ("loss", *shown)
        },
    )


def warn_of_lagging_statistics(evaluation, batches, found):
    """Warns if a network is much worse with its moving statistics than the search found it with
    those of batches.

    Slimmed networks have statistics of their own, so beside such a network they would look better
    than they are.

    Args:
        evaluation: evaluate.Evaluation of the network that was searched, Θ₀.
        batches: data.Batches of D_val, of the evaluation's batch size.
        found: the first metric of the task on these images, with the statistics of batches;
            HistoryEntry.accuracy of Θ₀.
    """
    name, value = next(iter(evaluation(batches=batches).values.items()))
    metric = metric_named(name)
    if metric.is_share and found - value > max(
        LAG, batches.num_images**-0.5
    ):  # of few images chance may move more
        logger.warning(
            "the unpruned network's moving statistics lag behind: on the search's images it has "
            "%s %% %s with "
            "them, and %s %% with those of batches. Beside its row of the table a pruned network "
            "may look better "
            "than it is; train it on, or with a lower `momentum` of its batch norms, to compare.",
            metric.text(value),
            metric.words,
            metric.text(found),
        )


def image_shape(batches):
    """Returns the shape of an image of data.Batches: a network may leave the size open."""
    return batches.split.read(np.zeros(1, np.int64)).shape[1:]


def conditions_for(runtimes, target=None):
    """Returns the list of Conditions under which the networks of a table are measured.

    Args:
        runtimes: names of formats.RUNTIMES.
        target: Conditions that a search aimed at, or None.
    """
    chosen = [] if target is None else [target]
    for runtime in runtimes:
        chosen += (
            [Conditions(runtime, batch) for batch in BATCHES]
            if runtime == "tensorflow"
            else [Conditions(runtime)]
        )
    return list(dict.fromkeys(chosen))


def with_latencies(rows, models, conditions, shape, use_xla=False, run_seconds=math.inf):
    """Returns the rows with their latency under each of the Conditions, all networks in turn.

    Args:
        rows: list of Row.
        models: list of the keras.Model of each; one that stands for several rows is measured once.
        conditions: list of Conditions.
        shape: of an image.
        use_xla: whether TensorFlow compiles with XLA.
        run_seconds: of the run that the networks come from; a short one is measured in few rounds.
    """
    seconds = min(max(SHARE * run_seconds / max(len(conditions), 1), LEAST_SECONDS), SECONDS)
    found = [dict(row.latencies) for row in rows]
    distinct = {id(model): model for model in models}
    with progress_bar("latency", len(conditions), "runtime") as progress:
        for one in conditions:
            runtime = KerasFile(use_xla) if one.runtime == "tensorflow" else one.runtime
            timings = measure_latency(
                distinct, runtime, one.batch, one.num_threads, shape, ROUNDS, seconds
            )
            for values, model in zip(found, models):
                values[str(one)] = dataclasses.asdict(timings[id(model)])
            progress.update(1)
    return [dataclasses.replace(row, latencies=values) for row, values in zip(rows, found)]
