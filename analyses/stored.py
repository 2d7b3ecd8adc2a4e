"""What is measured of stored networks: a row for each, kept line by line and never measured
twice.
"""

import dataclasses
import time

from analyses.results import data_key, known_rows, row_key
from ekg.io import files
from ekg.run.arguments import VERSIONS, origin

FORMAT = 3  # of the lines; older ones are measured anew


def measure_networks(subject, paths, images, asked, lines, measure):
    """Measures stored networks; those that an earlier call left in the file are not measured again.

    Args:
        subject: Subject.
        paths: parameter files.
        images: ImageSettings.
        asked: {name: value} of what else a row depends on.
        lines: pathlib.Path of the file that keeps every row.
        measure: function from (keras.Model, data.Batches, its name) to a row, a dict.

    Returns:
        (rows, arguments): a dict for each network, with its name as "network", and all that they
        depend on.
    """
    batches, models = subject.batches(images.images), subject.load_all(paths)
    lines.parent.mkdir(parents=True, exist_ok=True)
    rows, known = [], known_rows(lines, "key")
    for (name, model), path in zip(models.items(), paths):
        key = row_key(path, batches, FORMAT, images.batch_statistics, *asked.values())
        if key not in known:
            start = time.perf_counter()
            known[key] = {"key": key} | measure(model, batches, name)
            known[key] |= {
                "seconds": round(time.perf_counter() - start, 1),
                "origin": origin(),
                "versions": VERSIONS,
            }
            files.append_json_line(lines, known[key])
        rows.append(
            {"network": name}
            | {field: value for field, value in known[key].items() if field != "key"}
        )
    arguments = {
        "networks": dict(zip(models, map(files.sha256, paths))),
        "arch": subject.arch,
        "dataset": subject.data.name,
        "data": data_key(subject.data.train),
        **dataclasses.asdict(images),
        "batch_size": subject.batch_size,
        **asked,
    }
    return rows, arguments


def minutes(rows):
    """Returns how long the rows of measure_networks() took together."""
    return sum(row["seconds"] for row in rows) / 60
