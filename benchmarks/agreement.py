"""How often a search in another number format decides as a search in float32 did.

    python -m benchmarks.agreement runs/r56 --data_path ... --formats bfloat16

Follows the history of a search of train_cifar.py: at each of its interim sub-networks one step is
taken in each format, with the knowledge of all that came before, and compared with what the search
chose there. Naming float32, too, shows that the steps are those of the search. How another format
ends when it goes its own way, a run with --search_precision says.
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
from ekg.settings import SearchSettings

FEW = (
    "groups_per_step",
    "reward",
)  # settings of which one step here is not one of the search, unless they are the default


def parse_args(argv=None):
    parser = utils.Parser(description="Compare the decisions of a search in other number formats.")
    parser.add_argument(
        "run", type=Path, help="run folder of train_cifar.py whose search is finished"
    )
    parser.add_argument("--data_path", help="of the data set, as the run had it")
    parser.add_argument("--formats", nargs="+", default=["bfloat16"], choices=DTYPES)
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        help="steps of the search from one that is compared to the next",
    )
    parser.add_argument(
        "--page",
        type=Path,
        help="folder of a page of benchmarks.performance, which gets the table, too",
    )
    args = parser.parse_args(argv)
    if args.every < 1:
        parser.error(f"argument --every: {args.every} is less than 1.")
    return args


def load_search(path, data_path):
    """Returns (Supernet, D_val's batches, SearchSettings, history) of a run.

    Raises:
        EkgError: the folder holds no run, its search is of another kind, or the data is not that of
            the run.
    """
    run = RunFolder.open(path)
    arguments = run.arguments()
    settings = SearchSettings.make(
        {name: arguments[name] for name in vars(SearchSettings()) if name in arguments}
    )
    for name in FEW:
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
    """Returns (steps that narrow the same group, those that keep the same channels, too, steps) in
    a number format.
    """
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
    arguments, rows = RunFolder(args.run).arguments(), []
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
