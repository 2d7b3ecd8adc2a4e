"""The command line that the training scripts share: flags, their checks, and the run itself.

A script adds the flags of its own data and network, sets its own defaults, and says how data and networks are made.
"""

import argparse
import dataclasses
import functools
import hashlib
import platform
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import utils
from ekg import devices, greedy_search, importance, losses, memory_bank, objective, pipeline, run_folder, training
from ekg.run_folder import RunFolder

PRECISIONS = ("float32", "bfloat16", "float16")
PACKAGES = ("ekg", "nets", "dataloader")
MAX_SEED = 2**32 - 1  # NumPy takes no larger one
# They leave the result as it is, or stand in arguments.json as what they come to on this machine.
WORKER_ARGUMENTS = ("data_path", "gpu_id", "image_memory")  # each process may have its own
MACHINE_ARGUMENTS = (*WORKER_ARGUMENTS, "train_path", "compile", "val_batch_size", "skip_bad_images", "virtual_devices",
                     "strategy", "overwrite", "preflight", "checkpoint_minutes", "search_from")
VERSIONS = {"python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__,
            "numpy": np.__version__}


def make_parser(description, baseline):
    """Returns a parser with the flags that all training scripts share.

    Args:
        description: of the script.
        baseline: pipeline.TrainingSettings of its baselines.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    group = parser.add_argument_group("network and run folder")
    group.add_argument("--trained_param", type=Path,
                       help="parameter file of the trained network; without it a baseline is trained first")
    group.add_argument("--train_path", type=Path,
                       help="run folder; without it runs/ARCH_DATASET_RATE; the same command again goes on there")
    group = parser.add_argument_group("search")
    group.add_argument("--target_rate", type=float, default=0.45, help="share of the FLOPs to keep, in (0, 1]")
    group.add_argument("--search_step", type=float, default=0.2, help="width a search step takes from a channel group")
    group.add_argument("--search_batch_size", type=int, default=256,
                       help="images that share batch statistics, at most; batch of the epoch before the search")
    group.add_argument("--search_teacher", default="ensemble", choices=objective.SEARCH_TEACHERS,
                       help="whose knowledge the reward holds")
    group.add_argument("--criterion", default="ekg", choices=list(importance.CRITERIA),
                       help="what ranks the channels of a group")
    group.add_argument("--reward", default="ensemble", choices=greedy_search.REWARDS,
                       help="the best candidate by loss and knowledge, or the smoothest loss of the --shortlist best")
    group.add_argument("--shortlist", type=int, default=3, help="candidates that --reward condition_number compares")
    group.add_argument("--log_condition", action="store_true",
                       help="keep the condition number of every interim sub-network in the history")
    group.add_argument("--subset_per_class", type=int, default=greedy_search.SUBSET_PER_CLASS,
                       help="training images of each class, its first ones, for the epoch before the search; "
                            f"None: {greedy_search.SUBSET_PER_CLASS}, or what the smallest class has")
    group.add_argument("--val_per_class", type=int, default=greedy_search.VAL_PER_CLASS,
                       help="training images of each class, its last ones, that the search evaluates on")
    group.add_argument("--search_from", type=Path,
                       help="run folder whose finished search of the same --trained_param is taken, not made again")
    group = parser.add_argument_group("fine-tuning")
    group.add_argument("--finetune_teacher", default="ensemble", choices=losses.FINETUNE_TEACHERS,
                       help="memory bank, the unpruned network, or labels alone")
    group.add_argument("--num_teacher", type=int, default=5, help="teachers in the memory bank")
    group.add_argument("--temperature", type=float, default=4.0, help="of the distillation")
    group.add_argument("--learning_rate", type=float, default=0.01, help="of fine-tuning, at its start")
    group.add_argument("--decay_points", type=float, nargs="*", default=[0.3, 0.6, 0.8],
                       help="fractions of the epochs at which the learning rate falls")
    group.add_argument("--decay_rate", type=float, default=0.2, help="factor of the learning rate at each of them")
    group.add_argument("--warmup_epoch", type=int, default=0,
                       help="epochs in which the learning rate rises linearly, in fine-tuning and baseline training")
    group.add_argument("--weight_decay", type=float, default=5e-4,
                       help=f"added to the gradient, times the weight; a baseline takes {baseline.weight_decay:g}")
    group.add_argument("--label_smoothing", type=float, default=0.0,
                       help="share of the labels spread over all classes, in fine-tuning and baseline training")
    group.add_argument("--batch_size", type=int, default=128, help="images a training step, over all GPUs")
    group.add_argument("--train_epoch", type=int, default=100, help="epochs of fine-tuning")
    group.add_argument("--baseline_epoch", type=int, default=baseline.epochs, help="epochs of baseline training")
    group = parser.add_argument_group("run")
    group.add_argument("--val_batch_size", type=int, default=256, help="images a step of an evaluation")
    devices.add_flags(group)
    group.add_argument("--sync_bn", action="store_true",
                       help="batch norms in training take the statistics of the whole batch, over all devices")
    group.add_argument("--accum", type=int, default=1,
                       help="micro-batches that a device's part of a batch is cut into, in training, search and memory bank")
    group.add_argument("--precision", default="float32", choices=PRECISIONS,
                       help="of convolutions and activations in baseline training and fine-tuning; weights are float32")
    group.add_argument("--search_precision", default="float32", choices=PRECISIONS,
                       help="the same of search and memory bank")
    group.add_argument("--checkpoint_minutes", type=float, default=training.CHECKPOINT_MINUTES,
                       help="minutes of training between checkpoints within an epoch")
    group.add_argument("--overwrite", action="store_true", help="remove an earlier run in --train_path and start anew")
    group.add_argument("--preflight", action=argparse.BooleanOptionalAction, default=True,
                       help="before the first long phase, run one step of every phase and check room on disk")
    group.add_argument("--seed", type=int, default=0, help="of initial weights, order and augmentation")
    return parser


def parse(parser, argv=None):
    """Returns the checked arguments; a mistake ends the program with one line and exit code 2."""
    args = parser.parse_args(argv)
    for name in ("search_batch_size", "subset_per_class", "val_per_class", "num_teacher", "batch_size", "val_batch_size",
                 "train_epoch", "baseline_epoch", "accum", "shortlist"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1; received {getattr(args, name)}.")
    for name in ("search_step", "target_rate"):
        if not 0 < getattr(args, name) <= 1:
            parser.error(f"--{name} must be in (0, 1]; received {getattr(args, name):g}.")
    for name in ("learning_rate", "decay_rate", "temperature"):
        if not 0 < getattr(args, name) < float("inf"):
            parser.error(f"--{name} must be positive; received {getattr(args, name):g}.")
    for name in ("weight_decay", "warmup_epoch", "checkpoint_minutes"):
        if not 0 <= getattr(args, name) < float("inf"):
            parser.error(f"--{name} must not be negative; received {getattr(args, name):g}.")
    if not 0 <= args.label_smoothing < 1:
        parser.error(f"--label_smoothing must be in [0, 1); received {args.label_smoothing:g}.")
    if not all(0 < point < 1 for point in args.decay_points):
        parser.error(f"--decay_points must be fractions in (0, 1) of the epochs; received {args.decay_points}.")
    if not 0 <= args.seed <= MAX_SEED:
        parser.error(f"--seed must be from 0 to {MAX_SEED}; received {args.seed}.")
    for name, is_used, why in (("baseline_epoch", not args.trained_param, "--trained_param is given"),
                               ("num_teacher", args.finetune_teacher == "ensemble", "only the memory bank has them"),
                               ("shortlist", args.reward == "condition_number", "--reward is ensemble"),
                               ("temperature", args.finetune_teacher != "none", "nothing is distilled")):
        if getattr(args, name) != parser.get_default(name) and not is_used:
            parser.error(f"--{name} has no effect here: {why}; leave it out.")
    if args.sync_bn and args.accum > 1:
        parser.error("--sync_bn and --accum exclude each other: statistics of the whole batch need it at once.")
    if args.search_from and not args.trained_param:
        parser.error("--search_from needs --trained_param, the network that was searched; a run that trained it itself "
                     "keeps it as baseline_param.pkl.")
    devices.check_flags(parser, args)
    if args.train_path is None:
        args.train_path = Path("runs") / f"{args.arch}_{args.dataset}_{args.target_rate:g}"
    return args


def make_settings(args, baseline):
    """Returns the pipeline.Settings that the arguments ask for."""
    common = {"batch_size": args.batch_size, "warmup_epochs": args.warmup_epoch}
    fine_tuning = pipeline.TrainingSettings(
        epochs=args.train_epoch, learning_rate=args.learning_rate, decay_points=tuple(args.decay_points),
        decay_rate=args.decay_rate, weight_decay=args.weight_decay, **common)
    return pipeline.Settings(
        target_rate=args.target_rate, search_step=args.search_step, search_batch_size=args.search_batch_size,
        search_teacher=args.search_teacher, subset_per_class=args.subset_per_class, val_per_class=args.val_per_class,
        finetune_teacher=args.finetune_teacher, num_teacher=args.num_teacher, temperature=args.temperature,
        label_smoothing=args.label_smoothing, val_batch_size=args.val_batch_size, fine_tuning=fine_tuning,
        baseline=dataclasses.replace(baseline, epochs=args.baseline_epoch, **common), accum=args.accum,
        precision=args.precision, search_precision=args.search_precision, sync_bn=args.sync_bn,
        checkpoint_minutes=args.checkpoint_minutes, criterion=args.criterion, reward=args.reward,
        shortlist=args.shortlist, log_condition=args.log_condition,
        jit=devices.use_xla(args.compile), seed=args.seed)


def run(args, baseline, load_data, build, from_params):
    """Runs the pipeline and returns the rows of the final table, which it prints.

    Args:
        args: as parse() returns.
        baseline: pipeline.TrainingSettings of baselines.
        load_data: function that returns the dataloader Dataset.
        build: (arch, num_classes) -> unpruned keras.Model.
        from_params: (arch, params, num_classes, source) -> keras.Model of whatever widths the parameters tell.
    """
    strategy = devices.make_strategy(args.gpu_id, args.virtual_devices, args.strategy)
    team = devices.Team(strategy)
    team.check_same({name: str(value) for name, value in vars(args).items() if name not in WORKER_ARGUMENTS}
                    | {"code": hash_code()})
    replicas, pieces = {"devices": team.count}, {"micro-batches (--accum)": args.accum}
    devices.check_batch("--batch_size", args.batch_size, replicas | pieces)
    devices.check_batch("--search_batch_size", args.search_batch_size, pieces)
    devices.check_batch("--val_batch_size", args.val_batch_size, replicas)
    for name in ("precision", "search_precision"):
        if getattr(args, name) == "float16" and not tf.config.list_logical_devices("GPU"):
            raise utils.UserError(f"--{name} float16: needs a GPU; on a CPU take bfloat16 or float32.")
    for name in ("trained_param", "search_from") if args.overwrite else ():
        path = getattr(args, name)
        if path and path.resolve().is_relative_to(args.train_path.resolve()):
            raise utils.UserError(f"--overwrite would remove --{name} {path}; copy it out of {args.train_path} first, or "
                                  "name another --train_path.")
    params = utils.load_params(args.trained_param) if args.trained_param else None
    data = load_data()
    if args.subset_per_class is None:
        args.subset_per_class = min(greedy_search.SUBSET_PER_CLASS, data.smallest_class())
    settings = make_settings(args, baseline)
    new_model = functools.partial(build, args.arch, data.num_classes)
    model = from_params(args.arch, params, data.num_classes, args.trained_param) if params else new_model()
    pipeline.check(settings, data, model)
    result_arguments = {name: value for name, value in vars(args).items() if name not in MACHINE_ARGUMENTS}
    result_arguments |= {"trained_param": args.trained_param and utils.sha256(args.trained_param),
                         "data": memory_bank.fingerprint(data.train), "use_xla": settings.jit, "versions": VERSIONS}
    team.on_chief(lambda: _prepare(args, result_arguments))
    folder = RunFolder(args.train_path, result_arguments, cleans=False)
    keras.utils.set_random_seed(args.seed)  # op determinism needs one
    tf.config.experimental.enable_op_determinism()
    job = pipeline.Pipeline(settings, data, strategy, team, folder, new_model,
                            lambda params, source: from_params(args.arch, params, data.num_classes, source))
    if args.preflight:
        job.preflight(model, trains_baseline=params is None)
    rows = job.run(args.trained_param)
    if team.is_chief:
        print(utils.format_table(rows))
        print(f"run folder: {args.train_path}", file=sys.stderr)
    return rows


def _prepare(args, result_arguments):
    """Makes the run folder, or opens it, with the search of another run in it if one is asked for."""
    takes_search = args.search_from and (args.overwrite or not run_folder.is_searched(args.train_path))
    if takes_search:
        run_folder.check_search(args.search_from, result_arguments)
    folder = RunFolder(args.train_path, result_arguments, args.overwrite)
    if takes_search:
        folder.take_search(args.search_from)


def hash_code():
    """Returns a hash of this project's source files."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted([*root.glob("*.py"), *(path for name in PACKAGES for path in (root / name).glob("*.py"))]):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
