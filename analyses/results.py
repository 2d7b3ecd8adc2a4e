"""How analyses keep what they measure: line by line while they run, and as JSON, CSV and text at
the end.
"""

import csv
import sys

import numpy as np

from ekg.distil import bank_files
from ekg.io import files


def write_results(out, name, rows, text, **more):
    """Writes NAME.json, NAME.csv and NAME.txt into a folder, and prints the text.

    Args:
        out: pathlib.Path of the folder.
        name: of the files.
        rows: list of dicts of the same keys; lists and dicts in them are left out of the CSV file.
        text: the result in a line.
        more: further entries of the JSON file.
    """
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / f"{name}.json", {"rows": rows, "text": text, **more})
    flat = [
        {key: value for key, value in row.items() if not isinstance(value, (list, dict))}
        for row in rows
    ]
    with open(out / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)
    (out / f"{name}.txt").write_text(text + "\n")
    print(text)
    print(f"results: {out}", file=sys.stderr)


def markdown_table(head, rows):
    """Returns rows of cells, of any kind, as a Markdown table."""
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def known_rows(path, key):
    """Returns {row[key]: row} of the lines that an earlier call left in a file; none if there is no
    such file.
    """
    return {row[key]: row for row in files.read_json_lines(path)} if path.exists() else {}


def row_key(path, batches, *settings):
    """Returns a text that tells a measurement from others.

    Args:
        path: parameter file of the network; its contents count, not its name.
        batches: data.Batches that it is measured on.
        settings: whatever else the result depends on.
    """
    return "|".join(
        map(str, (files.sha256(path), data_key(batches.split), *settings, batches.batch_size))
    )


def data_key(split):
    """Returns a text that tells the images and labels of a data.Split from others."""
    fingerprint = bank_files.fingerprint(split)
    return "".join(fingerprint[name][:16] for name in ("labels", "sample"))


def tells_sign(interval):
    """Returns whether an interval (low, high) of a coefficient holds numbers of one sign alone."""
    low, high = interval
    return low > 0 or high < 0


def mean_and_deviation(values):
    """Returns (mean, sample standard deviation) of a list; the deviation of one value is 0."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
