"""Accuracy of cut and repaired networks before any training, ours and Torch-Pruning's.

    python -m benchmarks.bench_repair --arch ResNet-56 --data_path CIFAR \\
        --trained_param resnet56.pkl --searched runs/r56 --peers group-taylor group-l2

Prints top-1 on the test images and the seconds of the repair alone. The repair sees training images
without their labels.
"""

import argparse
import time
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import nets
import op_utils
from analyses.results import markdown_table
from dataloader import cifar
from ekg.data.dataset import mixed_order
from ekg.devices.compute import Compute
from ekg.devices.team import Team
from ekg.distil import repair
from ekg.network.supernet import Supernet
from ekg.run import folder as names
from ekg.run.folder import RunFolder
from ekg.train.batch_norm_statistics import fit_statistics_
from ekg.train.evaluate import evaluate

from benchmarks import peers
from benchmarks.proof.starts import recover_subnetwork

BATCH = 256


def parse_args(argv=None):
    """Parses and checks the command line."""
    parser = utils.Parser(
        description="Compare networks that were cut, and repaired, before any training."
    )
    parser.add_argument(
        "--arch", default="ResNet-56", choices=list(nets.archs_for(cifar.IMAGE_SHAPE))
    )
    parser.add_argument(
        "--dataset", default="CIFAR10", choices=dataloader.names_for(cifar.IMAGE_SHAPE)
    )
    parser.add_argument("--data_path")
    parser.add_argument("--trained_param", type=Path, required=True, help="the unpruned network")
    parser.add_argument("--searched", type=Path, help="run folder with a search of that network")
    parser.add_argument(
        "--peers", nargs="*", default=(), choices=[*peers.TORCH, "uniform", "random"]
    )
    parser.add_argument("--target_rate", type=float, default=0.45, help="rate of the peers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/repair"), help="folder for the files of peers"
    )
    parser.add_argument(
        "--peer_env", type=Path, default=Path(".venv-peers"), help="environment of Torch-Pruning"
    )
    return parser.parse_args(argv)


def compare(name, supernet, subnetwork, data, test):
    """Returns the row of a sub-network: cut with re-estimated statistics, and repaired."""
    batches = data.batches(data.train, BATCH, mixed_order(data.strata))
    chosen = batches.head(repair.num_examples(supernet.graph))
    inputs = data.normalise(chosen.split.read(range(len(chosen.split))))
    model = supernet.cut(subnetwork)
    fit_statistics_(model, batches)
    plain = evaluate(model, test).top1
    start = time.perf_counter()
    repair.repair_(model, supernet, subnetwork, inputs)
    seconds = time.perf_counter() - start
    fit_statistics_(model, batches)
    cost = supernet.complexity(subnetwork)
    whole = supernet.complexity(supernet.whole())
    return [
        name,
        f"{cost.flops / whole.flops:.4f}",
        f"{100 * cost.params / whole.params:.1f}",
        f"{100 * plain:.2f}",
        f"{100 * evaluate(model, test).top1:.2f}",
        f"{seconds:.1f}",
    ]


def main(args):
    """Prints the table and returns its rows."""
    data = dataloader.load(args.dataset, args.data_path)
    unpruned = peers.load(args, data, args.trained_param)
    test = data.batches(data.test, BATCH)
    rows = [["unpruned", "1.0000", "100.0", f"{100 * evaluate(unpruned, test).top1:.2f}", "", ""]]
    if args.searched is not None:
        folder = RunFolder(args.searched)
        searched = Supernet(peers.load(args, data, folder / names.SUPERNET))
        rows.append(compare("ekg", searched, folder.history()[-1].subnetwork, data, test))
    compute = Compute(Team(op_utils.make_strategy()))
    supernet = Supernet(unpruned)
    for method in args.peers:
        out = args.out / f"{args.arch}_{method}_{args.target_rate:g}_{args.seed}"
        out.mkdir(parents=True, exist_ok=True)
        options = argparse.Namespace(**vars(args) | {"method": method, "out": out})
        model = peers.make_network(options, data, unpruned, compute)
        subnetwork = recover_subnetwork(supernet, model)
        rows.append(compare(peers.TITLES[method], supernet, subnetwork, data, test))
    head = ["network", "rate", "parameters %", "cut top-1 %", "repaired top-1 %", "repair, s"]
    print(markdown_table(head, rows))
    return rows


if __name__ == "__main__":
    utils.run_script(main, parse_args)
