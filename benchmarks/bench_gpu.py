"""Times training step, search step and memory bank on a GPU, with and without XLA, in all formats.

    python -m benchmarks.bench_gpu --arch ResNet-56 --json gpu.json

It needs no data. Shares of peak are relative to the matrix product in the same format. Without a
GPU it runs on the CPU. --out docs adds the table to docs/performance.md.
"""

import argparse
import itertools
import tempfile
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import keras
import nets
import numpy as np
import op_utils
import tensorflow as tf
from analyses.records import device_name
from benchmarks import common, performance
from benchmarks.bench_scale import make_batch
from ekg.io import files
from ekg.data.dataset import NUM_VIEWS, Batches
from ekg.devices import kind
from ekg.devices.compute import Compute
from ekg.devices.team import Team
from ekg.distil import bank, losses
from ekg.process.memory import Peak
from ekg.network.supernet import Supernet
from ekg.run import environment
from ekg.run.arguments import VERSIONS, origin
from ekg.searching import criteria
from ekg.searching.history import HistoryEntry
from ekg.searching.objective import Objective
from ekg.searching.proposals import propose
from ekg.searching.targets import Flops
from ekg.train.step import StepOptions, Trainer

FORMATS = {
    "float32": ("float32", False),
    "TF32": ("float32", True),
    "bfloat16": ("bfloat16", False),
    "float16": ("float16", False),
}
PEAK_SIZE = 8192  # rows of the matrices whose product is the peak
WIDTHS = (1.0, 0.9, 0.8, 0.7, 0.6)  # of the teachers


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Time a GPU.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--arch", default="ResNet-56", choices=nets.archs_for((32, 32, 3)))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--compile", nargs="+", choices=("off", "on"), default=["off", "on"])
    parser.add_argument(
        "--batch_size", type=int, default=128, help="images per training step, each in two views"
    )
    parser.add_argument("--images", type=int, default=512, help="images of D_val")
    parser.add_argument(
        "--candidates", type=int, default=16, help="largest number of candidates of the search step"
    )
    parser.add_argument("--bank_images", type=int, default=16_384)
    parser.add_argument(
        "--peak_size",
        type=int,
        default=PEAK_SIZE,
        help="rows of the matrices whose product is the peak",
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--json", type=Path, help="file for all figures and a description of the machine"
    )
    parser.add_argument(
        "--out", type=Path, help="folder to whose performance.md the table is added"
    )
    return parser.parse_args(argv)


def training(args, strategy, data, dtype, use_xla):
    """Returns (seconds, multiply-accumulates, images) of a fine-tuning step."""
    with strategy.scope():
        model = nets.build(args.arch, 10)
    supernet = Supernet(model)
    batch = make_batch(data.train, args.batch_size)
    trainer = Trainer(
        strategy,
        model,
        losses.fine_tuning(data, "ensemble", 4.0),
        weight_decay=5e-4,
        options=StepOptions(1, use_xla, dtype),
    )
    seconds = common.seconds(lambda: trainer.step(batch, 0.01)["loss"].numpy(), args.runs)
    images = NUM_VIEWS * args.batch_size
    return seconds, 3 * supernet.complexity(supernet.whole()).flops * images, images


def searching(args, strategy, data, dtype, use_xla):
    """Returns (seconds, multiply-accumulates, candidates) of a search step."""
    supernet = Supernet(nets.build(args.arch, 10))
    batches = Batches(data.train.take(np.arange(args.images)), data.normalise, 256)
    objective = Objective(supernet, batches, compute=Compute(Team(strategy), use_xla, dtype))
    whole = supernet.whole()
    objective.add_knowledge(whole)
    scores = criteria.score_channels("ekg", criteria.CriterionContext(objective, whole, 0))
    present, candidates = propose(supernet, whole, scores, Flops(0.01), 0.2)
    candidates = candidates[: args.candidates]

    def step():
        criteria.score_channels("ekg", criteria.CriterionContext(objective, whole, 0))
        objective.scores(present, candidates)
        objective.add_knowledge(whole)

    flops = common.call_flops(supernet.graph)
    candidate_flops = 0  # a candidate is computed from the first gate of its group
    for group, _ in candidates:
        for item in supernet.program[supernet.first_use(group) :]:
            candidate_flops += flops.get(getattr(item, "output", None), 0)
    work = args.images * (2.5 * sum(flops.values()) + candidate_flops)
    return common.seconds(step, args.runs), work, len(candidates)


def banking(args, strategy, data, dtype, use_xla):
    """Returns (seconds, multiply-accumulates without masks, rows) of a memory bank."""
    supernet = Supernet(nets.build(args.arch, 10))
    teachers = [
        HistoryEntry(
            step,
            None,
            supernet.whole().with_widths({group.name: width for group in supernet.groups}),
            1.0,
            0.0,
            0.0,
            0.0,
            1,
            0.0,
        )
        for step, width in enumerate(WIDTHS)
    ]
    batches = Batches(
        data.train.take(np.arange(args.bank_images) % len(data.train)), data.normalise, 256
    )

    def build():
        with tempfile.TemporaryDirectory() as folder:
            bank.build_bank(
                Path(folder) / "bank",
                supernet,
                teachers,
                batches,
                Compute(Team(strategy), use_xla, dtype),
            )

    rows = args.bank_images * len(teachers)
    return common.seconds(build, 1), rows * supernet.complexity(supernet.whole()).flops, rows


def main(args):
    if args.out:
        files.read_json(args.out / performance.NAMES)  # fails early if the folder has no page
    keras.utils.set_random_seed(0)
    strategy = op_utils.make_strategy()
    data = common.random_data(max(args.batch_size, args.images))
    rows = []
    for name, compiles in itertools.product(args.formats, args.compile):
        dtype, is_tf32 = FORMATS[name]
        tf.config.experimental.enable_tensor_float_32_execution(is_tf32)
        peak = common.measure_peak(dtype, args.peak_size)
        for what, measure, unit in (
            ("training step, two views", training, "views/s"),
            ("search step", searching, "candidates"),
            ("memory bank with its compilation", banking, "rows/s"),
        ):
            with Peak() as memory:
                seconds, work, count = measure(args, strategy, data, dtype, compiles == "on")
            rate = f"{count} {unit}" if unit == "candidates" else f"{count / seconds:,.0f} {unit}"
            rows.append(
                [
                    what,
                    name,
                    compiles,
                    f"{seconds:.3f}",
                    rate,
                    f"{2 * work / seconds / peak:.3f}",
                    str(memory),
                ]
            )
            print(" | ".join(rows[-1]), flush=True)
    provenance = origin()
    name = (
        f"{args.arch} on {device_name(provenance)}; TensorFlow {tf.__version__}, Keras "
        f"{keras.__version__}, revision {(provenance['revision'] or 'unknown')[:7]}; "
        f"{NUM_VIEWS * args.batch_size} views a training step, D_val of {args.images} images, a "
        f"bank of {args.bank_images} images and {len(WIDTHS)} teachers, medians of {args.runs}:"
    )
    print(f"\n{name}")
    common.print_table(performance.SECTIONS["formats"][-1], rows)
    if args.json:
        head = performance.SECTIONS["formats"][-1]
        files.write_json(
            args.json,
            {
                "origin": provenance,
                "environment": environment.of_team(Team(strategy)),
                "versions": VERSIONS,
                "gpus": [{**kind.details_of(gpu), "name": gpu.name} for gpu in kind.gpus()],
                "rows": [dict(zip(head, row)) for row in rows],
            },
        )
    if args.out:
        performance.add_rows(args.out, "formats", name, rows)


if __name__ == "__main__":
    utils.run_script(main, parse_args)
