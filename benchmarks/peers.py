"""Prunes by other methods to the same rate and fine-tunes the result exactly as ours.

    python -m benchmarks.peers group-l2 --arch ResNet-20 --trained_param resnet20.pkl \\
        --data_path ... --train_epoch 30
    python -m benchmarks.peers scratch --searched runs/r20-nn-0 ...

Views, order, schedule, epochs and number format are equal. group-l2 and group-taylor prune with
Torch-Pruning 1.6.1, for which --peer_env gets a virtual environment; uniform and random cut equal
and random shares of all channel groups and keep the channels with the largest L1 norms; scratch
trains the network that a run found from new weights; unpruned trains the whole network.
--finetune_teacher single adds distillation from the unpruned network. The result is a record for
`analyze.py tables`. The same command again resumes where it stopped.
"""

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import keras
import nets
import numpy as np
import op_utils
from analyses.records import RECORD, Record
from analyses.subject import Subject
from analyses.widths import random_subnetwork, scaled_subnetwork
from dataloader import cifar
from ekg.io import files
from ekg import phases
from ekg.data.dataset import mixed_order
from ekg.devices.compute import DTYPES, Compute
from ekg.devices.team import Team
from ekg.distil.slim import restore_norms_
from ekg.graph.calls import Graph
from ekg.network.supernet import Supernet
from ekg.report.measure import measure
from ekg.run import folder as names
from ekg.run.arguments import describe, origin
from ekg.run.folder import RunFolder
from ekg.searching import criteria
from ekg.searching.objective import Objective
from ekg.distil.settings import FineTuneSettings
from ekg.train.batch_norm_statistics import fit_statistics_
from ekg.train.evaluate import Evaluation

logger = logging.getLogger(__name__)

TORCH = {"group-l2": "l2", "group-taylor": "taylor"}
PACKAGES = ("torch==2.13.0", "torch-pruning==1.6.1", "numpy")
METHODS = (*TORCH, "uniform", "random", "scratch", "unpruned")
TITLES = {
    "group-l2": "Torch-Pruning 1.6.1, global group L2",
    "group-taylor": "Torch-Pruning 1.6.1, global group Taylor",
    "uniform": "uniform widths",
    "random": "random widths",
    "scratch": "the searched network from scratch",
    "unpruned": "unpruned, trained further",
}
SUBSET, BATCH = 2048, 256


def parse_args(argv=None):
    parser = utils.Parser(description="Fine-tune what other methods prune.")
    parser.add_argument("method", choices=METHODS)
    parser.add_argument(
        "--arch",
        default="ResNet-20",
        choices=[name for name in nets.archs_for(cifar.IMAGE_SHAPE) if name.startswith("ResNet")],
    )
    parser.add_argument(
        "--dataset", default="CIFAR10", choices=dataloader.names_for(cifar.IMAGE_SHAPE)
    )
    parser.add_argument("--data_path")
    parser.add_argument("--trained_param", type=Path, required=True, help="the unpruned network")
    parser.add_argument("--searched", type=Path, help="run folder whose network scratch trains")
    parser.add_argument("--target_rate", type=float, default=0.45)
    parser.add_argument("--train_epoch", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=FineTuneSettings.batch_size)
    parser.add_argument("--finetune_teacher", default="none", choices=("none", "single"))
    parser.add_argument(
        "--num_views",
        type=int,
        choices=(1, 2),
        help="random views of each image; without it 1 where labels alone teach, else 2",
    )
    parser.add_argument("--precision", default="float32", choices=DTYPES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, help="folder of checkpoints and of the record; without it runs/NAME"
    )
    parser.add_argument(
        "--peer_env", type=Path, default=Path(".venv-peers"), help="environment of Torch-Pruning"
    )
    args = parser.parse_args(argv)
    if (args.method == "scratch") != (args.searched is not None):
        parser.error("--searched belongs to the method scratch, which needs it.")
    if args.out is None:
        args.out = (
            Path("runs")
            / f"{args.arch}_{args.method}_{args.target_rate}_{args.finetune_teacher}_{args.seed}"
        )
    return args


# ---------------------------------------------------------------- the networks


def load(args, data, path):
    """Returns the network, pruned or not, in a parameter file."""
    return nets.from_params(args.arch, utils.load_params(path), data.num_classes, path)


def make_network(args, data, unpruned, compute):
    """Returns the network that is trained; all but scratch keep what the unpruned one knows, with
    new statistics.
    """
    if args.method == "unpruned":
        return unpruned
    if args.method in TORCH:
        model = nets.from_params(
            args.arch, prune_with_torch(args, data, unpruned), data.num_classes, "Torch-Pruning"
        )
        train_batches = data.batches(data.train, BATCH, mixed_order(data.strata))
        fit_statistics_(model, train_batches, compute.use_xla)
        restore_norms_(
            model, Graph(unpruned)
        )  # as of all others: the effective learning rate stays
        return model
    if args.method == "scratch":
        return keras.models.clone_model(
            load(args, data, args.searched / names.SLIMMED)
        )  # weights of a clone are new
    supernet = Supernet(unpruned)
    subnetwork = choose_widths(args, data, supernet)
    return phases.slim(supernet, subnetwork, data, compute=compute, search_batch_size=BATCH)


def choose_widths(args, data, supernet):
    """Returns the sub-network of equal or random widths at the rate; the channels of the largest L1
    norms stay.
    """
    batches = Subject(args.arch, data, None, BATCH).batches()
    scores = criteria.l1(
        criteria.CriterionContext(Objective(supernet, batches, "none"), supernet.whole(), args.seed)
    )
    if args.method == "random":
        return random_subnetwork(
            supernet, scores, args.target_rate, np.random.default_rng(args.seed)
        )
    return scaled_subnetwork(supernet, scores, args.target_rate, np.ones(len(supernet.groups)))


def prune_with_torch(args, data, unpruned):
    """Returns the parameters, {name: array}, that Torch-Pruning leaves."""
    target = args.out / "torch.npz"
    if not target.exists():
        python, rng = make_environment(args.peer_env), np.random.default_rng(args.seed)
        chosen = rng.choice(len(data.train), min(SUBSET, len(data.train)), replace=False)
        images = data.normalise(data.train.read(np.sort(chosen))).numpy()
        source = args.out / "torch_source.npz"
        np.savez(
            source,
            images=images,
            labels=data.train.labels[np.sort(chosen)],
            logits=unpruned(images[:16], training=False).numpy(),
            **utils.load_params(args.trained_param),
        )
        unfinished = args.out / "unfinished.npz"
        subprocess.run(
            [
                python,
                Path(__file__).with_name("peers_torch.py"),
                source,
                unfinished,
                "--importance",
                TORCH[args.method],
                "--rate",
                str(args.target_rate),
            ],
            check=True,
        )
        unfinished.rename(target)
    with np.load(target, allow_pickle=False) as arrays:
        return dict(arrays)


def make_environment(folder):
    """Returns the Python of a virtual environment with PACKAGES, which is made if it is not
    there.
    """
    python, done = folder / "bin" / "python", folder / ".peers"
    if not done.exists():
        logger.info("making %s with %s", folder, ", ".join(PACKAGES))
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        done.touch()
    return python


# ---------------------------------------------------------------- training and record


def train(args, data, model, unpruned, compute):
    """Trains the network as a run fine-tunes its own; a training that was stopped resumes."""
    phases.fine_tune(
        model,
        data,
        teacher=unpruned if args.finetune_teacher == "single" else None,
        epochs=args.train_epoch,
        folder=args.out,
        seed=args.seed,
        compute=compute,
        search_batch_size=BATCH,
        batch_size=args.batch_size,
        num_views=args.num_views,
    )


def main(args):
    """Prunes, trains and measures; writes and returns the Record."""
    team = Team(op_utils.make_strategy())
    compute = Compute(team, op_utils.use_xla("auto"), args.precision)
    keras.utils.set_random_seed(args.seed)
    data = dataloader.load(args.dataset, args.data_path)
    args.num_views = FineTuneSettings(
        finetune_teacher=args.finetune_teacher, num_views=args.num_views
    ).views_of(data)
    test = data.batches(data.test, BATCH)
    files_of = {name: args.out / f"{name}_param.pkl" for name in ("slimmed", "trained")}
    RunFolder.prepare(args.out, {"method": args.method, **_arguments(args, data, compute)})
    with team.strategy.scope():
        unpruned = load(args, data, args.trained_param)
    folder = RunFolder(args.out)
    if not files_of["slimmed"].exists():
        with folder.timed("prune"):
            utils.save_params(make_network(args, data, unpruned, compute), files_of["slimmed"])
    slimmed = files_of["slimmed"]
    with team.strategy.scope():
        model = load(args, data, slimmed)
    evaluation = Evaluation(model, test, Compute(team))
    rows = [
        measure(
            "baseline", Evaluation(unpruned, test, Compute(team)), args.trained_param.stat().st_size
        ),
        measure("slimmed", evaluation, slimmed.stat().st_size),
    ]
    with folder.timed("fine-tune"):
        train(args, data, model, unpruned, compute)
        utils.save_params(model, files_of["trained"])
    rows.append(measure("fine-tuned", evaluation, files_of["trained"].stat().st_size))
    record = Record(
        args.out.resolve().name,
        _arguments(args, data, compute),
        [dataclasses.asdict(row) for row in rows],
        0,
        folder.phases(),
        [],
        origin(),
        _command(args),
    )
    record.write(args.out / RECORD)
    print(
        f"{record.name}: {record.rate:.4f} of the FLOPs, top-1 {record.top1(0):.2f} unpruned, "
        f"{record.top1(1):.2f} "
        f"pruned, {record.top1(2):.2f} fine-tuned"
    )
    return record


def _arguments(args, data, compute):
    """Returns what the tables tell runs apart by, in the form of arguments.json."""
    return {
        "arch": args.arch,
        "dataset": args.dataset,
        "search_teacher": "",
        "finetune_teacher": args.finetune_teacher,
        "num_views": args.num_views,
        "criterion": TITLES[args.method],
        "target_rate": args.target_rate,
        "train_epoch": args.train_epoch,
        "batch_size": args.batch_size,
        "precision": args.precision,
        "seed": args.seed,
        "trained_param": files.sha256(args.trained_param),
        **describe(data, compute.use_xla),
        **({"searched": files.sha256(args.searched / names.SLIMMED)} if args.searched else {}),
    }


def _command(args):
    flags = {
        "arch": args.arch,
        "dataset": args.dataset,
        "trained_param": "PARAMS",
        "target_rate": args.target_rate,
        "train_epoch": args.train_epoch,
        "batch_size": args.batch_size,
        "finetune_teacher": args.finetune_teacher,
        "num_views": args.num_views,
        "precision": args.precision,
        "seed": args.seed,
    }
    flags |= {"searched": "RUN"} if args.searched else {}
    return f"python -m benchmarks.peers {args.method} " + " ".join(
        f"--{name} {value}" for name, value in flags.items()
    )


if __name__ == "__main__":
    utils.run_script(main, parse_args)
