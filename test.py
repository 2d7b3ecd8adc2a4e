"""Evaluates a parameter file, pruned or not: loss, top-1, top-5, parameters, FLOPs, latency, images a second.

    python test.py --arch ResNet-56 --dataset CIFAR10 --trained_param runs/ResNet-56_CIFAR10_0.45/trained_param.pkl
    python test.py --arch ResNet-50 --dataset ILSVRC2012 --data_path ILSVRC2012 --trained_param resnet50.pkl
"""

import argparse
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import nets
from ekg import devices, report


def parse_args(argv=None):
    """Returns the checked arguments."""
    parser = argparse.ArgumentParser(description="Evaluate a parameter file with moving statistics.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--arch", default="ResNet-56", choices=list(nets.ARCHS), help="network")
    parser.add_argument("--dataset", default="CIFAR10", choices=list(dataloader.DATASETS), help="data set")
    parser.add_argument("--data_path", help="CIFAR: folder with the python batches or the official .tar.gz, without it "
                                            "downloaded; ILSVRC2012: folder with train/ and val/")
    parser.add_argument("--skip_bad_images", action="store_true",
                        help="ILSVRC2012: read every file once before, and leave out those that cannot be decoded")
    parser.add_argument("--trained_param", type=Path, required=True, help="parameter file")
    parser.add_argument("--val_batch_size", type=int, default=256, help="images a step")
    devices.add_flags(parser)
    args = parser.parse_args(argv)
    if args.val_batch_size < 1:
        parser.error(f"--val_batch_size must be at least 1; received {args.val_batch_size}.")
    if args.skip_bad_images and args.dataset != "ILSVRC2012":
        parser.error(f"--skip_bad_images has no effect here: the images of {args.dataset} are not in files; leave it out.")
    devices.check_flags(parser, args)
    return args


def main(args):
    """Prints the table and returns its row."""
    strategy = devices.make_strategy(args.gpu_id, args.virtual_devices, args.strategy)
    team = devices.Team(strategy)
    devices.check_batch("--val_batch_size", args.val_batch_size, {"devices": team.count})
    params = utils.load_params(args.trained_param)
    options = {"skip_bad_images": True} if args.skip_bad_images else {}
    data = dataloader.load(args.dataset, args.data_path, **options)
    if args.arch not in nets.archs_for(data.image_shape):
        raise utils.UserError(f"--arch {args.arch}: does not take the {data.image_shape[0]}x{data.image_shape[1]} images of "
                              f"{args.dataset}; networks that do: {', '.join(nets.archs_for(data.image_shape))}.")
    with strategy.scope():
        model = nets.from_params(args.arch, params, data.num_classes, args.trained_param)
    row = report.measure(args.trained_param.stem, model, args.trained_param, data, strategy, args.val_batch_size,
                         devices.use_xla(args.compile), (team.worker, team.num_workers))
    if team.is_chief:
        print(utils.format_table([row]))
    return row


if __name__ == "__main__":
    utils.run_script(main, parse_args)
