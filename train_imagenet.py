"""Prunes an ImageNet network: search, memory bank, fine-tuning.

    python train_imagenet.py --arch ResNet-50 --data_path ILSVRC2012 --trained_param resnet50.pkl --target_rate 0.55

`python -m nets.convert` makes the parameter file out of torchvision-style weights. Published for ResNet-50 at 55 % of the
FLOPs: 76.43 % top-1, 315 GPU hours (Lee and Song 2022).
"""

import functools

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import nets
from dataloader import ilsvrc
from ekg import command_line, pipeline

BASELINE = pipeline.TrainingSettings(epochs=90, batch_size=256, learning_rate=0.1, decay_points=(1 / 3, 2 / 3),
                                     decay_rate=0.1, weight_decay=1e-4)


def parse_args(argv=None):
    """Returns the checked arguments."""
    parser = command_line.make_parser("Prune an ImageNet network with EKG.", BASELINE)
    group = parser.add_argument_group("data and network")
    group.add_argument("--arch", default="ResNet-50", choices=nets.archs_for(ilsvrc.IMAGE_SHAPE), help="network")
    group.add_argument("--dataset", default="ILSVRC2012", choices=dataloader.names_for(ilsvrc.IMAGE_SHAPE), help="data set")
    group.add_argument("--data_path", required=True,
                       help="folder with train/<wnid>/ and val/<wnid>/; beside a flat val/ the development kit's files")
    group.add_argument("--image_memory", type=float, default=ilsvrc.MEMORY_GIB,
                       help="GiB that the decoded validation images of the search may take; more are decoded every time")
    group.add_argument("--skip_bad_images", action="store_true",
                       help="read every file once before the run, and leave out those that cannot be decoded")
    parser.set_defaults(target_rate=0.55, batch_size=256, decay_rate=0.1, weight_decay=1e-4, temperature=10.0)
    args = command_line.parse(parser, argv)
    if not 0 <= args.image_memory < float("inf"):
        parser.error(f"--image_memory must not be negative; received {args.image_memory:g}.")
    return args


def main(args):
    """Runs the pipeline and returns the rows of the final table."""
    load_data = functools.partial(dataloader.load, args.dataset, args.data_path, skip_bad_images=args.skip_bad_images,
                                  memory_gib=args.image_memory)
    return command_line.run(args, BASELINE, load_data, nets.build, nets.from_params)


if __name__ == "__main__":
    utils.run_script(main, parse_args)
