"""Compares the import time of ekg with that of TensorFlow and Keras, which it needs.

    python -m benchmarks.bench_import

Every import runs in a process of its own; the aim is a ratio of at most 1.3.
"""

import argparse
import functools
import subprocess
import sys
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
from benchmarks import common

ROOT = Path(__file__).resolve().parents[1]
STATEMENTS = ("import ekg", "import tensorflow, keras")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Time the import of ekg.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=7, help="processes per import, in turns")
    return parser.parse_args(argv)


def run_statement(statement):
    """Runs a statement in a new Python process and waits for it."""
    subprocess.run([sys.executable, "-c", statement], cwd=ROOT, check=True, capture_output=True)


def main(args):
    runs = [functools.partial(run_statement, statement) for statement in STATEMENTS]
    ekg, needed = common.paired_seconds(*runs, args.runs)
    common.print_table(
        [*(f"{statement}, s" for statement in STATEMENTS), "ratio"],
        [[f"{ekg:.2f}", f"{needed:.2f}", f"{ekg / needed:.3f}"]],
    )


if __name__ == "__main__":
    utils.run_script(main, parse_args)
