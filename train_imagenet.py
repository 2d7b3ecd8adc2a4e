"""Prunes an ImageNet network: search, memory bank, fine-tuning.

    python train_imagenet.py --arch ResNet-50 --data_path ILSVRC2012 \\
        --trained_param resnet50.pkl --target_rate 0.55

`python -m nets.convert` makes the parameter file from torchvision-style weights. Published for
ResNet-50 at 55 % of the FLOPs: 76.43 % top-1, 315 GPU hours (Lee and Song 2022).
"""

import dataclasses
import functools

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import nets
import op_utils
from dataloader import ilsvrc
from ekg.settings import MACHINE, NOT_NEGATIVE, SEARCH, Settings, setting

BASELINE = op_utils.BaselineRecipe(
    epochs=90, learning_rate=0.1, decay_points=(1 / 3, 2 / 3), decay_rate=0.1, weight_decay=1e-4
)


@dataclasses.dataclass(frozen=True)
class ImageNetSettings(Settings):
    """Data and network."""

    arch: str = setting(
        "ResNet-50", "network", SEARCH, choices=tuple(nets.archs_for(ilsvrc.IMAGE_SHAPE))
    )
    dataset: str = setting(
        "ILSVRC2012", "data set", SEARCH, choices=tuple(dataloader.names_for(ilsvrc.IMAGE_SHAPE))
    )
    data_path: str = setting(
        None,
        "folder with train/<wnid>/ and val/<wnid>/; beside a flat val/ the development kit's files",
        MACHINE,
        is_per_worker=True,
        is_required=True,
    )
    image_memory: float = setting(
        ilsvrc.MEMORY_GIB,
        "GiB that the decoded validation images of the search may take; more are decoded every "
        "time",
        MACHINE,
        range=NOT_NEGATIVE,
        is_per_worker=True,
    )
    skip_bad_images: bool = setting(
        False,
        "read every file once before the run, and leave out those that cannot be decoded",
        MACHINE,
    )


def parse_args(argv=None):
    """Returns the checked arguments."""
    return op_utils.parse_training_args(
        "Prune an ImageNet network with EKG.",
        BASELINE,
        ImageNetSettings,
        argv,
        target_rate=0.55,
        batch_size=256,
        decay_rate=0.1,
        weight_decay=1e-4,
        temperature=10.0,
    )


def main(args):
    """Runs the job and returns the rows of the final table."""
    load_data = functools.partial(
        dataloader.load,
        args.dataset,
        args.data_path,
        skip_bad_images=args.skip_bad_images,
        memory_gib=args.image_memory,
    )
    return op_utils.prune(args, BASELINE, load_data, nets.build, nets.from_params)


if __name__ == "__main__":
    utils.run_script(main, parse_args)
