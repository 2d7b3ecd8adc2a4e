"""How good an exported network is, run in its own runtime."""

import numpy as np

from ekg import stopping
from ekg.errors import EkgError
from ekg.progress import progress_bar

CHUNK = 64


def measure_exported(reader, batches):
    """Returns {name of a metric: its mean} of an exported network over a whole split.

    Args:
        reader: formats.Reader.
        batches: data.Batches of the split.

    Raises:
        EkgError: the network takes another number of examples at once than the split can be cut into.
    """
    task, split, totals = batches.task, batches.split, {}
    size = CHUNK if reader.batch == "any" else reader.batch
    if len(split) % size and reader.batch != "any":
        raise EkgError(f"the exported network takes {size} examples at once, and {len(split)} are no multiple of it; export "
                       "it for any batch.")
    with progress_bar("exported network", len(split), "example") as progress:
        for begin in range(0, len(split), size):
            places = np.arange(begin, min(begin + size, len(split)))
            outputs = task.of(reader.run([np.asarray(batches.normalise(split.read(places)))]))
            for name, values in task.measure(split.labels[places], outputs).items():
                totals[name] = totals.get(name, 0.0) + float(np.sum(values))
            stopping.check()
            progress.update(len(places))
    return {name: total / len(split) for name, total in totals.items()}


def draw_examples(data, number, seed=0):
    """Returns so many training images of a data set, drawn from all of them, as the network takes them.

    Where there are fewer, they go round.
    """
    places = np.sort(np.random.default_rng(seed).permutation(len(data.train))[:number])
    images = data.train.read(places)
    images = np.asarray(data.batches(data.train, 1).normalise(images))
    images = images[np.random.default_rng(seed + 1).permutation(len(images))]
    return np.resize(images, (number, *images.shape[1:]))
