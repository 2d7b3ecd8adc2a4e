"""Whole jobs on small networks of several kinds, beside equal widths with the same training.

    python -m benchmarks.kinds --out runs/kinds

Three networks are trained on scikit-learn's handwritten digits and pruned to a share of their
FLOPs: one of two inputs, an image and the sums of its columns; a 1-D convolution and a GRU that
read the rows of an image; and a subclassed ResNet. The same networks, cut to equal widths by the L1
norms of their kernels, get the same fine-tuning. The pruned networks are exported to LiteRT and
ONNX and compared with the network in memory. It prints a table and writes kinds.json.
"""

import dataclasses
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import ekg
import keras
import numpy as np
from analyses.widths import scaled_subnetwork
from ekg.io import files
from ekg.searching import criteria
from ekg.searching.objective import Objective
from ekg.train.evaluate import evaluate
from keras import layers
from sklearn import datasets

BATCH = 32
LEARNING_RATE = 2e-3  # Adam, of the baseline and of fine-tuning, with a cosine decay
TEST_EVERY = 5  # every fifth image is a test image
MOMENTUM = 0.9  # of moving statistics, which with Keras' .99 would lag behind after so few steps
RUNTIMES = ("litert", "onnx")


# ---------------------------------------------------------------- networks


def convolution(x, filters, strides=1):
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization(momentum=MOMENTUM)(x))


def two_inputs():
    """Returns a network of an image and eight numbers."""
    image, columns = keras.Input((8, 8, 1), name="image"), keras.Input((8,), name="columns")
    x = convolution(convolution(convolution(image, 32), 48, 2), 64)
    y = layers.Dense(48, activation="relu")(layers.Dense(48, activation="relu")(columns))
    joined = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), y])
    x = layers.Dense(64, activation="relu")(joined)
    return keras.Model({"image": image, "columns": columns}, layers.Dense(10)(x), name="two-inputs")


def rows():
    """Returns a network that reads the rows of an image one after the other."""
    inputs = keras.Input((8, 8), name="rows")
    x = layers.Conv1D(48, 3, padding="same", activation="relu")(inputs)
    x = layers.Conv1D(48, 3, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Dense(10)(layers.GRU(64)(x)), name="conv1d-gru")


class Block(keras.layers.Layer):
    """Two convolutions beside a shortcut, which is a convolution where the size changes."""

    def __init__(self, filters, strides, **options):
        super().__init__(**options)
        self.filters, self.strides = filters, strides
        self.first = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)
        self.second = layers.Conv2D(filters, 3, padding="same", use_bias=False)
        self.norms = [layers.BatchNormalization(momentum=MOMENTUM) for _ in range(2)]
        self.shortcut = layers.Conv2D(filters, 1, strides) if strides > 1 else None
        self.relu, self.add = layers.ReLU(), layers.Add()

    def call(self, inputs):
        x = self.relu(self.norms[0](self.first(inputs)))
        x = self.norms[1](self.second(x))
        shortcut = inputs if self.shortcut is None else self.shortcut(inputs)
        return self.relu(self.add([x, shortcut]))


class ResNet(keras.Model):
    """A subclassed network of residual blocks, whose graph only its call() knows."""

    def __init__(self, **options):
        super().__init__(**options)
        self.stem = layers.Conv2D(24, 3, padding="same", activation="relu")
        self.blocks = [Block(24, 1), Block(48, 2), Block(48, 1)]
        self.pool, self.head = layers.GlobalAveragePooling2D(), layers.Dense(10)

    def call(self, images):
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(x))


def resnet():
    """Returns a subclassed ResNet, built for the digits."""
    model = ResNet(name="subclassed-resnet")
    model(np.zeros((1, 8, 8, 1), np.float32))
    return model


def load_digits():
    """Returns the digits as arrays of images [n, 8, 8, 1] in [0, 1], and their labels."""
    images, labels = datasets.load_digits(return_X_y=True)
    return (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32), labels


def with_columns(images):
    return {"image": images, "columns": images.sum((1, 3))}


KINDS = {  # name of a network: function that makes it, function from images to its inputs
    "two-inputs": (two_inputs, with_columns),
    "conv1d-gru": (rows, lambda images: images[..., 0]),
    "subclassed-resnet": (resnet, lambda images: images),
}


# ---------------------------------------------------------------- jobs


@dataclasses.dataclass(frozen=True)
class Row:
    """One network and one seed: shares of right answers on the test images, and the exports.

    Attributes:
        network: its name.
        seed: seed of everything.
        rate: share of the FLOPs that the pruned network keeps.
        equal_rate: share that equal widths keep.
        before, cut, after: shares of right answers of the pruned network.
        equal_cut, equal_after: likewise of equal widths.
        exports: {runtime: (batch, greatest difference as a share of a channel's range, share of
            examples with the same answer)}.
        ratios: {runtime: time of one example divided by the unpruned network's}.
    """

    network: str
    seed: int
    rate: float
    equal_rate: float
    before: float
    cut: float
    after: float
    equal_cut: float
    equal_after: float
    exports: dict
    ratios: dict


def add_flags(parser, networks, out):
    """Adds the flags of a program that trains and prunes networks with several seeds.

    Args:
        parser: argparse.ArgumentParser.
        networks: names of all its networks.
        out: default of its folder.
    """
    parser.add_argument("--networks", nargs="*", choices=networks, default=networks)
    parser.add_argument("--baseline_epoch", type=int, default=30, help="epochs of each baseline")
    parser.add_argument("--train_epoch", type=int, default=20, help="epochs of fine-tuning")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder for all files")


def parse_args(argv=None):
    parser = utils.Parser(description="Prune small networks of several kinds on digits.")
    add_flags(parser, tuple(KINDS), "runs/kinds")
    parser.add_argument("--rate", type=float, default=0.5, help="share of the FLOPs to keep")
    return parser.parse_args(argv)


def optimizer():
    return keras.optimizers.Adam()


def train(model, inputs, labels, epochs):
    steps = epochs * -(-len(labels) // BATCH)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(inputs, labels, batch_size=BATCH, epochs=epochs, verbose=0)


def recipe(epochs):
    """Returns the settings of both fine-tunings."""
    steps = epochs * (1437 // BATCH)
    return {
        "batch_size": BATCH,
        "optimizer": optimizer(),
        "schedule": keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps),
    }


def top1(model, data):
    return evaluate(model, data.batches(data.test, BATCH)).top1


def equal_widths(model, data, args, seed):
    """Returns (top-1 of the network of equal widths as it was cut, after fine-tuning, its rate).

    The unpruned network's logits are its memory bank.
    """
    supernet = ekg.Supernet(model)
    objective = Objective(supernet, data.batches(data.train, BATCH).head(BATCH), "none")
    scores = criteria.l1(criteria.CriterionContext(objective, supernet.whole(), seed))
    subnetwork = scaled_subnetwork(supernet, scores, args.rate, [1.0] * len(supernet.groups))
    smaller = ekg.slim(supernet, subnetwork, data, repair=True)
    cut = top1(smaller, data)
    whole = ekg.search(supernet, data, target_rate=1.0).history
    folder = args.out / f"{model.name}-{seed}-equal"
    bank = ekg.build_bank(folder, supernet, whole, data, num_teacher=1)
    ekg.fine_tune(
        smaller, data, bank, epochs=args.train_epoch, seed=seed, **recipe(args.train_epoch)
    )
    return cut, top1(smaller, data), supernet.rate(subnetwork)


def run(name, seed, args):
    """Returns the Row of a network and a seed."""
    keras.utils.set_random_seed(seed)
    make, inputs_of = KINDS[name]
    images, labels = load_digits()
    is_test = np.arange(len(labels)) % TEST_EVERY == 0
    given, held_out = (
        (inputs_of(images[chosen]), labels[chosen]) for chosen in (~is_test, is_test)
    )
    model = make()
    train(model, *given, args.baseline_epoch)
    result = ekg.prune(
        model,
        given,
        validation_data=held_out,
        target_rate=args.rate,
        epochs=args.train_epoch,
        fine_tune=recipe(args.train_epoch),
        run={"runtimes": ("litert", "onnxruntime"), "exports": RUNTIMES},
        run_dir=args.out / f"{name}-{seed}",
        seed=seed,
    )
    print(result.summary())
    opened = ekg.open_model(model)
    data = ekg.make_data(opened, given, validation_data=held_out)
    equal_cut, equal_after, equal_rate = equal_widths(opened, data, args, seed)
    exports = {}
    for runtime, ending in zip(RUNTIMES, (".tflite", ".onnx")):
        export = result.export(args.out / f"{name}-{seed}{ending}")
        exports[runtime] = export.batch, export.share, export.agreement
    before, cut, after = result.table
    return Row(
        name,
        seed,
        result.rate,
        equal_rate,
        before.top1,
        cut.top1,
        after.top1,
        equal_cut,
        equal_after,
        exports,
        {runtime: timing["ratio"] for runtime, timing in after.latencies.items()},
    )


# ---------------------------------------------------------------- the table


def table(rows):
    """Returns a Markdown table with one line per network: means over its seeds, and their standard
    deviations.
    """
    lines = [
        "| network | seeds | FLOPs kept | before | cut | after | equal widths, cut | equal widths, "
        "after | LiteRT, ONNX: greatest difference | batch | time |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row.network for row in rows):
        own = [row for row in rows if row.network == name]
        figures = [
            _percent([getattr(row, field) for row in own])
            for field in ("before", "cut", "after", "equal_cut", "equal_after")
        ]
        shares = [max(row.exports[runtime][1] for row in own) for runtime in RUNTIMES]
        batches = [str(own[0].exports[runtime][0]) for runtime in RUNTIMES]
        times = [f"{np.median([row.ratios[key] for row in own]):.2f}" for key in own[0].ratios]
        rates = [[row.rate for row in own], [row.equal_rate for row in own]]
        kept = ", ".join(f"{np.mean(values):.3f}" for values in rates)
        cells = [name, str(len(own)), kept, *figures]
        cells += [", ".join(f"{share:.1g}" for share in shares), ", ".join(batches)]
        lines.append(f"| {' | '.join([*cells, ', '.join(times)])} |")
    return "\n".join(lines)


def _percent(values):
    spread = f" ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.2f}{spread}"


def main(args):
    """Runs all jobs, prints the table, and writes and returns the rows."""
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in args.networks:
        for seed in range(args.seeds):
            rows.append(run(name, seed, args))
            files.write_json(
                args.out / "kinds.json", {"rows": [dataclasses.asdict(row) for row in rows]}
            )
    print(table(rows))
    return rows


if __name__ == "__main__":
    utils.run_script(main, parse_args)
