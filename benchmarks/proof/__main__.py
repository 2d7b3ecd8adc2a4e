"""Makes the runs of the proof, says how far they are, and puts them into tables.

    python -m benchmarks.proof run --data_path CIFAR --work runs/proof
    python -m benchmarks.proof status --work runs/proof
    python -m benchmarks.proof table

The same command resumes, and two of them at once share the work.
"""

import dataclasses
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
from ekg.errors import EkgError

from benchmarks.proof import execute, table, work
from benchmarks.proof.setting import Place

RECORDS = Path(__file__).parents[2] / "docs" / "results" / "proof"


def parse_args(argv=None):
    parser = utils.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "command",
        choices=("run", "status", "table", "one"),
        help="one makes the run that is named, as a process of `run` does",
    )
    parser.add_argument("name", nargs="?", help="of the run that `one` makes")
    parser.add_argument("--only", default="*", help="pattern of the names of runs")
    parser.add_argument("--data_path", help="all of CIFAR-10; without it, downloaded")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/proof"), help="folder of checkpoints and networks"
    )
    parser.add_argument(
        "--records",
        type=Path,
        default=RECORDS,
        help="folder of records, searches and unpruned networks",
    )
    parser.add_argument(
        "--peer_env", type=Path, default=Path(".venv-peers"), help="environment of Torch-Pruning"
    )
    parser.add_argument("--resnet56", type=Path, help="parameter file of a trained ResNet-56")
    args = parser.parse_args(argv)
    if (args.command == "one") != (args.name is not None):
        parser.error("a name belongs to the command one, which needs it.")
    return args


def main(args):
    """Does what the command line asks for, and returns what it prints, if anything."""
    fields = [field.name for field in dataclasses.fields(Place)]
    place = Place(**{name: getattr(args, name) for name in fields})
    if args.command == "run":
        return work.run_all(place, args.only)
    if args.command == "one":
        named = {run.name: run for run in work.chosen()}
        if args.name not in named:
            raise EkgError(f"{args.name}: no run has this name; status lists all.")
        return execute.perform(named[args.name], place)
    text = work.describe(place, args.only) if args.command == "status" else table.format_page(place)
    print(text)
    return text


if __name__ == "__main__":
    utils.run_script(main, parse_args)
