"""Exports a network, pruned or not, and proves that the file computes the same.

    python export.py --model runs/mine --out pruned.tflite
    python export.py --model runs/mine --out pruned.tflite --quantize int8 \\
        --data_path images --rescale -1 1
    python export.py --model resnet56.pkl --arch ResNet-56 --out resnet56.onnx \\
        --dataset CIFAR10 --data_path cifar
"""

import dataclasses
from pathlib import Path

import numpy as np

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import ekg
import nets
from dataloader import own
from ekg import command_line, settings
from ekg.io import h5_files
from ekg.errors import EkgError
from ekg.data.examples import draw_labelled
from ekg.deploy.accuracy import measure_exported
from ekg.deploy.format import QUANTIZATIONS
from ekg.deploy.proof import TOLERANCES, squashes_of
from ekg.deploy.formats import FORMATS
from ekg.graph.calls import Graph
from ekg.latency.timing import summarise, time_in_turn
from ekg.data.own import make_data
from ekg.run import folder as names
from ekg.run.folder import RunFolder
from ekg.settings import MACHINE, SEARCH, Settings, setting
from ekg.tasks.metrics import metric_named

NUM_EXAMPLES = 256
ROUNDS = 100


@dataclasses.dataclass(frozen=True)
class ExportSettings(Settings):
    """The network, and the file to write."""

    model: Path = setting(
        None,
        "run folder, .keras or .h5 file, or parameter file with --arch",
        SEARCH,
        is_required=True,
    )
    arch: str | None = setting(
        None, "network of a parameter file", SEARCH, choices=tuple(nets.ARCHS), may_be_none=True
    )
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

    dataset: str | None = setting(
        None,
        "data set by name; by default the run's, or your own data in --data_path",
        SEARCH,
        choices=tuple(dataloader.DATASETS),
        may_be_none=True,
    )
    data_path: str | None = setting(
        None,
        "path of the data set; or your own data: folder with one subfolder of images per "
        "class, .npz, tfds:NAME",
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


FLAGS = {"network": ExportSettings, "data": DataSettings}


def parse_args(argv=None):
    """Returns the checked arguments."""
    parser = utils.Parser(
        description="Export a network, and check that the file computes the same."
    )
    for title, cls in FLAGS.items():
        command_line.add_flags(parser, title, cls)
    args = parser.parse_args(argv)
    try:
        for cls in FLAGS.values():
            command_line.from_args(cls, args)
        if args.rescale is not None and len(args.rescale) != 2:
            raise EkgError("`rescale` takes 2 numbers.")
        if args.quantize == "int8" and args.data_path is None and args.dataset is None:
            raise EkgError(
                "`quantize` int8 takes its ranges from data: name `data_path`, or `dataset`."
            )
    except EkgError as error:
        parser.error(utils.with_flags(str(error), vars(args)))
    return args


def load_model(args):
    """Returns (keras.Model, name of the data set of its run or None)."""
    path = args.model
    if path.is_dir():
        run = RunFolder.open(path)
        found = next(
            (name for name in (names.TRAINED_KERAS, names.SLIMMED_KERAS) if run.has(name)), None
        )
        if found is None:
            raise EkgError(f"`model` {path}: the run left no .keras file; is it finished?")
        dataset = run.arguments().get("dataset")
        return utils.load_keras(run / found), dataset if dataset in dataloader.DATASETS else None
    if path.suffix in (".keras", *h5_files.SUFFIXES):
        return utils.load_keras(path), None
    if args.arch is None:
        raise EkgError(
            f"`model` {path}: a parameter file needs the name of its network, `arch`; otherwise "
            "give a run folder, or a .keras or .h5 file."
        )
    params = utils.load_params(path)
    return nets.from_params(args.arch, params, nets.num_classes_of(params, path), path), None


def load_data(args, model, dataset):
    """Returns the data set to compare and measure on, or None where none is named."""
    shape = tuple(model.inputs[0].shape[1:])
    if None in shape and (args.dataset or args.data_path):
        raise EkgError(
            f"`model` {args.model} takes images of any size; export it in a program, with "
            "ekg.export(model, path, examples=images)."
        )
    dataset = args.dataset or dataset
    if dataset is not None and (args.dataset or args.data_path):
        data = dataloader.load(dataset, args.data_path)
        if shape != tuple(data.image_shape):
            raise EkgError(
                f"`dataset` {dataset} has images of {data.image_shape}, and the network takes "
                f"{shape}."
            )
        return data
    if args.data_path is None:
        return None
    train, _ = own.load(args.data_path, shape, args.rescale)
    validation = (
        own.load(args.val_path, shape, args.rescale, "test", "val_path")[0]
        if args.val_path
        else None
    )
    return make_data(model, train, validation_data=validation)


def main(args):
    """Exports, prints the result, and returns (ekg.Export, {metric: value} in its runtime)."""
    model, dataset = load_model(args)
    data = load_data(args, model, dataset)
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
    has_sizes = not any(None in symbol.shape[1:] for symbol in model.inputs)
    forward_pass = None
    if has_sizes:
        example = [np.zeros((1, *symbol.shape[1:]), symbol.dtype) for symbol in model.inputs]
        forward_pass = result.reader.make_pass(example)
    if forward_pass is not None:
        timing = summarise(time_in_turn([forward_pass], ROUNDS, 10))[0]
        print(f"{timing.milliseconds:.3g} ms for one example [{timing.low:.3g}, {timing.high:.3g}]")
    return result, measured


if __name__ == "__main__":
    utils.run_script(main, parse_args)
