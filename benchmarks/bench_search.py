"""Times a search step with and without the shared prefix, as a share of the machine's peak.

    python -m benchmarks.bench_search --arch ResNet-56 --trained_param resnet56.pkl \\
        --data_path cifar-10-batches-py

Weights are random without --trained_param, and images without --data_path; other groups are tried
then.
"""

import argparse
import functools

import utils  # before TensorFlow: it sets TensorFlow's environment
import keras
import nets
import numpy as np
import tensorflow as tf
from benchmarks import common
from ekg.io import files
from ekg.data.dataset import Batches
from ekg.network.supernet import Gate, Supernet
from ekg.searching.targets import Flops
from ekg.searching import criteria
from ekg.searching.history import HistoryEntry
from ekg.searching.objective import Objective
from ekg.searching.proposals import propose
from ekg.searching.settings import SearchSettings


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Time a search step.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    common.add_network_flags(parser)
    parser.add_argument("--search_batch_size", type=int, default=256)
    parser.add_argument(
        "--history", help="history.jsonl of a search of this network, with the sub-networks to time"
    )
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[1, 10, 20], help="search steps to time"
    )
    parser.add_argument("--runs", type=int, default=3, help="number of runs per step")
    return parser.parse_args(argv)


def executed(supernet, groups, share_prefix):
    """Returns the multiply-accumulates per image of a step that tries these groups.

    Importance takes a forward pass and a backward pass to the activations, about two forward
    passes. The knowledge of the winner takes another, or half of one if the prefix is shared, since
    it starts at the first gate of its group.
    """
    flops = common.call_flops(supernet.graph)
    item_flops = [0 if isinstance(item, Gate) else flops[item.output] for item in supernet.program]
    before = np.cumsum([0, *item_flops])  # FLOPs before each item of the program
    total = before[-1]
    gates = [supernet.first_use(group) for group in groups]
    if share_prefix:
        return 2.5 * total + sum(total - before[gate] for gate in gates)
    return 3 * total + len(gates) * total


def main(args):
    keras.utils.set_random_seed(0)
    if args.trained_param:
        model = nets.from_params(
            args.arch, utils.load_params(args.trained_param), 10, args.trained_param
        )
    else:
        model = nets.build(args.arch, 10)
        for weight in model.weights:
            if weight.name == "gamma":
                weight.assign(tf.random.stateless_uniform(weight.shape, (0, 1), 0.5, 1.5))
    supernet = Supernet(model)
    data = common.search_data(args.data_path)
    split = data.last_of_each_class(SearchSettings().val_per_class, 0)
    objective = Objective(supernet, Batches(split, data.normalise, args.search_batch_size))
    lines = files.read_json_lines(args.history) if args.history else []
    history = [HistoryEntry.from_json(line).subnetwork for line in lines]
    present = supernet.whole()
    num_images = objective.num_images
    peak = common.measure_peak()
    rows = []

    def step(share_prefix):
        scores = criteria.ekg(criteria.CriterionContext(objective, present))
        ranked, candidates = propose(supernet, present, scores, Flops(0.01), 0.2)
        results = objective.scores(ranked, candidates, share_prefix)
        winner = candidates[int(np.argmax([result.reward for result in results]))][1]
        if share_prefix:
            objective.add_knowledge(winner)
        else:
            objective.logits(winner)[-1].numpy()
        return winner, [group for group, _ in candidates]

    for number in args.steps if history else range(1, max(args.steps) + 1):
        present = history[number - 1] if history else present
        objective.add_knowledge(present)
        winner, groups = step(True)
        if number in args.steps:
            shared, alone = common.paired_seconds(
                lambda: step(True),
                lambda: step(False),
                args.runs,
                prepare=functools.partial(objective.add_knowledge, present),
            )
            shares = [
                2 * num_images * executed(supernet, groups, share) / spent / peak
                for share, spent in ((True, shared), (False, alone))
            ]
            rows.append(
                [
                    number,
                    len(groups),
                    f"{shared:.2f}",
                    f"{alone:.2f}",
                    f"{shared / alone:.3f}",
                    f"{shares[0]:.2f}",
                    f"{shares[1]:.2f}",
                ]
            )
        present = winner
    print(f"{args.arch}, {num_images} images, float32 matrix product {peak / 1e9:.0f} GFLOP/s")
    common.print_table(
        [
            "step",
            "candidates",
            "s, shared prefix",
            "s, from the input",
            "ratio",
            "share of peak, shared",
            "share of peak, from the input",
        ],
        rows,
    )


if __name__ == "__main__":
    utils.run_script(main, parse_args)
