"""Compares predicted with measured latencies of random sub-networks.

    python -m benchmarks.bench_latency --networks ResNet-56 MobileNetV2-0.35 ResNet-18 --out latency

Each sub-network is measured in turns with the unpruned network. The program prints the errors of
the prediction, and draws predicted over measured latencies.
"""

import argparse
import time
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import ekg
import keras
import nets
import numpy as np
from benchmarks import common
from ekg.io import files
from ekg.latency.prediction import Predictor
from ekg.deploy.formats import RUNTIMES
from ekg.latency.table import Table, conditions_of
from ekg.latency.timing import Conditions, measure_latency

CIFAR_CLASSES = 10
IMAGENET_CLASSES = 1000
ROUNDS = 40  # largest number of rounds per measurement
SECONDS = 6.0  # longest time per measurement


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Compare predicted with measured latency.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        default=["ResNet-56", "MobileNetV2-0.35", "ResNet-18"],
        help="networks of nets, or of keras.applications with a width after a dash",
    )
    parser.add_argument(
        "--subnetworks", type=int, default=50, help="random sub-networks per network"
    )
    parser.add_argument("--runtime", default="litert", choices=sorted(RUNTIMES))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for latency.json and latency.png")
    return parser.parse_args(argv)


def build(name):
    """Returns the unpruned network with this name, with random weights."""
    if name in nets.ARCHS:
        small = nets.ARCHS[name].SPECS[name].image_shape[0] < 100
        return nets.build(name, CIFAR_CLASSES if small else IMAGENET_CLASSES)
    kind, _, width = name.partition("-")
    options = {"alpha": float(width)} if width else {}
    build_network = getattr(keras.applications, kind)
    return build_network(weights=None, classes=CIFAR_CLASSES, input_shape=(96, 96, 3), **options)


def draw_subnetworks(supernet, count, seed):
    """Draws random sub-networks with unequal widths, from narrow ones to almost unpruned ones."""
    rng = np.random.default_rng(seed)
    subnetworks = []
    for _ in range(count):
        widths = rng.uniform(0.15, 1) * rng.uniform(0.4, 1.6, len(supernet.groups))
        by_group = {
            group.name: float(min(width, 1)) for group, width in zip(supernet.groups, widths)
        }
        subnetworks.append(supernet.whole().with_widths(by_group))
    return subnetworks


def compare(name, args):
    """Measures and predicts latencies of random sub-networks.

    Returns:
        {"network", "conditions", "seconds" for the table, "whole_ms", "predicted", "measured",
        "rates"}.
    """
    supernet = ekg.Supernet(build(name))
    whole = supernet.whole()
    conditions = Conditions(args.runtime, args.batch, args.threads)
    runtime = RUNTIMES[args.runtime]
    start = time.perf_counter()
    table = Table(conditions_of(runtime, args.batch, conditions.num_threads))
    predictor = Predictor(supernet, table)
    predictor.measure_(runtime)
    seconds = time.perf_counter() - start
    subnetworks = draw_subnetworks(supernet, args.subnetworks, args.seed)
    timings = [
        measure_latency(
            {"whole": supernet.model, "cut": supernet.cut(subnetwork)},
            runtime,
            args.batch,
            conditions.num_threads,
            rounds=ROUNDS,
            seconds=SECONDS,
        )
        for subnetwork in subnetworks
    ]
    whole_seconds = predictor.seconds(whole)
    return {
        "network": name,
        "conditions": str(conditions),
        "seconds": round(seconds, 1),
        "whole_ms": float(np.median([pair["whole"].milliseconds for pair in timings])),
        "predicted": [predictor.seconds(item) / whole_seconds for item in subnetworks],
        "measured": [pair["cut"].ratio for pair in timings],
        "rates": [supernet.rate(subnetwork) for subnetwork in subnetworks],
    }


def draw(path, results):
    """Draws predicted over measured latencies, a panel per network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(results), figsize=(5 * len(results), 4.8), squeeze=False, layout="constrained"
    )
    for axes, result in zip(panels[0], results):
        axes.plot([0, 1], [0, 1], color="#6b6b6b", linewidth=1)
        axes.fill_between([0, 1], [0, 0.9], [0, 1.1], color="#cfd8e3", label="±10 %")
        axes.plot(result["measured"], result["rates"], ".", color="#d9822b", label="FLOPs")
        axes.plot(
            result["measured"], result["predicted"], "o", color="#1f6fb4", label="predicted latency"
        )
        axes.set(
            xlabel="measured share of the unpruned latency",
            ylabel="predicted, or share of the FLOPs",
            title=f"{result['network']}, {result['conditions']}",
            xlim=(0, 1.02),
            ylim=(0, 1.02),
        )
        axes.legend()
    figure.savefig(path, dpi=110)


def main(args):
    results = []
    rows = []
    for name in args.networks:
        result = compare(name, args)
        results.append(result)
        errors = np.abs(np.array(result["predicted"]) / result["measured"] - 1)
        flops = np.abs(np.array(result["rates"]) / result["measured"] - 1)
        rows.append(
            [
                name,
                f"{result['whole_ms']:.3g}",
                f"{result['seconds']:.0f}",
                f"{np.median(errors):.1%}",
                f"{np.quantile(errors, 0.95):.1%}",
                f"{errors.max():.1%}",
                f"{np.mean(errors <= 0.1):.0%}",
                f"{np.median(flops):.1%}",
            ]
        )
    print(
        f"{results[0]['conditions']}, {args.subnetworks} random sub-networks each, "
        f"{common.measure_peak() / 1e9:.0f} GFLOP/s float32 matrix product"
    )
    common.print_table(
        [
            "network",
            "unpruned, ms",
            "table, s",
            "error, median",
            "95th percentile",
            "greatest",
            "within 10 %",
            "error of FLOPs, median",
        ],
        rows,
    )
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        files.write_json(args.out / "latency.json", {"results": results})
        draw(args.out / "latency.png", results)
    return results


if __name__ == "__main__":
    utils.run_script(main, parse_args)
