"""Runs the phases whose names it reads, and says how long each took; of the revision that stands
first on PYTHONPATH.

benchmarks/performance.py lets two such processes, one a revision, work in turn. It uses nothing
that both do not have, so no
other benchmark. It says first, as JSON, what there is: {name: [multiply-accumulates, what is
    counted, unit of its rate]}.
"""

import argparse
import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import keras
import nets
import numpy as np
import op_utils
import tensorflow as tf
from ekg.data import augment
from ekg.io import files
from ekg.data.dataset import NUM_VIEWS, Batches
from ekg.devices.compute import Compute
from ekg.distil import bank, losses
from ekg.graph import records, registry
from ekg.graph.execute import ExecutionOptions, pure_forward, read_variables
from ekg.network.supernet import Supernet
from ekg.searching import criteria
from ekg.searching.history import HistoryEntry
from ekg.searching.objective import Objective
from ekg.searching.proposals import propose
from ekg.searching.targets import Flops
from ekg.searching.settings import SearchSettings
from ekg.train.step import StepOptions, Trainer

PEAK_SIZE = 4096
TEACHERS = 5
TEMPERATURE = 4.0  # of the distillation


def parse_args():
    parser = argparse.ArgumentParser(description="Time the phases of a run.")
    parser.add_argument("--arch", default="ResNet-56", choices=nets.archs_for((32, 32, 3)))
    parser.add_argument("--trained_param", required=True)
    parser.add_argument("--data_path", required=True, help="CIFAR-10")
    parser.add_argument(
        "--history", required=True, help="history.jsonl of a search of this network"
    )
    parser.add_argument(
        "--steps", type=float, nargs="+", default=[0.1, 0.9], help="shares of the search"
    )
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--bank_images", type=int, default=8192)
    parser.add_argument("--precision", default="float32")
    return parser.parse_args()


@dataclasses.dataclass(frozen=True)
class Work:
    """What is timed.

    Attributes:
        run: does it once.
        multiply_accumulates: that it takes.
        count: of what it makes, or 0.
        unit: of their rate.
    """

    run: Callable
    multiply_accumulates: float
    count: int = 0
    unit: str = "s"


def matrix_product():
    """Returns the Work of a float32 matrix product: the peak of the machine."""
    matrix = tf.random.stateless_normal((PEAK_SIZE, PEAK_SIZE), (0, 0))
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(matrix, matrix)))
    return Work(lambda: product().numpy(), float(PEAK_SIZE) ** 3)


def call_flops(supernet):
    """Returns the multiply-accumulates of an image at every position of the program, nothing
    masked.
    """
    flops = []
    for step in supernet.program:
        layer = getattr(step, "layer", None)
        record = registry.record_of(layer) if layer is not None else None
        shape = supernet.graph.shapes[step.output] if record else ()
        flops.append(
            sum(
                records.spatial_size(shape, len(shape) - 1) * math.prod(weight.shape)
                for weight in getattr(layer, "weights", ())
                if record and weight.name in record.multiplies
            )
        )
    return np.array(flops)


def search_steps(args, supernet, history, data):
    """Returns {name: Work} of one search step at each place asked for."""
    split = data.last_of_each_class(SearchSettings().val_per_class, 0).in_memory()
    objective = Objective(
        supernet,
        Batches(split, data.normalise, SearchSettings().search_batch_size),
        compute=Compute(dtype=args.precision),
    )
    objective.add_knowledge(supernet.whole())
    flops, found = call_flops(supernet), {}
    for share in args.steps:
        number = round(share * (len(history) - 1))
        present = history[number].subnetwork

        def step(present=present):
            objective.add_knowledge(present)
            scores = criteria.score_channels(
                "ekg", criteria.CriterionContext(objective, present, 0)
            )
            ranked, candidates = propose(supernet, present, scores, Flops(0.01), 0.2)
            objective.scores(ranked, candidates)
            return [group for group, _ in candidates]

        tried = step()
        # Importance goes forward and back to the activations; the knowledge of the winner counts
        # half a pass.
        work = 2.5 * flops.sum() + sum(flops[supernet.first_use(group) :].sum() for group in tried)
        found[f"search step {number}, {len(tried)} candidates"] = Work(
            step, float(work * objective.num_images)
        )
    return found


def training_step(args, data, model_of, num_views, loss_fn):
    """Returns the Work of a training step of one batch."""
    strategy, rng = op_utils.make_strategy(), np.random.default_rng(0)
    with strategy.scope():
        model = model_of()
    batch = {
        "images": data.train.read(np.arange(args.batch_size)),
        "labels": data.train.labels[: args.batch_size],
        "draws": rng.random((args.batch_size, num_views, augment.NUM_DRAWS), np.float32),
    }
    if num_views > 1:
        batch["bank"] = rng.normal(size=(args.batch_size, TEACHERS, data.num_classes)).astype(
            np.float32
        )
    trainer = Trainer(
        strategy,
        model,
        loss_fn,
        weight_decay=5e-4,
        options=StepOptions(1, op_utils.use_xla("auto"), args.precision),
    )
    supernet, images = Supernet(model), args.batch_size * num_views
    return Work(
        lambda: trainer.step(batch, 0.01)["loss"].numpy(),
        3 * supernet.complexity(supernet.whole()).flops * images,
        images,
        "images/s" if num_views == 1 else "views/s",
    )


def memory_bank(args, supernet, history, data):
    """Returns {name: Work} of a bank of some images, and of its networks alone; masked channels do
    not count.
    """
    teachers = [
        history[step] for step in bank.select_teachers([entry.loss for entry in history], TEACHERS)
    ]
    batches = Batches(data.train.take(np.arange(args.bank_images)), data.normalise, 256)
    ready = [data.normalise(images) for images in batches.images()]

    def build():
        with tempfile.TemporaryDirectory() as folder:
            bank.build_bank(
                Path(folder) / "bank", supernet, teachers, batches, Compute(dtype=args.precision)
            )

    def forward_alone(entry):
        model = supernet.cut(entry.subnetwork)
        forward = pure_forward(model, ExecutionOptions(args.precision, norms_alone=True))
        function = tf.function(lambda images: forward(*read_variables(model), images, True)[0])
        for images in (
            ready[0],
            ready[-1],
        ):  # so that the time is without that of making the graphs
            function(images)
        return function

    functions = [forward_alone(entry) for entry in teachers]

    def run_alone():
        for function in functions:
            for images in ready:
                function(images).numpy()

    work = args.bank_images * sum(supernet.complexity(entry.subnetwork).flops for entry in teachers)
    return {
        name: Work(run, work, args.bank_images * len(teachers), "rows/s")
        for name, run in (
            ("memory bank", build),
            ("memory bank, forward passes of its cut networks alone", run_alone),
        )
    }


def make_work(args):
    """Returns {name: Work} of all phases."""
    data = dataloader.load("CIFAR10", args.data_path)
    params = utils.load_params(args.trained_param)
    supernet = Supernet(nets.from_params(args.arch, params, data.num_classes, args.trained_param))
    history = [HistoryEntry.from_json(line) for line in files.read_json_lines(Path(args.history))]
    found = history[-1].subnetwork
    return {
        "peak": matrix_product(),
        **search_steps(args, supernet, history, data),
        "training the unpruned network, one view": training_step(
            args, data, lambda: nets.build(args.arch, data.num_classes), 1, losses.baseline(data)
        ),
        "fine-tuning the pruned network, two views": training_step(
            args,
            data,
            lambda: supernet.cut(found),
            NUM_VIEWS,
            losses.fine_tuning(data, "ensemble", TEMPERATURE),
        ),
        **memory_bank(args, supernet, history, data),
    }


def main():
    args = parse_args()
    keras.utils.set_random_seed(0)
    phases = make_work(args)
    print(
        "RESULT "
        + json.dumps(
            {name: [one.multiply_accumulates, one.count, one.unit] for name, one in phases.items()}
        ),
        flush=True,
    )
    for line in sys.stdin:
        start = time.perf_counter()
        phases[line.strip()].run()
        print("RESULT " + json.dumps(time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
