"""Evaluates a parameter file: loss, accuracy, parameters, FLOPs, latency, images per second.

    python test.py --arch ResNet-56 --dataset CIFAR10 \\
        --trained_param runs/ResNet-56_CIFAR10_0.45/trained_param.pkl
    python test.py --arch ResNet-50 --dataset ILSVRC2012 --data_path ILSVRC2012 \\
        --trained_param resnet50.pkl
"""

import dataclasses
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import nets
import op_utils
from ekg.command_line import add_flags, from_args
from ekg.devices.compute import Compute
from ekg.devices.team import Team
from ekg.errors import EkgError
from ekg.graph.complexity import model_complexity
from ekg.deploy.formats import AUTO_RUNTIMES, RUNTIMES
from ekg.report.measure import measure, with_latencies
from ekg.report.table import format_table
from ekg.settings import COUNT, MACHINE, SEARCH, Settings, setting
from ekg.train.evaluate import Evaluation


@dataclasses.dataclass(frozen=True)
class TestSettings(Settings):
    """The network that is evaluated, and the data."""

    arch: str = setting("ResNet-56", "network", SEARCH, choices=tuple(nets.ARCHS))
    dataset: str = setting("CIFAR10", "data set", SEARCH, choices=tuple(dataloader.DATASETS))
    data_path: str | None = setting(
        None,
        "CIFAR: folder with the python batches or the official .tar.gz, downloaded by default; "
        "ILSVRC2012: folder with train/ and val/",
        MACHINE,
        may_be_none=True,
        is_per_worker=True,
    )
    skip_bad_images: bool = setting(
        False,
        "ILSVRC2012: first read every file once, and leave out those that cannot be decoded",
        MACHINE,
    )
    trained_param: Path = setting(None, "parameter file", SEARCH, is_required=True)
    val_batch_size: int = setting(256, "images per step", MACHINE, range=COUNT)
    runtimes: tuple[str, ...] = setting(
        (AUTO_RUNTIMES,),
        "runtimes in which latency is measured, in turns with the unpruned network: TensorFlow "
        "with batches of 1 and 256, others with single images on one thread; auto: tensorflow, and "
        "litert where it is installed",
        MACHINE,
        choices=(*RUNTIMES, AUTO_RUNTIMES),
    )


def parse_args(argv=None):
    """Parses and checks the command line."""
    parser = utils.Parser(description="Evaluate a parameter file with moving statistics.")
    classes = {"network and data": TestSettings, "devices": op_utils.DeviceSettings}
    for title, cls in classes.items():
        add_flags(parser, title, cls)
    args = parser.parse_args(argv)
    try:
        for cls in classes.values():
            from_args(cls, args)
        if args.skip_bad_images and args.dataset != "ILSVRC2012":
            raise EkgError(
                f"`skip_bad_images` has no effect here: the images of {args.dataset} are not in "
                "files; leave it out."
            )
    except EkgError as error:
        parser.error(utils.with_flags(str(error), vars(args)))
    return args


def main(args):
    """Prints the table and returns its row."""
    team = Team(op_utils.make_strategy(from_args(op_utils.DeviceSettings, args)))
    op_utils.check_batch("val_batch_size", args.val_batch_size, {"devices": team.size})
    params = utils.load_params(args.trained_param)
    options = {"skip_bad_images": True} if args.skip_bad_images else {}
    data = dataloader.load(args.dataset, args.data_path, **options)
    if args.arch not in nets.archs_for(data.image_shape):
        raise EkgError(
            f"`arch` {args.arch}: does not take the {data.image_shape[0]}x{data.image_shape[1]} "
            f"images of {args.dataset}; networks that do: "
            f"{', '.join(nets.archs_for(data.image_shape))}."
        )
    with team.strategy.scope():
        model = nets.from_params(args.arch, params, data.num_classes, args.trained_param)
    use_xla = op_utils.use_xla(args.compile)
    batches = data.batches(data.test, args.val_batch_size)
    evaluation = Evaluation(model, batches, Compute(team, use_xla))
    row = measure(args.trained_param.stem, evaluation, args.trained_param.stat().st_size)
    unpruned = nets.build(args.arch, data.num_classes)
    if args.runtimes:
        _, row = with_latencies(
            [row, row], [unpruned, model], args.runtimes, data.image_shape, use_xla=use_xla
        )
    if team.is_chief:
        print(format_table([row], model_complexity(unpruned).flops, with_ratios=True))
    return row


if __name__ == "__main__":
    utils.run_script(main, parse_args)
