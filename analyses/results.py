"""Results of analyses: line by line while they run, and as JSON, CSV and text at the end."""

import csv
import sys

import numpy as np

from ekg.distil import bank_files
from ekg.io import files


def write_results(out, name, rows, text, **more):
    """Writes NAME.json, NAME.csv and NAME.txt into a folder, and prints the text.

    Args:
        out: pathlib.Path of the folder.
        name: name of the files.
        rows: list of dicts with the same keys; the CSV file omits lists and dicts in them.
        text: one-line summary of the result.
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
    """Formats a heading and rows of cells, of any type, as a Markdown table."""
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def known_rows(path, key):
    """Returns the rows that an earlier call wrote to a file, {row[key]: row}; {} without a file."""
    if not path.exists():
        return {}
    return {row[key]: row for row in files.read_json_lines(path)}


def row_key(path, batches, *settings):
    """Returns a text that identifies a measurement.

    Args:
        path: parameter file of the network; its contents count, not its name.
        batches: data.Batches on which the network is measured.
        settings: all further values on which the result depends.
    """
    entries = (files.sha256(path), data_key(batches.split), *settings, batches.batch_size)
    return "|".join(map(str, entries))


def data_key(split):
    """Returns a text that identifies the images and labels of a data.Split."""
    fingerprint = bank_files.fingerprint(split)
    return "".join(fingerprint[name][:16] for name in ("labels", "sample"))


def tells_sign(interval):
    """Returns whether all numbers of an interval (low, high) have the same sign."""
    low, high = interval
    return low > 0 or high < 0


def mean_and_deviation(values):
    """Returns (mean, sample standard deviation) of a list; a single value has deviation 0."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return float(np.mean(values)), deviation
