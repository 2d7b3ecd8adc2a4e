"""Seconds of every phase of a run, as one JSON line; of the revision that stands first on PYTHONPATH.

    PYTHONPATH=CHECKOUT python benchmarks/phases.py --trained_param resnet56.pkl --data_path cifar-10-batches-py \
        --history history.jsonl

benchmarks/performance.py runs it for two revisions in turn. It uses nothing that both do not have: so no other benchmark.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import keras
import nets
import numpy as np
import op_utils
import tensorflow as tf
from ekg import augment, files
from ekg.data import NUM_VIEWS, Batches
from ekg.devices.compute import Compute
from ekg.devices.team import Team
from ekg.distil import bank, losses
from ekg.graph import records
from ekg.network.supernet import Supernet
from ekg.search import criteria
from ekg.search.history import HistoryEntry
from ekg.search.objective import Objective
from ekg.search.proposals import propose
from ekg.search.targets import Flops
from ekg.settings import SearchSettings
from ekg.train.step import StepOptions, Trainer

PEAK_SIZE = 4096
TEACHERS = 5
TEMPERATURE = 4.0  # of the distillation


def parse_args():
    parser = argparse.ArgumentParser(description="Time the phases of a run.")
    parser.add_argument("--arch", default="ResNet-56", choices=nets.archs_for((32, 32, 3)))
    parser.add_argument("--trained_param", required=True)
    parser.add_argument("--data_path", required=True, help="CIFAR-10")
    parser.add_argument("--history", required=True, help="history.jsonl of a search of this network")
    parser.add_argument("--steps", type=float, nargs="+", default=[0.1, 0.9], help="shares of the search")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--bank_images", type=int, default=8192)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--precision", default="float32")
    return parser.parse_args()


def median_seconds(function, runs):
    """Returns the median seconds of a call, after one that is not timed."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure_peak():
    """Returns floating-point operations a second, two for a multiply-accumulate, of a float32 matrix product."""
    matrix = tf.random.stateless_normal((PEAK_SIZE, PEAK_SIZE), (0, 0))
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(matrix, matrix)))
    return 2 * PEAK_SIZE**3 / median_seconds(lambda: product().numpy(), 5)


def call_flops(supernet):
    """Returns the multiply-accumulates of an image at every position of the program, nothing masked."""
    flops = []
    for step in supernet.program:
        layer = getattr(step, "layer", None)
        record = records.record_of(layer) if layer is not None else None
        shape = supernet.graph.shapes[step.output] if record else ()
        flops.append(sum(records.spatial_size(shape, len(shape) - 1) * math.prod(weight.shape)
                         for weight in getattr(layer, "weights", ()) if record and weight.name in record.multiplies))
    return np.array(flops)


def search_steps(args, supernet, history, data):
    """Returns a list of {"step", "candidates", "seconds", "work"} of a search step at each place asked for."""
    split = data.last_of_each_class(SearchSettings().val_per_class, 0).in_memory()
    objective = Objective(supernet, Batches(split, data.normalise, SearchSettings().search_batch_size),
                          compute=Compute(dtype=args.precision))
    flops, found = call_flops(supernet), []
    objective.add_knowledge(supernet.whole())
    for share in args.steps:
        number, tried = round(share * (len(history) - 1)), []
        present = history[number].subnetwork

        def step(present=present, tried=tried):
            objective.add_knowledge(present)
            scores = criteria.score_channels("ekg", criteria.CriterionContext(objective, present, 0))
            ranked, candidates = propose(supernet, present, scores, Flops(0.01), 0.2)
            objective.scores(ranked, candidates)
            tried[:] = [group for group, _ in candidates]
        seconds = median_seconds(step, args.runs)
        # Importance goes forward and back to the activations; the knowledge of the winner counts half a pass.
        work = 2.5 * flops.sum() + sum(flops[supernet.first_use(group):].sum() for group in tried)
        found.append({"step": number, "candidates": len(tried), "seconds": seconds,
                      "work": float(work * objective.num_images)})
    return found


def training_seconds(args, data, model_of, num_views, loss_fn):
    """Returns (seconds of a step of one batch, multiply-accumulates of it)."""
    strategy, rng = op_utils.make_strategy(), np.random.default_rng(0)
    with strategy.scope():
        model = model_of()
    batch = {"images": data.train.read(np.arange(args.batch_size)), "labels": data.train.labels[:args.batch_size],
             "draws": rng.random((args.batch_size, num_views, augment.NUM_DRAWS), np.float32)}
    if num_views > 1:
        batch["bank"] = rng.normal(size=(args.batch_size, TEACHERS, data.num_classes)).astype(np.float32)
    trainer = Trainer(strategy, model, loss_fn, weight_decay=5e-4,
                      options=StepOptions(1, op_utils.use_xla("auto"), args.precision))
    supernet = Supernet(model)
    work = 3 * supernet.complexity(supernet.whole()).flops * args.batch_size * num_views
    return median_seconds(lambda: trainer.step(batch, 0.01)["loss"].numpy(), args.runs + 2), work


def bank_seconds(args, supernet, history, data):
    """Returns (seconds of a bank of some images, multiply-accumulates of it without the masked channels)."""
    teachers = [history[step] for step in bank.select_teachers([entry.loss for entry in history], TEACHERS)]
    batches = Batches(data.train.take(np.arange(args.bank_images)), data.normalise, 256)

    def build():
        with tempfile.TemporaryDirectory() as folder:
            bank.build_bank(Path(folder) / "bank", supernet, teachers, batches, Compute(dtype=args.precision))
    work = args.bank_images * sum(supernet.complexity(entry.subnetwork).flops for entry in teachers)
    start = time.perf_counter()
    build()
    return time.perf_counter() - start, work


def main():
    args = parse_args()
    keras.utils.set_random_seed(0)
    data = dataloader.load("CIFAR10", args.data_path)
    params = utils.load_params(args.trained_param)
    supernet = Supernet(nets.from_params(args.arch, params, data.num_classes, args.trained_param))
    history = [HistoryEntry.from_json(line) for line in files.read_json_lines(Path(args.history))]
    op_utils.make_strategy()
    Team()
    peak, result = measure_peak(), {}
    result["search"] = search_steps(args, supernet, history, data)
    found = history[-1].subnetwork
    for name, model_of, num_views, loss_fn in (
            ("baseline", lambda: nets.build(args.arch, data.num_classes), 1, losses.baseline(data)),
            ("fine-tune", lambda: supernet.cut(found), NUM_VIEWS, losses.fine_tuning(data, "ensemble", TEMPERATURE))):
        seconds, work = training_seconds(args, data, model_of, num_views, loss_fn)
        result[name] = {"seconds": seconds, "images": args.batch_size * num_views, "work": work}
    seconds, work = bank_seconds(args, supernet, history, data)
    result["bank"] = {"seconds": seconds, "images": TEACHERS * args.bank_images, "work": work}
    print("RESULT " + json.dumps(result | {"peak": (peak + measure_peak()) / 2, "arch": args.arch}))


if __name__ == "__main__":
    main()
