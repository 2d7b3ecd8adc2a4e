"""Measurements of stored networks: one row per network, stored at once and never measured twice."""

import dataclasses
import time

from analyses.results import data_key, known_rows, row_key
from ekg.io import files
from ekg.run.arguments import VERSIONS, origin

FORMAT = 3  # version of the rows; networks with older rows are measured again


def measure_networks(subject, paths, images, options, lines, measure):
    """Measures stored networks, except those that an earlier call has measured.

    Args:
        subject: Subject.
        paths: list of parameter files.
        images: ImageSettings.
        options: {name: value} of further options on which rows depend.
        lines: pathlib.Path of the file in which every row is stored.
        measure: function (keras.Model, data.Batches, name of the network) -> row, a dict.

    Returns:
        (rows, arguments): a dict per network, with its name as "network", and all arguments on
        which the rows depend.
    """
    batches = subject.batches(images.images)
    models = subject.load_all(paths)
    lines.parent.mkdir(parents=True, exist_ok=True)
    known = known_rows(lines, "key")
    rows = []
    for (name, model), path in zip(models.items(), paths):
        key = row_key(path, batches, FORMAT, images.batch_statistics, *options.values())
        if key not in known:
            start = time.perf_counter()
            row = {"key": key} | measure(model, batches, name)
            row["seconds"] = round(time.perf_counter() - start, 1)
            row["origin"] = origin()
            row["versions"] = VERSIONS
            files.append_json_line(lines, row)
            known[key] = row
        values = {field: value for field, value in known[key].items() if field != "key"}
        rows.append({"network": name} | values)
    arguments = {
        "networks": dict(zip(models, map(files.sha256, paths))),
        "arch": subject.arch,
        "dataset": subject.data.name,
        "data": data_key(subject.data.train),
        **dataclasses.asdict(images),
        "batch_size": subject.batch_size,
        **options,
    }
    return rows, arguments


def minutes(rows):
    """Returns the total duration of the rows of measure_networks(), in minutes."""
    return sum(row["seconds"] for row in rows) / 60
