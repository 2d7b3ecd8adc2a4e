"""Measures how often a search in another number format decides like a search in float32.

    python -m benchmarks.agreement runs/r56 --data_path ... --formats bfloat16

It follows the history of a search of train_cifar.py. At each interim sub-network it takes one step
in each format, with the knowledge of all earlier sub-networks, and compares it with the choice of
the search. With float32 among the formats, the steps can be checked to be those of the search. To
see where a whole search in another format ends, start a run with --search_precision.
"""

from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import nets
import numpy as np
from benchmarks import common, performance
from ekg.devices.compute import DTYPES, Compute
from ekg.errors import EkgError
from ekg.network.supernet import Supernet
from ekg.process.progress import progress_bar
from ekg.run import folder as names
from ekg.run.folder import RunFolder
from ekg.searching.greedy import try_groups
from ekg.searching.objective import Objective
from ekg.searching.settings import SearchSettings

# Settings that must have their defaults, as otherwise single steps are not those of the search
DEFAULTS_NEEDED = ("groups_per_step", "reward")


def parse_args(argv=None):
    parser = utils.Parser(description="Compare the decisions of a search in other number formats.")
    parser.add_argument(
        "run", type=Path, help="run folder of train_cifar.py whose search is finished"
    )
    parser.add_argument("--data_path", help="path of the data set, as in the run")
    parser.add_argument("--formats", nargs="+", default=["bfloat16"], choices=DTYPES)
    parser.add_argument(
        "--every", type=int, default=1, help="compare every so many steps of the search"
    )
    parser.add_argument(
        "--page",
        type=Path,
        help="folder with a page of benchmarks.performance, to which the table is added",
    )
    args = parser.parse_args(argv)
    if args.every < 1:
        parser.error(f"argument --every: {args.every} is less than 1.")
    return args


def load_search(path, data_path):
    """Returns (Supernet, D_val's batches, SearchSettings, history) of a run.

    Raises:
        EkgError: the folder holds no run, or its search cannot be compared step by step.
    """
    run = RunFolder.open(path)
    arguments = run.arguments()
    settings = SearchSettings.make(
        {name: arguments[name] for name in vars(SearchSettings()) if name in arguments}
    )
    for name in DEFAULTS_NEEDED:
        if getattr(settings, name) != getattr(SearchSettings(), name):
            raise EkgError(
                f"{path}: was searched with {name} {getattr(settings, name)}; only single steps "
                "can be compared."
            )
    data = dataloader.load(arguments["dataset"], data_path)
    model = nets.from_params(
        arguments["arch"], utils.load_params(run / names.SUPERNET), data.num_classes
    )
    split = data.last_of_each_class(settings.val_per_class, arguments["seed"]).in_memory()
    return Supernet(model), data.batches(split, settings.search_batch_size), settings, run.history()


def compare(supernet, batches, settings, history, dtype, seed, every=1):
    """Returns (steps with the same group, steps with the same channels, all steps) in a format."""
    compute = Compute(dtype=dtype)
    objective = Objective(supernet, batches, settings.search_teacher, compute)
    target = settings.targets().prepare(supernet, compute.team)
    steps = same_group = same_channels = 0
    with progress_bar(f"steps in {dtype}", len(history) - 1, "step") as progress:
        for step in range(1, len(history)):
            objective.add_knowledge(history[step - 1].subnetwork)
            if step % every == 0:
                _, candidates, scores = try_groups(
                    supernet, objective, history[:step], target, settings, seed
                )
                group, winner = candidates[int(np.argmax([score.reward for score in scores]))]
                steps += 1
                same_group += supernet.groups[group].name == history[step].group
                same_channels += np.array_equal(
                    supernet.mask(winner), supernet.mask(history[step].subnetwork)
                )
            progress.update(1)
    return same_group, same_channels, steps


def main(args):
    """Prints the table and returns its rows."""
    supernet, batches, settings, history = load_search(args.run, args.data_path)
    if args.every >= len(history):
        raise EkgError(
            f"`every` {args.every}: the search took {len(history) - 1} steps; name at most as many."
        )
    arguments = RunFolder(args.run).arguments()
    rows = []
    for dtype in args.formats:
        group, channels, steps = compare(
            supernet, batches, settings, history, dtype, arguments["seed"], args.every
        )
        rows.append([dtype, steps, f"{group / steps:.1%}", f"{channels / steps:.1%}"])
    common.print_table(performance.SECTIONS["agreement"][-1], rows)
    if args.page is not None:
        performance.add_rows(
            args.page, "agreement", f"{arguments['arch']} on {arguments['dataset']}:", rows
        )
    return rows


if __name__ == "__main__":
    utils.run_script(main, parse_args)
