"""Measures how CPU time and memory of each part of a job grow with groups, classes and examples.

    python -m benchmarks.load --out docs

Every size runs in a process of its own. CPU time is measured, as it does not depend on what else
runs on the machine. The network is small in all else, so that the program's own work shows.
"""

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import keras
import numpy as np
from keras import layers

from analyses.results import markdown_table
from benchmarks import growth, performance
from ekg.data.dataset import TrainingBatches, mixed_order
from ekg.data.own import make_data
from ekg.devices import compute
from ekg.distil import bank, losses
from ekg.goal import hold_out
from ekg.network.supernet import Supernet
from ekg.process.memory import Peak, resident_mib
from ekg.run.arguments import origin
from ekg.run.folder import RunFolder
from ekg.searching.front import count_shared
from ekg.searching.criteria import CriterionContext, score_channels
from ekg.searching.history import HistoryEntry
from ekg.searching.objective import Objective
from ekg.searching.proposals import propose
from ekg.searching.settings import SearchSettings
from ekg.train.evaluate import evaluate
from ekg.train.step import StepOptions, Trainer

SIZES = {
    "groups": (125, 250, 500, 1000),
    "classes": (10, 100, 1000, 10_000),
    "examples": (1000, 10_000, 100_000, 1_000_000),
}
PICTURE = "load.png"
SIZE, WIDTH = 4, 8  # of images, and channels of a group
BATCH = 8  # images, where the groups grow
MANY = 256  # images, where the classes grow
TOGETHER = 1000  # images of a batch, where the examples grow
ENTRIES = 100  # of a history
LARGEST_RUN = 1000  # groups
RECURSION = 20_000  # Keras follows the layers of a network by recursion
SPREAD = 16  # candidates that are evaluated
OUTSIDE = "search step, outside the network's arithmetic"
STEP = "search step, per candidate"


class Parts:
    """CPU seconds and memory of the parts of a job.

    Attributes:
        measured: {part: {"seconds": CPU seconds, "mib": MiB that it took besides, at its peak}}.
    """

    def __init__(self):
        self.measured = {}

    @contextlib.contextmanager
    def part(self, name, count=1):
        """Measures its block, whose seconds are divided by a count."""
        before = resident_mib()
        with Peak() as peak:
            start = time.process_time()
            yield
            seconds = time.process_time() - start
        self.measured[name] = {"seconds": seconds / count, "mib": max(peak.host_mib - before, 0.0)}


class Arithmetic:
    """Sums the CPU seconds of all compiled functions in its block."""

    def __enter__(self):
        self.seconds, self._call = 0.0, compute.Compiled.__call__

        def call(function, *args):
            start = time.process_time()
            result = self._call(function, *args)
            self.seconds += time.process_time() - start
            return result

        compute.Compiled.__call__ = call
        return self

    def __exit__(self, *_):
        compute.Compiled.__call__ = self._call


def chain(num_groups=2, classes=10):
    """Returns a network of convolutions, each of which is a channel group."""
    x = inputs = keras.Input((SIZE, SIZE, 3))
    for _ in range(num_groups):
        x = layers.Conv2D(WIDTH, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def noise(count, classes):
    """Returns (images, labels) of noise."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)
    return images, (np.arange(count) % classes).astype(np.int32)


def measure_network(parts, model, data, batch_size, runs=True):
    """Measures what a job does with a network and a few examples.

    Args:
        parts: Parts.
        model: the network.
        data: its data set.
        batch_size: images of a batch.
        runs: whether the network runs, too; tracing its graphs takes most of the time.
    """
    with parts.part("supernet"):
        supernet = Supernet(model)
    whole = supernet.whole()
    batches = data.batches(data.train, batch_size)
    history = [HistoryEntry(0, None, whole, 1.0, 1.0, 0.1, -2.0, 1, 0.0)]
    importance = np.random.default_rng(0).random(supernet.layout.num_channels)
    settings = SearchSettings(target_rate=0.01)
    with parts.part("candidates of a search step, per group", len(supernet.groups)):
        propose(supernet, whole, importance, settings.targets(), settings.search_step, {})
    half = whole.with_widths({group.name: 0.5 for group in supernet.groups})
    with parts.part("cut"):
        cut = supernet.cut(half)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        with parts.part("result file, written and read"):
            utils.save_params(cut, path / "p.pkl")
            utils.load_params(path / "p.pkl")
        entries = [dataclasses.replace(history[0], step=step) for step in range(ENTRIES)]
        run = RunFolder(path)
        with parts.part(f"{ENTRIES} steps of a history, written and read"):
            for entry in entries:
                run.append_history(entry)
            run.history()
        with parts.part("steps that two searches share"):
            count_shared(supernet, entries, SearchSettings(target_rate=0.5))
        if not runs:
            return
        objective = Objective(supernet, batches)
        objective.add_knowledge(whole)
        measure_step(parts, supernet, objective, settings)
        with parts.part("memory bank"):
            bank.build_bank(path / "bank", supernet, history, batches)
        with parts.part("evaluation"):
            evaluate(cut, batches)
    trainer = Trainer(
        compute.Compute().team.strategy,
        cut,
        losses.fine_tuning(data, "none", 4.0),
        weight_decay=1e-4,
        options=StepOptions(),
    )
    batch = next(TrainingBatches(data, batch_size, 0, num_views=1).epoch(0))
    trainer.step(batch, 0.01)
    with parts.part("training step"):
        float(trainer.step(batch, 0.01)["loss"])


def measure_step(parts, supernet, objective, settings):
    """Measures a search step of which a few candidates are evaluated, and the others scaled up."""
    whole, target = supernet.whole(), settings.targets()

    def choose():
        importance = score_channels("ekg", CriterionContext(objective, whole, 0))
        return propose(supernet, whole, importance, target, settings.search_step, {})

    def score():
        return objective.scores(present, candidates[:: -(-len(candidates) // SPREAD)])

    present, candidates = choose()
    num_scored = len(score())  # both trace their graphs
    scale = len(candidates) / num_scored
    taken = []
    for function in (choose, score):
        start = time.process_time()
        with Arithmetic() as arithmetic:
            function()
        taken.append((time.process_time() - start, arithmetic.seconds))
    (chosen, chosen_inside), (scored, scored_inside) = taken
    seconds = chosen + scored * scale
    outside = seconds - chosen_inside - scored_inside * scale
    parts.measured[STEP] = {"seconds": scored / num_scored, "mib": 0.0}
    parts.measured[OUTSIDE] = {
        "seconds": outside,
        "mib": 0.0,
        "share": outside / seconds,
        "candidates": len(candidates),
    }


def measure_groups(parts, count, largest_run):
    data = make_data(chain(), noise(BATCH, 4))
    measure_network(parts, chain(count), data, BATCH, runs=count <= largest_run)


def measure_classes(parts, count, _):
    model = chain(classes=count)
    with parts.part("labels"):
        data = make_data(model, noise(max(MANY, 2 * count), count))
        data.last_of_each_class(1, 0)
    few = dataclasses.replace(data, train=data.train.take(np.arange(MANY)))
    measure_network(parts, model, few, MANY)


def measure_examples(parts, count, _):
    # Rows of the bank that are smaller than a page of memory would share pages
    model, examples = chain(classes=100), noise(count, 100)
    supernet = Supernet(model)
    with parts.part("data and labels"):
        data = make_data(model, examples)
        data.class_sizes  # noqa: B018
    with parts.part("subset, D_val and held-out examples"):
        data.first_of_each_class(count // 200, 0)
        data.last_of_each_class(count // 200, 0)
        hold_out(data.strata, 0.1, 0)
    batches = data.batches(data.train, TOGETHER, mixed_order(data.strata))
    history = [HistoryEntry(0, None, supernet.whole(), 1.0, 1.0, 0.1, -2.0, 1, 0.0)]
    with tempfile.TemporaryDirectory() as folder:
        with parts.part("memory bank"):
            bank.build_bank(Path(folder), supernet, history, batches)
        memory_bank = bank.open_bank(Path(folder))
        training = TrainingBatches(
            data,
            TOGETHER,
            0,
            num_views=1,
            complete=lambda batch: {"bank": memory_bank.rows(batch["index"])},
        )
        with parts.part("batches of an epoch with their rows of the bank"):
            for _ in training.epoch(0):
                pass
    with parts.part("evaluation"):
        evaluate(model, batches)


MEASURES = {"groups": measure_groups, "classes": measure_classes, "examples": measure_examples}


def measure(sizes=None, repeat=1, largest_run=LARGEST_RUN):
    """Returns {what grows: {part: {"counts", "seconds", "mib"}}}, each size in its own process.

    Args:
        sizes: {what grows: counts}; None means SIZES.
        repeat: number of processes per size, of which the fastest counts.
        largest_run: the most groups of a network that also runs.
    """
    result = {}
    for axis, counts in (sizes or SIZES).items():
        parts = result.setdefault(axis, {})
        for count in counts:
            runs = [_measure_alone(axis, count, largest_run) for _ in range(repeat)]
            for name in runs[0]:
                found = min((run[name] for run in runs), key=lambda values: values["seconds"])
                part = parts.setdefault(name, {})
                for key, value in {"counts": count, **found}.items():
                    part.setdefault(key, []).append(value)
    return result


def _measure_alone(axis, count, largest_run):
    flags = ["--alone", axis, str(count), "--largest_run", str(largest_run)]
    command = [sys.executable, "-m", "benchmarks.load", *flags]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def slope(part):
    """Returns the log-log slope of seconds over counts between the two largest counts, as text."""
    if len(part["counts"]) < 2:
        return ""
    return f"{growth.Curve('', part['counts'][-2:], part['seconds'][-2:]).slope:.2f}"


def markdown(result, picture, revision):
    """Returns the lines of a page on what measure() returned, and the revision of the code."""
    lines = [
        "## Load",
        "",
        f"Made by `python -m benchmarks.load`, revision {revision}. CPU seconds of each part by "
        "the number of channel groups, classes and examples, memory at the largest, and the "
        "log-log slope between the two largest (1 = linear). Each number grows alone; the rest is "
        f"small: {WIDTH} channels per group, images of {SIZE}x{SIZE}. With more groups a step of a "
        "search tries more of them, and each candidate runs the layers after its group, so its "
        "time is given per candidate. The bank is read through a memory map whose pages are "
        "released after every batch, so rows take up to one page fault each; banks of less than "
        "some hundred MiB take fewer, hence a slope above 1.",
        "",
        f"![CPU time by groups, classes and examples]({picture})",
        "",
    ]
    for axis, parts in result.items():
        counts = sorted({count for part in parts.values() for count in part["counts"]})
        head = ["part", *(f"{count:,} {axis}" for count in counts), "MiB", "slope"]
        rows = [
            [
                name,
                *(_seconds_at(part, count) for count in counts),
                f"{part['mib'][-1]:,.0f}" if max(part["mib"]) else "",
                slope(part),
            ]
            for name, part in parts.items()
        ]
        lines += [markdown_table(head, rows), ""]
        not_run = [f"{count:,}" for count in SIZES[axis] if count not in counts]
        if not_run:
            lines += [f"Not run: {', '.join(not_run)} {axis}.", ""]
    outside = result.get("groups", {}).get(OUTSIDE)
    if outside:
        lines += [
            f"With {outside['counts'][-1]:,} groups, {outside['candidates'][-1]:,} candidates "
            f"and {BATCH} images, {outside['share'][-1]:.1%} of a search step's CPU time is "
            "outside the network's compiled functions.",
            "",
        ]
    return lines


def _seconds_at(part, count):
    """Returns the cell of a count, empty where the part was not measured."""
    if count not in part["counts"]:
        return ""
    return f"{part['seconds'][part['counts'].index(count)]:.3g}"


def draw(result, path):
    """Draws the CPU seconds of all parts, one picture per number that grows, on log-log axes."""
    from ekg.report.pictures import plt  # it imports matplotlib

    figure, all_axes = plt.subplots(1, len(result), figsize=(15, 5), layout="constrained")
    for axes, (axis, parts) in zip(np.atleast_1d(all_axes), result.items()):
        for name, part in parts.items():
            axes.plot(part["counts"], part["seconds"], "o-", label=f"{name}, {slope(part)}")
        counts = np.unique([count for part in parts.values() for count in part["counts"]])
        least = min(min(part["seconds"]) for part in parts.values())
        axes.plot(counts, least * counts / counts[0], "k:", label="linear")
        axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="CPU seconds")
        axes.legend(fontsize=7, title="part, slope at the end", title_fontsize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(args):
    if args.alone:
        axis, count = args.alone
        parts = Parts()
        keras.utils.set_random_seed(0)
        sys.setrecursionlimit(RECURSION)
        MEASURES[axis](parts, int(count), args.largest_run)
        print(json.dumps(parts.measured))
        return
    result = measure(repeat=args.repeat, largest_run=args.largest_run)
    revision = origin()["revision"] or "unknown"
    lines = markdown(result, PICTURE, revision[:7])
    print("\n".join(lines))
    if args.out:
        draw(result, args.out / PICTURE)
        performance.add_lines(args.out, "load", result, lines)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Measure how parts of a job grow with groups, classes and examples."
    )
    parser.add_argument("--out", type=Path, help="folder of performance.md, which gets the figures")
    parser.add_argument("--repeat", type=int, default=1, help="processes per size; the best counts")
    parser.add_argument(
        "--largest_run", type=int, default=LARGEST_RUN, help="most groups of a network that runs"
    )
    parser.add_argument("--alone", nargs=2, help="print the figures of one size, as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    utils.run_script(main, parse_args)
