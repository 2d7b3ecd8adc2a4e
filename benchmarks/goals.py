"""An accuracy goal on small networks of several kinds: is it met, and on images that are new, too?

    python -m benchmarks.goals --out runs/goals

Three networks are trained on a part of scikit-learn's handwritten digits: a small CNN, ResNet-20,
and a 1-D convolution and a GRU that read the rows of an image. ekg.prune then looks for the
smallest network that loses at most so many points. The digits that it holds out for this are also
held out from the training of the unpruned network. A row says which rate was chosen, how many
points were lost on what was held out, by which the rate was chosen, and how many on the test
images, which decided nothing. The goal counts as met where the loss exceeds it by no more than 0.3
points and one standard error. The same command again resumes. It prints a table and writes
goals.json.
"""

import dataclasses

import utils  # before TensorFlow: it sets TensorFlow's environment
import ekg
import keras
import nets
import numpy as np
from benchmarks import kinds
from ekg.goal import Drop, example_values, hold_out
from ekg.io import files
from keras import layers

RECORD = "goals.json"
METRIC = "top1"
TOLERANCE = 0.003  # share of the metric beyond the standard error that still counts as met


# ---------------------------------------------------------------- networks


def cnn():
    """Returns a network of three convolutions."""
    image = keras.Input((8, 8, 1), name="image")
    x = kinds.convolution(kinds.convolution(kinds.convolution(image, 32), 48, 2), 64)
    x = layers.Dense(64, activation="relu")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, layers.Dense(10)(x), name="cnn")


def resnet20():
    """Returns ResNet-20 for images of 8x8, with the batch norm momentum of the others."""
    small = keras.Input((8, 8, 3), name="images")

    def clone(layer):
        config = layer.get_config()
        if isinstance(layer, layers.BatchNormalization):
            config["momentum"] = kinds.MOMENTUM
        return type(layer).from_config(config)

    return keras.models.clone_model(nets.build("ResNet-20", 10), small, clone)


NETWORKS = {  # name of a network: function that makes it, function from images to its inputs
    "cnn": (cnn, lambda images: images),
    "resnet-20": (resnet20, lambda images: images.repeat(3, axis=-1)),
    "conv1d-gru": (kinds.rows, lambda images: images[..., 0]),
}


# ---------------------------------------------------------------- jobs


@dataclasses.dataclass(frozen=True)
class Row:
    """One network and one seed.

    Attributes:
        network: its name.
        seed: seed of everything.
        rate: share of the FLOPs that the pruned network keeps.
        tried: what was tried, as the result's note says it.
        unpruned: share of right answers of the unpruned network on the test images.
        held_out, test: (points lost / 100, standard error, number of images).
    """

    network: str
    seed: int
    rate: float
    tried: str
    unpruned: float
    held_out: tuple
    test: tuple

    def is_met(self, drop):
        """Returns whether a loss of at most `drop` is met on what was held out, and on the test
        images.
        """
        return [mean <= drop + TOLERANCE + error for mean, error, _ in (self.held_out, self.test)]


def parse_args(argv=None):
    parser = utils.Parser(description="Prune small networks on digits to an accuracy goal.")
    kinds.add_flags(parser, tuple(NETWORKS), "runs/goals")
    parser.add_argument("--max_drop", type=float, default=1.0, help="points that may be lost")
    parser.add_argument("--held_out", type=float, default=0.2, help="share that is held out")
    parser.add_argument("--lowest_rate", type=float, default=0.1, help="smallest rate to try")
    parser.add_argument("--groups_per_step", type=int, default=1, help="of the search")
    return parser.parse_args(argv)


def trained(path, make, inputs, labels, epochs):
    """Returns the trained network in a file; it is trained first where there is none."""
    if not path.exists():
        model = make()
        kinds.train(model, inputs, labels, epochs)
        unfinished = path.with_suffix(".unfinished.keras")
        model.save(unfinished)
        unfinished.rename(path)
    return keras.models.load_model(path)


def run(name, seed, args):
    """Returns the Row of a network and a seed."""
    keras.utils.set_random_seed(seed)
    make, inputs_of = NETWORKS[name]
    images, labels = kinds.load_digits()
    is_test = np.arange(len(labels)) % kinds.TEST_EVERY == 0
    given, new = ((inputs_of(images[part]), labels[part]) for part in (~is_test, is_test))
    held, kept = hold_out(given[1], args.held_out, seed)
    seen = [array[kept] for array in given]
    model = trained(args.out / f"{name}-{seed}.keras", make, *seen, args.baseline_epoch)
    result = ekg.prune(
        model,
        given,
        validation_data=new,
        target={
            "drop": args.max_drop / 100,
            "held_out": args.held_out,
            "lowest_rate": args.lowest_rate,
        },
        epochs=args.train_epoch,
        search={"groups_per_step": args.groups_per_step},
        fine_tune=kinds.recipe(args.train_epoch),
        run={"runtimes": ()},
        run_dir=args.out / f"{name}-{seed}",
        seed=seed,
    )
    print(result.summary())
    data = ekg.make_data(model, given, validation_data=new)
    drops = []
    for split in (data.train.take(held), data.test):
        unpruned, pruned = (
            example_values(network, data, split, METRIC) for network in (model, result.model)
        )
        drop = Drop.between(unpruned, pruned)
        drops.append((drop.mean, drop.error, len(split)))
    tried = result.note.splitlines()[-1].partition("points lost: ")[2]
    return Row(name, seed, result.rate, tried, float(np.mean(unpruned)), *drops)


# ---------------------------------------------------------------- the table


def table(rows, drop):
    """Returns a Markdown table with one line per network and seed.

    Args:
        rows: list of Row.
        drop: share that may be lost.
    """
    lines = [
        "| network | seed | FLOPs kept | test accuracy, unpruned | points lost, held-out images | "
        "met | points lost, test images | met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row.network, str(row.seed), f"{row.rate:.3f}", f"{100 * row.unpruned:.2f}"]
        for (mean, error, count), is_met in zip((row.held_out, row.test), row.is_met(drop)):
            cells.append(f"{100 * mean:.2f} ±{100 * error:.2f} ({count})")
            cells.append("yes" if is_met else "no")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(args):
    """Runs all jobs that are not there, prints the table, and writes and returns the rows."""
    args.out.mkdir(parents=True, exist_ok=True)
    path, rows = args.out / RECORD, []
    if path.exists():
        rows = [
            Row(**{key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()})
            for entry in files.read_json(path, {"rows": list})["rows"]
        ]
    done = {(row.network, row.seed) for row in rows}
    for seed in range(args.seeds):
        for name in args.networks:
            if (name, seed) not in done:
                rows.append(run(name, seed, args))
                files.write_json(path, {"rows": [dataclasses.asdict(row) for row in rows]})
    print(table(rows, args.max_drop / 100))
    return rows


if __name__ == "__main__":
    utils.run_script(main, parse_args)
