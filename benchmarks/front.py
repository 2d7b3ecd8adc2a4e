"""Prunes a trained CIFAR network to several rates at once, without labels or training.

    python -m benchmarks.front --arch ResNet-56 --trained_param resnet56.pkl --data_path cifar \\
        --target_rates 0.7 0.45 0.3

Each network is cut out and repaired. With --separate every rate also has a job of its own: history,
sub-network and parameters must be the same, and the time of the searches is compared. The result is
front.json and front.png in --out; the same command resumes.
"""

from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import ekg
import nets
import numpy as np
from analyses.results import markdown_table
from dataloader import cifar
from ekg.io import files
from ekg.io.parameters import load_params
from ekg.run.arguments import VERSIONS, origin
from ekg.run.folder import RunFolder
from ekg.trade_off import PICTURE, check_rates, point_folder

RECORD = "front.json"


def parse_args(argv=None):
    parser = utils.Parser(description="Prune a CIFAR network to several rates, without training.")
    parser.add_argument("--arch", default="ResNet-56", choices=nets.archs_for(cifar.IMAGE_SHAPE))
    parser.add_argument("--trained_param", type=Path, required=True, help="parameter file")
    parser.add_argument("--data_path", help="CIFAR-10; without it, downloaded")
    parser.add_argument("--target_rates", type=float, nargs="+", default=[0.7, 0.45, 0.3])
    parser.add_argument(
        "--separate", action="store_true", help="also prune to each rate in a job of its own"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/front"))
    return parser.parse_args(argv)


def search_seconds(path, earlier=None):
    """Returns how long the search of a run folder took, without the steps that it took over.

    Args:
        path: the run folder.
        earlier: the run folder whose steps were taken over, or None.
    """
    folder = RunFolder(path)
    seconds = folder.phases()["search"]["seconds"]
    if earlier is not None:
        taken_over = zip(folder.history(), RunFolder(earlier).history())
        seconds -= sum(entry.seconds for entry, other in taken_over if entry == other)
    return seconds


def differences(first, second):
    """Returns what differs between two ekg.PruneResult, besides times: a list of names."""
    histories = [
        [{**entry.to_json(), "seconds": None} for entry in result.history]
        for result in (first, second)
    ]
    weights = zip(first.model.get_weights(), second.model.get_weights())
    same = {
        "history": histories[0] == histories[1],
        "sub-network": first.subnetwork == second.subnetwork,
        "parameters": all(map(np.array_equal, *zip(*weights))),
    }
    return [name for name, is_same in same.items() if not is_same]


def main(args):
    """Prunes, compares and writes the record; returns it."""
    rates = check_rates(args.target_rates)
    data = dataloader.load("CIFAR10", args.data_path)
    model = nets.from_params(
        args.arch, load_params(args.trained_param), data.num_classes, args.trained_param
    )
    options = {"epochs": None, "seed": args.seed}
    folder = args.out / "shared"
    front = ekg.front(model, data, rates, run_dir=folder, **options)
    front.report(args.out)
    folders = [point_folder(folder, rate) for rate in rates]
    times = {
        f"{rate:g}": {"of the front": search_seconds(path, earlier)}
        for rate, path, earlier in zip(rates, folders, [None, *folders])
    }
    if args.separate:
        for rate in rates:
            path = point_folder(args.out / "separate", rate)
            alone = ekg.prune(model, data, target_rate=rate, run_dir=path, **options)
            times[f"{rate:g}"]["alone"] = search_seconds(path)
            times[f"{rate:g}"]["differs in"] = differences(front[rate], alone)
    record = {
        "arch": args.arch,
        "trained_param": files.sha256(args.trained_param),
        "seed": args.seed,
        "rates": rates,
        "search_seconds": times,
        "table": front.summary().splitlines(),
        **origin(),
        "versions": VERSIONS,
    }
    files.write_json(args.out / RECORD, record)
    print("\n".join(record["table"]))
    print(cost_of(record))
    print(f"picture: {args.out / PICTURE}")
    return record


def cost_of(record):
    """Returns the table of the searches' durations, and what all of them cost, as text."""
    times = record["search_seconds"]
    if not any("alone" in entry for entry in times.values()):
        rows = [[rate, f"{entry['of the front']:.0f}"] for rate, entry in times.items()]
        return markdown_table(["rate", "search, s"], rows)
    rows = [
        [
            rate,
            f"{entry['of the front']:.0f}",
            f"{entry['alone']:.0f}",
            ", ".join(entry["differs in"]) or "nothing",
        ]
        for rate, entry in times.items()
    ]
    together = sum(entry["of the front"] for entry in times.values())
    deepest = list(times.values())[-1]["alone"]
    return (
        markdown_table(["rate", "search of the front, s", "alone, s", "differs in"], rows)
        + f"\nall searches of the front: {together / deepest:.2f} of the lowest rate's alone"
    )


if __name__ == "__main__":
    utils.run_script(main, parse_args)
