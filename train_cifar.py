"""Prunes a CIFAR network: search, memory bank, fine-tuning.

    python train_cifar.py --arch ResNet-56 --target_rate 0.45                     # trains a baseline first
    python train_cifar.py --arch ResNet-56 --target_rate 0.45 --trained_param resnet56.pkl
    python train_cifar.py --arch ResNet-20 --dataset DIGITS --target_rate 0.45    # no download

Published for ResNet-56 on CIFAR-10 at about 45 % of the FLOPs: 94.09 % top-1, 0.9 GPU hours (Lee and Song 2022).
"""

import functools

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import nets
from dataloader import cifar
from ekg import command_line, pipeline

BASELINE = pipeline.TrainingSettings(epochs=200, batch_size=128, learning_rate=0.05, decay_points=(0.3, 0.6, 0.9),
                                     decay_rate=0.1, weight_decay=1e-4)


def parse_args(argv=None):
    """Returns the checked arguments."""
    parser = command_line.make_parser("Prune a CIFAR network with EKG.", BASELINE)
    group = parser.add_argument_group("data and network")
    group.add_argument("--arch", default="ResNet-56", choices=nets.archs_for(cifar.IMAGE_SHAPE), help="network")
    group.add_argument("--dataset", default="CIFAR10", choices=dataloader.names_for(cifar.IMAGE_SHAPE),
                       help="data set; DIGITS comes with scikit-learn and needs no download")
    group.add_argument("--data_path", help="folder with the python batches or the official .tar.gz; without it, downloaded")
    parser.set_defaults(subset_per_class=None)  # DIGITS has fewer than others
    return command_line.parse(parser, argv)


def main(args):
    """Runs the pipeline and returns the rows of the final table."""
    load_data = functools.partial(dataloader.load, args.dataset, args.data_path)
    return command_line.run(args, BASELINE, load_data, nets.build, nets.from_params)


if __name__ == "__main__":
    utils.run_script(main, parse_args)
