"""Prunes a CIFAR network: search, memory bank, fine-tuning.

    # trains a baseline first
    python train_cifar.py --arch ResNet-56 --target_rate 0.45
    # starts from a trained network
    python train_cifar.py --arch ResNet-56 --target_rate 0.45 --trained_param resnet56.pkl
    # needs no download
    python train_cifar.py --arch ResNet-20 --dataset DIGITS --target_rate 0.45

Published for ResNet-56 on CIFAR-10 at about 45 % of the FLOPs: 94.09 % top-1, 0.9 GPU hours
(Lee and Song 2022).
"""

import dataclasses
import functools

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import nets
import op_utils
from dataloader import cifar
from ekg.settings import MACHINE, SEARCH, Settings, setting

BASELINE = op_utils.BaselineRecipe(
    epochs=200, learning_rate=0.05, decay_points=(0.3, 0.6, 0.9), decay_rate=0.1, weight_decay=1e-4
)


@dataclasses.dataclass(frozen=True)
class CifarSettings(Settings):
    """Data and network."""

    arch: str = setting(
        "ResNet-56", "network", SEARCH, choices=tuple(nets.archs_for(cifar.IMAGE_SHAPE))
    )
    dataset: str = setting(
        "CIFAR10",
        "data set; DIGITS comes with scikit-learn and needs no download",
        SEARCH,
        choices=tuple(dataloader.names_for(cifar.IMAGE_SHAPE)),
    )
    data_path: str | None = setting(
        None,
        "folder with the python batches or the official .tar.gz; without it, downloaded",
        MACHINE,
        may_be_none=True,
        is_per_worker=True,
    )


def parse_args(argv=None):
    """Returns the checked arguments."""
    return op_utils.parse_training_args(
        "Prune a CIFAR network with EKG.", BASELINE, CifarSettings, argv, subset_per_class=None
    )  # DIGITS has fewer than others


def main(args):
    """Runs the job and returns the rows of the final table."""
    load_data = functools.partial(dataloader.load, args.dataset, args.data_path)
    return op_utils.prune(args, BASELINE, load_data, nets.build, nets.from_params)


if __name__ == "__main__":
    utils.run_script(main, parse_args)
