"""Evaluates a network on a user's own data: `ekg evaluate`."""

import dataclasses
from pathlib import Path

from ekg import command_line
from ekg.commands import networks
from ekg.deploy.formats import AUTO_RUNTIMES, RUNTIMES
from ekg.devices.compute import Compute
from ekg.devices.kind import use_xla
from ekg.devices.strategy import DeviceSettings, make_strategy
from ekg.devices.team import Team
from ekg.errors import EkgError
from ekg.io.keras_files import load_keras
from ekg.pruning import understand
from ekg.report.measure import measure, with_latencies
from ekg.report.table import format_table
from ekg.run.check import check_batch
from ekg.settings import COUNT, MACHINE, SEARCH, Settings, setting
from ekg.tasks.kinds import TASKS
from ekg.train.evaluate import Evaluation


@dataclasses.dataclass(frozen=True)
class EvaluationSettings(Settings):
    """The network that is evaluated, and the data."""

    model: Path = setting(None, "run folder, or .keras or .h5 file", SEARCH, is_required=True)
    data_path: str = setting(
        None,
        "data: folder with one subfolder of images per class, .npz with x and y, or with an array "
        "per input and y_NAME per output, or tfds:NAME, whose split test is read",
        MACHINE,
        is_required=True,
        is_per_worker=True,
    )
    rescale: tuple[float, ...] | None = setting(
        None,
        "values of grey levels 0 and 255, say -1 1; without it the network takes them as they are",
        SEARCH,
        may_be_none=True,
    )
    image_size: tuple[int, ...] | None = setting(
        None,
        "height and width of the images, where the network leaves them open",
        SEARCH,
        range=COUNT,
        may_be_none=True,
    )
    task: str = setting(
        "auto",
        "task of the network; auto: inferred from its output and the labels",
        SEARCH,
        choices=("auto", *TASKS),
    )
    may_lose: tuple[str, ...] = setting(
        (), "names of outputs that do not count, where there are several", SEARCH
    )
    val_batch_size: int = setting(256, "images per step", MACHINE, range=COUNT)
    runtimes: tuple[str, ...] = setting(
        (AUTO_RUNTIMES,),
        "runtimes in which latency is measured: TensorFlow with batches of 1 and 256, others with "
        "single images on one thread; auto: tensorflow, and litert where it is installed",
        MACHINE,
        choices=(*RUNTIMES, AUTO_RUNTIMES),
    )


FLAGS = {"network and data": EvaluationSettings, "devices": DeviceSettings}


def parse_args(argv=None, prog=None):
    """Returns the checked arguments.

    Args:
        argv: list of arguments; None takes those of the process.
        prog: name of the program for its help; None takes that of the process.
    """
    parser = command_line.Parser(
        prog=prog, description="Measure loss, metrics, FLOPs, parameters and latency of a network."
    )
    for title, cls in FLAGS.items():
        command_line.add_flags(parser, title, cls)
    args = parser.parse_args(argv)
    try:
        for cls in FLAGS.values():
            command_line.from_args(cls, args)
        for name in ("rescale", "image_size"):
            if getattr(args, name) is not None and len(getattr(args, name)) != 2:
                raise EkgError(f"`{name}` takes 2 numbers.")
    except EkgError as error:
        parser.error(command_line.with_flags(str(error), vars(args)))
    return args


def main(args):
    """Prints the table of a network, and returns its row."""
    team = Team(make_strategy(command_line.from_args(DeviceSettings, args)))
    check_batch("val_batch_size", args.val_batch_size, {"devices": team.size})
    path = networks.find_network(args.model)
    with team.strategy.scope():
        model = load_keras(path)
        asked = networks.asked_by(model, args.image_size)
        examples, _ = asked.load(args.data_path, args.rescale, "test")
        limits = {"exclude": (), "min_channels": 1, "prune_frozen": False}
        meant = {"task": args.task, "may_lose": args.may_lose}
        data, logits, _, _ = understand(model, examples, meant, {}, limits, True)
    compiles = use_xla(args.compile)
    batches = data.batches(data.train, args.val_batch_size)
    evaluation = Evaluation(logits, batches, Compute(team, compiles))
    name = args.model.name if args.model.is_dir() else args.model.stem
    row = measure(name, evaluation, path.stat().st_size)
    if args.runtimes:
        shape = data.image_shape
        (row,) = with_latencies([row], [model], args.runtimes, shape, use_xla=compiles)
    if team.is_chief:
        print(format_table([row]))
        note = networks.size_note(logits, data.image_shape)
        print(f"measured on {row.examples} examples; ± is one standard error of the mean{note}")
    return row
