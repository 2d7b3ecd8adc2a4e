"""Prunes a CIFAR network: search, memory bank, fine-tuning.

    python train_cifar.py --arch ResNet-56 --target_rate 0.45                     # trains a baseline first
    python train_cifar.py --arch ResNet-56 --target_rate 0.45 --trained_param resnet56.pkl
    python train_cifar.py --arch ResNet-20 --dataset DIGITS --target_rate 0.45    # no download

Published for ResNet-56 on CIFAR-10 at about 45 % of the FLOPs: 94.09 % top-1, 0.9 GPU hours (Lee and Song 2022).
"""

import argparse
import dataclasses
import functools
import hashlib
import sys
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import keras
import nets
import op_utils
import tensorflow as tf
from ekg import losses, memory_bank, objective, pipeline

BASELINE = pipeline.TrainingSettings(epochs=200, batch_size=128, learning_rate=0.05, decay_points=(0.3, 0.6, 0.9),
                                     decay_rate=0.1, weight_decay=1e-4)
MAX_SEED = 2**32 - 1  # NumPy takes no larger one
# They leave the result as it is, or stand in arguments.json as what they come to on this machine.
MACHINE_ARGUMENTS = ("train_path", "data_path", "gpu_id", "compile", "val_batch_size")


def parse_args(argv=None):
    """Returns the checked arguments."""
    parser = argparse.ArgumentParser(description="Prune a CIFAR network with EKG.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    group = parser.add_argument_group("data and network")
    group.add_argument("--arch", default="ResNet-56", choices=nets.archs_for((32, 32, 3)), help="network")
    group.add_argument("--dataset", default="CIFAR10", choices=list(dataloader.DATASETS),
                       help="data set; DIGITS comes with scikit-learn and needs no download")
    group.add_argument("--data_path", help="folder with the python batches or the official .tar.gz; without it, downloaded")
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
    group = parser.add_argument_group("fine-tuning")
    group.add_argument("--finetune_teacher", default="ensemble", choices=losses.FINETUNE_TEACHERS,
                       help="memory bank, the unpruned network, or labels alone")
    group.add_argument("--num_teacher", type=int, default=5, help="teachers in the memory bank")
    group.add_argument("--learning_rate", type=float, default=0.01, help="of fine-tuning, at its start")
    group.add_argument("--decay_points", type=float, nargs="*", default=[0.3, 0.6, 0.8],
                       help="fractions of the epochs at which the learning rate falls")
    group.add_argument("--decay_rate", type=float, default=0.2, help="factor of the learning rate at each of them")
    group.add_argument("--weight_decay", type=float, default=5e-4,
                       help=f"added to the gradient, times the weight; a baseline takes {BASELINE.weight_decay:g}")
    group.add_argument("--batch_size", type=int, default=128, help="images a training step, over all GPUs")
    group.add_argument("--train_epoch", type=int, default=100, help="epochs of fine-tuning")
    group.add_argument("--baseline_epoch", type=int, default=BASELINE.epochs, help="epochs of baseline training")
    group = parser.add_argument_group("run")
    group.add_argument("--val_batch_size", type=int, default=256, help="images a step of an evaluation")
    group.add_argument("--gpu_id", type=int, nargs="+", help="GPUs to use; without it GPU 0, or the CPU")
    group.add_argument("--accum", type=int, default=1, help="micro-batches a training step is cut into")
    group.add_argument("--compile", default="auto", choices=op_utils.COMPILE_CHOICES,
                       help="compile steps with XLA; auto: where there is a GPU")
    group.add_argument("--seed", type=int, default=0, help="of initial weights, order and augmentation")
    args = parser.parse_args(argv)
    for name in ("search_batch_size", "num_teacher", "batch_size", "val_batch_size", "train_epoch", "baseline_epoch",
                 "accum"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1; received {getattr(args, name)}.")
    for name in ("search_step", "target_rate"):
        if not 0 < getattr(args, name) <= 1:
            parser.error(f"--{name} must be in (0, 1]; received {getattr(args, name):g}.")
    for name in ("learning_rate", "decay_rate"):
        if not 0 < getattr(args, name) < float("inf"):
            parser.error(f"--{name} must be positive; received {getattr(args, name):g}.")
    if not 0 <= args.weight_decay < float("inf"):
        parser.error(f"--weight_decay must not be negative; received {args.weight_decay:g}.")
    if not all(0 < point < 1 for point in args.decay_points):
        parser.error(f"--decay_points must be fractions in (0, 1) of the epochs; received {args.decay_points}.")
    if not 0 <= args.seed <= MAX_SEED:
        parser.error(f"--seed must be from 0 to {MAX_SEED}; received {args.seed}.")
    for name, is_used, why in (("baseline_epoch", not args.trained_param, "--trained_param is given"),
                               ("num_teacher", args.finetune_teacher == "ensemble", "only the memory bank has them")):
        if getattr(args, name) != parser.get_default(name) and not is_used:
            parser.error(f"--{name} has no effect here: {why}; leave it out.")
    if args.train_path is None:
        args.train_path = Path("runs") / f"{args.arch}_{args.dataset}_{args.target_rate:g}"
    return args


def make_settings(args):
    """Returns the pipeline's Settings."""
    fine_tuning = pipeline.TrainingSettings(args.train_epoch, args.batch_size, args.learning_rate,
                                            tuple(args.decay_points), args.decay_rate, args.weight_decay)
    return pipeline.Settings(
        target_rate=args.target_rate, search_step=args.search_step, search_batch_size=args.search_batch_size,
        search_teacher=args.search_teacher, finetune_teacher=args.finetune_teacher, num_teacher=args.num_teacher,
        val_batch_size=args.val_batch_size, fine_tuning=fine_tuning,
        baseline=dataclasses.replace(BASELINE, epochs=args.baseline_epoch, batch_size=args.batch_size),
        accum=args.accum, jit=op_utils.use_xla(args.compile), seed=args.seed)


def main(args):
    """Runs the pipeline and returns the rows of the final table."""
    strategy = op_utils.make_strategy(args.gpu_id)
    for name in ("batch_size", "search_batch_size"):
        op_utils.check_batch(f"--{name}", getattr(args, name), strategy, args.accum)
    op_utils.check_batch("--val_batch_size", args.val_batch_size, strategy)
    settings = make_settings(args)
    params = utils.load_params(args.trained_param) if args.trained_param else None
    data = dataloader.load(args.dataset, args.data_path)
    from_params = functools.partial(nets.from_params, args.arch, num_classes=data.num_classes)
    model = from_params(params, source=args.trained_param) if params else nets.build(args.arch, data.num_classes)
    pipeline.check(settings, data, model)
    result_arguments = {name: value for name, value in vars(args).items() if name not in MACHINE_ARGUMENTS}
    result_arguments |= {"trained_param": args.trained_param and hashlib.sha256(args.trained_param.read_bytes()).hexdigest(),
                         "data": memory_bank.fingerprint(data.train), "use_xla": settings.jit,
                         "num_replicas": strategy.num_replicas_in_sync}
    folder = utils.RunFolder(args.train_path, result_arguments)
    keras.utils.set_random_seed(args.seed)
    tf.config.experimental.enable_op_determinism()
    job = pipeline.Pipeline(settings, data, strategy, folder, lambda: nets.build(args.arch, data.num_classes),
                            lambda params, source: from_params(params, source=source))
    rows = job.run(args.trained_param)
    print(utils.format_table(rows))
    print(f"run folder: {args.train_path}", file=sys.stderr)
    return rows


if __name__ == "__main__":
    utils.run_script(main, parse_args)
