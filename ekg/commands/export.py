"""Exports a network, pruned or not, and proves that the file computes the same: `ekg export`."""

import dataclasses
from pathlib import Path

import ekg
from ekg import command_line, settings
from ekg.commands.networks import asked_by, find_network
from ekg.data.examples import draw_labelled
from ekg.data.own import make_data
from ekg.deploy.accuracy import measure_exported
from ekg.deploy.format import QUANTIZATIONS, random_inputs
from ekg.deploy.formats import FORMATS
from ekg.deploy.proof import TOLERANCES, squashes_of
from ekg.errors import EkgError
from ekg.graph.calls import Graph
from ekg.io.keras_files import load_keras
from ekg.latency.timing import summarise, time_in_turn
from ekg.settings import MACHINE, SEARCH, Settings, setting
from ekg.tasks.metrics import metric_named

NUM_EXAMPLES = 256
ROUNDS = 100


@dataclasses.dataclass(frozen=True)
class NetworkSettings(Settings):
    """The network, and the file to write."""

    model: Path = setting(None, "run folder, or .keras or .h5 file", SEARCH, is_required=True)
    out: Path = setting(None, "file to write, or folder of a SavedModel", SEARCH, is_required=True)
    format: str | None = setting(
        None,
        "format; by default by the ending of --out: .keras, .tflite, .onnx, none for a SavedModel",
        SEARCH,
        choices=tuple(FORMATS),
        may_be_none=True,
    )
    quantize: str | None = setting(
        None,
        "quantisation of a .tflite file; dynamic: weights in 8 bits; int8: everything in 8 bits, "
        "which needs --data_path",
        SEARCH,
        choices=QUANTIZATIONS,
        may_be_none=True,
    )
    tolerance: float | None = setting(
        None,
        "greatest difference of an output as a share of the greatest one; without it "
        + ", ".join(f"{value:g} for {name or 'float32'}" for name, value in TOLERANCES.items()),
        SEARCH,
        range=settings.POSITIVE,
        may_be_none=True,
    )


@dataclasses.dataclass(frozen=True)
class DataSettings(Settings):
    """Data on which the exported network is compared and measured."""

    data_path: str | None = setting(
        None,
        "your own data: folder with one subfolder of images per class, .npz with x and y, or with "
        "an array per input and y_NAME per output, or tfds:NAME",
        MACHINE,
        may_be_none=True,
    )
    val_path: str | None = setting(
        None,
        "your own data to measure the accuracy on; by default --data_path",
        MACHINE,
        may_be_none=True,
    )
    rescale: tuple[float, ...] | None = setting(
        None,
        "values of grey levels 0 and 255 of your own images, say -1 1",
        SEARCH,
        may_be_none=True,
    )


FLAGS = {"network": NetworkSettings, "data": DataSettings}


def parse_args(argv=None, prog=None, flags=FLAGS, names_of_data=("data_path",)):
    """Returns the checked arguments.

    Args:
        argv: list of arguments; None takes those of the process.
        prog: name of the program for its help; None takes that of the process.
        flags: {title of a group of flags: dataclass of its settings}.
        names_of_data: names of the flags that name data; int8 needs one of them.
    """
    parser = command_line.Parser(
        prog=prog, description="Export a network, and check that the file computes the same."
    )
    for title, cls in flags.items():
        command_line.add_flags(parser, title, cls)
    args = parser.parse_args(argv)
    try:
        for cls in flags.values():
            command_line.from_args(cls, args)
        if args.rescale is not None and len(args.rescale) != 2:
            raise EkgError("`rescale` takes 2 numbers.")
        if args.quantize == "int8" and all(getattr(args, name) is None for name in names_of_data):
            either = ", or ".join(f"`{name}`" for name in names_of_data)
            raise EkgError(f"`quantize` int8 takes its ranges from data: name {either}.")
    except EkgError as error:
        parser.error(command_line.with_flags(str(error), vars(args)))
    return args


def check_size(args, model):
    """Raises EkgError if a network leaves the size of its images open, so that no data fit."""
    if asked_by(model).is_open:
        raise EkgError(
            f"`model` {args.model} takes images of any size; export it in a program, with "
            "ekg.export(model, path, examples=images)."
        )


def load_own_data(args, model):
    """Returns the user's own data to compare and measure on, or None where none are named."""
    if args.data_path is None:
        return None
    check_size(args, model)
    asked = asked_by(model)
    train, _ = asked.load(args.data_path, args.rescale)
    validation = None
    if args.val_path:
        validation, _ = asked.load(args.val_path, args.rescale, "test", "val_path")
    return make_data(model, train, validation_data=validation)


def main(args):
    """Exports a network as the arguments say; see export_network()."""
    model = load_keras(find_network(args.model))
    return export_network(args, model, load_own_data(args, model))


def export_network(args, model, data):
    """Exports, prints the result, and returns (ekg.Export, {metric: value} in its runtime).

    Args:
        args: parsed arguments.
        model: keras.Model.
        data: data set to compare and measure on, or None.
    """
    examples, labels, task = None, None, "auto"
    if data is not None:
        (examples, labels), task = draw_labelled(data, NUM_EXAMPLES), data.task
    result = ekg.export(
        model,
        args.out,
        args.format,
        quantize=args.quantize,
        examples=examples,
        labels=labels,
        task=task,
        tolerance=args.tolerance,
    )
    print(result)
    measured = {}
    if data is not None:
        squashes = squashes_of(Graph(model), data.task)
        measured = measure_exported(
            result.reader, data.batches(data.test or data.train, 1), squashes
        )
        print(
            ", ".join(
                f"{metric_named(name).title} {metric_named(name).text(value)}"
                for name, value in measured.items()
            )
            + f" on {len(data.test or data.train)} {'test' if data.test else 'training'} "
            f"examples, in its own runtime"
        )
    forward_pass = None
    if not asked_by(model).is_open:
        forward_pass = result.reader.make_pass(random_inputs(Graph(model), 1))
    if forward_pass is not None:
        timing = summarise(time_in_turn([forward_pass], ROUNDS, 10))[0]
        print(f"{timing.milliseconds:.3g} ms for one example [{timing.low:.3g}, {timing.high:.3g}]")
    return result, measured
