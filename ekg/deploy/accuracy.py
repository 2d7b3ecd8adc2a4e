"""Metrics of an exported network, computed in its own runtime."""

import keras
import numpy as np

from ekg.deploy.proof import to_logits
from ekg.errors import EkgError
from ekg.process import stopping
from ekg.process.progress import progress_bar

BATCH_SIZE = 64


def measure_exported(reader, batches, squashes=None):
    """Returns {name of a metric: its mean} of an exported network over a whole split.

    Args:
        reader: format.Reader.
        batches: data.Batches of the split.
        squashes: see proof.squashes_of(); None where the network returns logits.

    Raises:
        EkgError: the split cannot be divided into the number of examples that the network takes at
            once.
    """
    task, split, totals = batches.task, batches.split, {}
    size = BATCH_SIZE if reader.batch == "any" else reader.batch
    if len(split) % size and reader.batch != "any":
        raise EkgError(
            f"the exported network takes {size} examples at once, and {len(split)} are not a "
            "multiple of it; export it for any batch."
        )
    with progress_bar("exported network", len(split), "example") as progress:
        for begin in range(0, len(split), size):
            places = np.arange(begin, min(begin + size, len(split)))
            inputs = keras.tree.flatten(batches.normalise(split.read(places)))
            outputs = reader.run(list(map(np.asarray, inputs)))
            outputs = task.of(to_logits(outputs, squashes or {}))
            measured = task.measure(split.labels[places], outputs)
            for name in task.metrics_of(outputs.shape[1:]):
                totals[name] = totals.get(name, 0.0) + float(np.sum(measured[name]))
            stopping.check()
            progress.update(len(places))
    return {name: total / len(split) for name, total in totals.items()}
