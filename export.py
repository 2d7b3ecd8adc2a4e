"""Exports a network, pruned or not, and proves that the file computes the same.

    python export.py --model runs/mine --out pruned.tflite
    python export.py --model runs/mine --out pruned.tflite --quantize int8 \\
        --data_path images --rescale -1 1
    python export.py --model resnet56.pkl --arch ResNet-56 --out resnet56.onnx \\
        --dataset CIFAR10 --data_path cifar
"""

import dataclasses
import functools
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import nets
from ekg.commands import export as command
from ekg.commands.networks import find_network
from ekg.errors import EkgError
from ekg.io import h5_files
from ekg.run.folder import RunFolder
from ekg.settings import MACHINE, SEARCH, setting


@dataclasses.dataclass(frozen=True)
class NetworkSettings(command.NetworkSettings):
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


@dataclasses.dataclass(frozen=True)
class DataSettings(command.DataSettings):
    """Data on which the exported network is compared and measured."""

    data_path: str | None = setting(
        None,
        "path of the data set; or your own data: folder with one subfolder of images per "
        "class, .npz, tfds:NAME",
        MACHINE,
        may_be_none=True,
    )
    dataset: str | None = setting(
        None,
        "data set by name; by default the run's, or your own data in --data_path",
        SEARCH,
        choices=tuple(dataloader.DATASETS),
        may_be_none=True,
    )


FLAGS = {"network": NetworkSettings, "data": DataSettings}
parse_args = functools.partial(
    command.parse_args, flags=FLAGS, names_of_data=("data_path", "dataset")
)


def load_model(args):
    """Returns (keras.Model, name of the data set of its run or None)."""
    path = args.model
    if path.is_dir():
        model = utils.load_keras(find_network(path))
        dataset = RunFolder.open(path).arguments().get("dataset")
        return model, dataset if dataset in dataloader.DATASETS else None
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
    dataset = args.dataset or dataset
    if dataset is None or not (args.dataset or args.data_path):
        return command.load_own_data(args, model)
    command.check_size(args, model)
    shape = tuple(model.inputs[0].shape[1:])
    data = dataloader.load(dataset, args.data_path)
    if shape != tuple(data.image_shape):
        raise EkgError(
            f"`dataset` {dataset} has images of {data.image_shape}, and the network takes {shape}."
        )
    return data


def main(args):
    """Exports, prints the result, and returns (ekg.Export, {metric: value} in its runtime)."""
    model, dataset = load_model(args)
    return command.export_network(args, model, load_data(args, model, dataset))


if __name__ == "__main__":
    utils.run_script(main, parse_args)
