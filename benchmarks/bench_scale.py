"""Times training and search step with several devices, micro-batches and number formats.

    python -m benchmarks.bench_scale --arch ResNet-56

Every row runs in a process of its own, because devices and peak memory belong to a process; formats
are compared within one. Virtual CPU devices share the machine's cores: they show that the work is
shared, not a speed-up.
"""

import argparse
import json
import subprocess
import sys

import utils  # before TensorFlow: it sets TensorFlow's environment
import keras
import nets
import numpy as np
import op_utils
import tensorflow as tf
from benchmarks import common
from ekg.data import augment
from ekg.data.dataset import Batches
from ekg.devices.compute import Compute
from ekg.devices.team import Team
from ekg.data.dataset import NUM_VIEWS
from ekg.distil import losses
from ekg.network.supernet import Supernet
from ekg.process.memory import peak_memory_mib
from ekg.searching.targets import Flops
from ekg.searching import criteria
from ekg.searching.objective import Objective
from ekg.searching.proposals import propose
from ekg.train.step import StepOptions, Trainer


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Time devices, micro-batches and formats.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--arch", default="ResNet-56", choices=nets.archs_for((32, 32, 3)))
    parser.add_argument(
        "--replicas", type=int, nargs="+", default=[1, 2, 4], help="virtual devices to compare"
    )
    parser.add_argument(
        "--accum",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8],
        help="numbers of micro-batches to compare",
    )
    parser.add_argument(
        "--batch_size", type=int, default=128, help="images per training step, each in two views"
    )
    parser.add_argument("--images", type=int, default=320, help="images of D_val")
    parser.add_argument("--candidates", type=int, default=8, help="candidates of the search step")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--case", help=argparse.SUPPRESS)  # measurement of a child process
    return parser.parse_args(argv)


def make_batch(split, size):
    rng = np.random.default_rng(0)
    return {
        "images": split.images[:size],
        "labels": split.labels[:size],
        "draws": rng.random((size, NUM_VIEWS, augment.NUM_DRAWS), np.float32),
        "bank": rng.normal(size=(size, 5, 10)).astype(np.float32),
    }


def make_step(args, strategy, data, accum=1, dtype="float32"):
    """Returns a function that runs one fine-tuning step and waits for it."""
    with strategy.scope():
        model = nets.build(args.arch, 10)
    trainer = Trainer(
        strategy,
        model,
        losses.fine_tuning(data, "ensemble", 4.0),
        weight_decay=5e-4,
        options=StepOptions(accum, op_utils.use_xla("auto"), dtype),
    )
    batch = make_batch(data.train, args.batch_size)
    return lambda: trainer.step(batch, 0.01)["loss"].numpy()


def search_seconds(args, team, data, accum):
    """Returns the seconds of a search step: importance, candidates and knowledge."""
    supernet = Supernet(nets.build(args.arch, 10))
    objective = Objective(
        supernet, Batches(data.train, data.normalise, 256 // accum), compute=Compute(team)
    )
    whole = supernet.whole()
    objective.add_knowledge(whole)

    def step():
        scores = criteria.ekg(criteria.CriterionContext(objective, whole))
        present, candidates = propose(supernet, whole, scores, Flops(0.01), 0.2)
        spread = candidates[:: max(len(candidates) // args.candidates, 1)][: args.candidates]
        objective.scores(present, spread)
        objective.add_knowledge(whole)

    return common.seconds(step, args.runs)


def measure(args, case):
    """Measures a case and prints the result as JSON, in a process of its own."""
    strategy = op_utils.make_strategy(op_utils.DeviceSettings(virtual_devices=case["replicas"]))
    keras.utils.set_random_seed(0)
    data = common.random_data(max(args.images, args.batch_size))
    if case["kind"] == "format":
        whole, half = common.paired_seconds(
            *(make_step(args, strategy, data, dtype=dtype) for dtype in ("float32", "bfloat16")),
            args.runs,
        )
        result = {"float32": whole, "bfloat16": half}
    elif case["kind"] == "train":
        result = {
            "seconds": common.seconds(make_step(args, strategy, data, case["accum"]), args.runs)
        }
    else:
        result = {"seconds": search_seconds(args, Team(strategy), data, case["accum"])}
    peak = peak_memory_mib()
    print("RESULT " + json.dumps(result | {"peak_mib": round(peak)}))


def run_case(argv, **case):
    """Returns the result of measure() in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_scale", *argv, "--case", json.dumps(case)]
    process = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in process.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(f"{case}: {process.stderr[-2000:]}")
    return json.loads(lines[0].removeprefix("RESULT "))


def main(args, argv=None):
    if args.case:
        return measure(args, json.loads(args.case))
    argv = sys.argv[1:] if argv is None else argv
    views = NUM_VIEWS * args.batch_size
    rows = []
    for name, cases in (
        ("devices", [(replicas, 1) for replicas in args.replicas]),
        ("micro-batches", [(1, accum) for accum in args.accum]),
    ):
        for replicas, accum in cases:
            train = run_case(argv, kind="train", replicas=replicas, accum=accum)
            search = run_case(argv, kind="search", replicas=replicas, accum=accum)
            rows.append(
                [
                    name,
                    replicas,
                    accum,
                    f"{views / train['seconds']:.0f}",
                    train["peak_mib"],
                    f"{search['seconds']:.1f}",
                    search["peak_mib"],
                ]
            )
    formats = run_case(argv, kind="format", replicas=1)
    print(
        f"{args.arch}, batch {args.batch_size} in two views; search step of {args.candidates} "
        f"candidates on {args.images} images"
    )
    common.print_table(
        [
            "compared",
            "devices",
            "micro-batches",
            "training, views/s",
            "peak MiB",
            "search step, s",
            "peak MiB",
        ],
        rows,
    )
    print(
        f"training step: float32 {views / formats['float32']:.0f} views/s, bfloat16 "
        f"{views / formats['bfloat16']:.0f} views/s, ratio "
        f"{formats['float32'] / formats['bfloat16']:.2f}"
    )
    return rows


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    utils.run_script(main, parse_args)
