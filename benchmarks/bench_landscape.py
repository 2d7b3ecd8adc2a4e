"""Times Hessian-vector products against gradients, and whole condition numbers.

    python -m benchmarks.bench_landscape --arch ResNet-56 --trained_param resnet56.pkl \\
        --data_path cifar-10-batches-py
"""

import argparse
import functools
import time

import utils  # before TensorFlow: it sets TensorFlow's environment
import keras
import nets
import numpy as np
from benchmarks import common
from ekg.data.dataset import Batches
from ekg.landscape.hessian import model_landscape
from ekg.landscape.lanczos import MAX_PRODUCTS
from ekg.searching.settings import SearchSettings


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Time Hessian-vector products.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    common.add_network_flags(parser)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument(
        "--max_products",
        type=int,
        default=MAX_PRODUCTS,
        help="largest number of products per condition number",
    )
    parser.add_argument("--runs", type=int, default=5)
    return parser.parse_args(argv)


def main(args):
    keras.utils.set_random_seed(0)
    data = common.search_data(args.data_path)
    split = data.last_of_each_class(SearchSettings().val_per_class, 0)
    batches = Batches(split, data.normalise, args.batch_size)
    model = nets.build(args.arch, 10)
    if args.trained_param:
        model = nets.from_params(
            args.arch, utils.load_params(args.trained_param), 10, args.trained_param
        )
    rows = []
    for batch_statistics in (False, True):
        landscape = model_landscape(model, batches, batch_statistics=batch_statistics)
        vector = np.random.default_rng(0).standard_normal(landscape.dimension)
        product, gradient = common.paired_seconds(
            functools.partial(landscape.product, vector),
            functools.partial(landscape.gradient, landscape.point),
            args.runs,
        )
        condition_cells = ["", "", ""]
        if args.trained_param:
            start = time.perf_counter()
            spectrum = landscape.spectrum(max_products=args.max_products)
            duration = time.perf_counter() - start
            condition = f"{spectrum.condition:.4f}"
            if not spectrum.converged:
                condition += f", residual {spectrum.residual_smallest:.3g} of the smallest"
            condition_cells = [f"{duration:.0f}", spectrum.products, condition]
        rows.append(
            [
                "of the batch" if batch_statistics else "moving",
                f"{gradient:.2f}",
                f"{product:.2f}",
                f"{product / gradient:.2f}",
                *condition_cells,
            ]
        )
    print(
        f"{args.arch}, {len(split)} images, {common.measure_peak() / 1e9:.0f} GFLOP/s float32 "
        "matrix product"
    )
    common.print_table(
        [
            "batch norm statistics",
            "gradient, s",
            "product, s",
            "ratio",
            "condition number, s",
            "products",
            "condition number",
        ],
        rows,
    )


if __name__ == "__main__":
    utils.run_script(main, parse_args)
