"""Predicted against measured latency of random sub-networks, all measured in turn with the unpruned
network.

    python -m benchmarks.bench_latency --networks ResNet-56 MobileNetV2-0.35 ResNet-18 --out latency

Prints the errors of the prediction, and draws predicted against measured.
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

CIFAR_CLASSES, IMAGENET_CLASSES = 10, 1000
ROUNDS, SECONDS = 40, 6.0


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Compare predicted with measured latency.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        default=["ResNet-56", "MobileNetV2-0.35", "ResNet-18"],
        help="names of nets, or of keras.applications with a width behind a dash",
    )
    parser.add_argument("--subnetworks", type=int, default=50, help="random sub-networks of each")
    parser.add_argument("--runtime", default="litert", choices=sorted(RUNTIMES))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for latency.json and latency.png")
    return parser.parse_args(argv)


def build(name):
    """Returns the unpruned network of a name, with random weights."""
    if name in nets.ARCHS:
        small = nets.ARCHS[name].SPECS[name].image_shape[0] < 100
        return nets.build(name, CIFAR_CLASSES if small else IMAGENET_CLASSES)
    kind, _, width = name.partition("-")
    return getattr(keras.applications, kind)(
        weights=None,
        classes=CIFAR_CLASSES,
        input_shape=(96, 96, 3),
        **({"alpha": float(width)} if width else {}),
    )


def draw_subnetworks(supernet, number, seed):
    """Returns random sub-networks, from narrow ones to almost whole ones, with groups of unequal
    widths.
    """
    rng = np.random.default_rng(seed)
    widths = [
        rng.uniform(0.15, 1) * rng.uniform(0.4, 1.6, len(supernet.groups)) for _ in range(number)
    ]
    return [
        supernet.whole().with_widths(
            {group.name: float(min(width, 1)) for group, width in zip(supernet.groups, row)}
        )
        for row in widths
    ]


def compare(name, args):
    """Returns {"network", "seconds" that the table took, "whole_ms", "predicted", "measured",
    "rates"}.
    """
    supernet, conditions = (
        ekg.Supernet(build(name)),
        Conditions(args.runtime, args.batch, args.threads),
    )
    runtime, start = RUNTIMES[args.runtime], time.perf_counter()
    predictor = Predictor(
        supernet, Table(conditions_of(runtime, args.batch, conditions.num_threads))
    )
    predictor.measure_(runtime)
    seconds, whole = time.perf_counter() - start, supernet.whole()
    subnetworks = draw_subnetworks(supernet, args.subnetworks, args.seed)
    timings = [
        measure_latency(
            {"whole": supernet.model, "cut": supernet.cut(one)},
            runtime,
            args.batch,
            conditions.num_threads,
            rounds=ROUNDS,
            seconds=SECONDS,
        )
        for one in subnetworks
    ]
    return {
        "network": name,
        "conditions": str(conditions),
        "seconds": round(seconds, 1),
        "whole_ms": float(np.median([pair["whole"].milliseconds for pair in timings])),
        "predicted": [predictor.seconds(one) / predictor.seconds(whole) for one in subnetworks],
        "measured": [pair["cut"].ratio for pair in timings],
        "rates": [supernet.rate(one) for one in subnetworks],
    }


def draw(path, results):
    """Draws predicted against measured, a panel a network."""
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
    results, rows = [], []
    for name in args.networks:
        results.append(compare(name, args))
        result = results[-1]
        errors = np.abs(np.array(result["predicted"]) / result["measured"] - 1)
        flops = np.abs(np.array(result["rates"]) / result["measured"] - 1)
        rows.append(
            [
                name,
                f"{result['whole_ms']:.3g}",
                f"{result['seconds']:.0f}",
                *(
                    f"{value:.1%}"
                    for value in (np.median(errors), np.quantile(errors, 0.95), errors.max())
                ),
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
