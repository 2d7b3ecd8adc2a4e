"""Measures how the cost of a search step grows with candidates, images, depth and width.

python -m benchmarks.growth --picture growth.png
"""

import argparse
import dataclasses
import json
import subprocess
import sys

import utils  # before TensorFlow: it sets TensorFlow's environment
import keras
import nets
import numpy as np
from analyses.results import markdown_table
from benchmarks import common
from ekg.data.dataset import Batches, Split
from ekg.process.memory import MIB, Peak, resident_mib
from ekg.network.supernet import Supernet
from ekg.run.arguments import origin
from ekg.searching.objective import Objective

RUNS = 3
IMAGES = 256
SIZE = 32
CANDIDATES = (1, 2, 4, 8, 16)
IMAGE_COUNTS = (128, 256, 512, 1024)
ARCHS = ("ResNet-8", "ResNet-20", "ResNet-32", "ResNet-56")
WIDTHS = (32, 64, 128, 256)
LARGE_SIZE = 224
LARGE_COUNTS = (1000, 8000, 32000)  # the last is the search on ImageNet: 32 images per class


@dataclasses.dataclass(frozen=True)
class Curve:
    """Durations as a function of a count.

    Attributes:
        name: name of the counted quantity.
        counts: list of its values.
        seconds: list of durations.
    """

    name: str
    counts: list
    seconds: list

    @property
    def slope(self):
        """Log-log slope of seconds over counts; 1 is linear."""
        return float(np.polyfit(np.log(self.counts), np.log(self.seconds), 1)[0])


def scoring_seconds(model, num_images, num_candidates):
    """Returns the seconds for scoring candidates from the input, with this number of images."""
    supernet = Supernet(model)
    data = common.random_data(num_images, SIZE)
    objective = Objective(supernet, Batches(data.train, data.normalise, IMAGES), "none")
    whole = supernet.whole()
    return common.seconds(lambda: objective.scores(whole, [(None, whole)] * num_candidates), RUNS)


def plain_network(width):
    """Returns a network of three convolutions with `width` channels."""
    x = inputs = keras.Input((SIZE, SIZE, 3))
    for _ in range(3):
        x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def cost(model):
    supernet = Supernet(model)
    return supernet.complexity(supernet.whole()).flops


def measure():
    """Returns a list of the Curves as plain data."""
    small = nets.build("ResNet-20", 10)
    wide = [plain_network(width) for width in WIDTHS]
    deep = [nets.build(arch, 10) for arch in ARCHS]
    curves = [
        Curve(
            "candidates",
            list(CANDIDATES),
            [scoring_seconds(small, IMAGES, count) for count in CANDIDATES],
        ),
        Curve(
            "images",
            list(IMAGE_COUNTS),
            [scoring_seconds(small, count, 2) for count in IMAGE_COUNTS],
        ),
        Curve(
            "FLOPs by depth",
            [cost(model) for model in deep],
            [scoring_seconds(model, IMAGES, 2) for model in deep],
        ),
        Curve(
            "FLOPs by width",
            [cost(model) for model in wide],
            [scoring_seconds(model, IMAGES, 2) for model in wide],
        ),
    ]
    return [dataclasses.asdict(curve) for curve in curves]


def search_memory(count):
    """Measures the memory of a search with `count` large images.

    The network's own activations are small, so that they do not hide what grows with the images.

    Returns:
        {"images": count, "images_mib": MiB of the images, "more_mib": MiB besides, at the peak}.
    """
    x = inputs = keras.Input((LARGE_SIZE, LARGE_SIZE, 3))
    for filters, size in ((4, 8), (8, 4)):
        x = keras.layers.Conv2D(filters, size, size, use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    outputs = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    supernet = Supernet(keras.Model(inputs, outputs))
    images = np.zeros((count, LARGE_SIZE, LARGE_SIZE, 3), np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, images.shape[1:]).astype(np.uint8)
    for number, image in enumerate(images):
        image[:] = np.roll(noise, number)
    data = common.random_data(IMAGES, LARGE_SIZE)
    whole = supernet.whole()
    batches = Batches(Split(images, np.arange(count, dtype=np.int32) % 10), data.normalise, IMAGES)
    before = resident_mib()
    with Peak() as peak:
        objective = Objective(supernet, batches)
        objective.add_knowledge(whole)
        list(objective.gate_products(whole))
        objective.scores(whole, [(0, whole.with_widths({supernet.groups[0].name: 0.5}))])
    return {"images": count, "images_mib": images.nbytes / MIB, "more_mib": peak.host_mib - before}


def measure_memory():
    """Returns a list with search_memory() of LARGE_COUNTS, each in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.growth", "--memory_of"]
    results = []
    for count in LARGE_COUNTS:
        process = subprocess.run(
            [*command, str(count)], stdout=subprocess.PIPE, text=True, check=True
        )
        results.append(json.loads(process.stdout.splitlines()[-1]))
    return results


def memory_markdown(rows):
    """Returns the lines of a page on the rows of measure_memory()."""
    cells = [
        [f"{row['images']:,}", f"{row['images_mib']:,.0f}", f"{row['more_mib']:,.0f}"]
        for row in rows
    ]
    return [
        f"Memory of a search with images of {LARGE_SIZE}x{LARGE_SIZE} that are held decoded. "
        "States of the present sub-network are kept while they fit 1 GiB; ImageNet's images are "
        "held as long as they fit `--image_memory`, and else decoded batch by batch.",
        "",
        markdown_table(["images", "MiB of images", "MiB besides"], cells),
        "",
    ]


def draw(curves, path):
    """Draws the curves as plain data, each relative to its first point, on log-log axes."""
    from ekg.report.pictures import plt  # it imports matplotlib

    figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
    largest = 1.0
    for curve in (Curve(**values) for values in curves):
        counts = np.array(curve.counts) / curve.counts[0]
        seconds = np.array(curve.seconds) / curve.seconds[0]
        axes.plot(counts, seconds, "o-", label=f"{curve.name}, slope {curve.slope:.2f}")
        largest = max(largest, counts[-1])
    axes.plot([1, largest], [1, largest], "k:", label="as much more time")
    axes.set(xscale="log", yscale="log", xlabel="times as many, or as much", ylabel="times as long")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def markdown(curves, picture, revision):
    """Returns the lines of a page on curves, given as plain data, and the revision of the code."""
    rows = [
        [
            curve.name,
            f"{curve.counts[0]:,} to {curve.counts[-1]:,}",
            f"{curve.seconds[0]:.2f} to {curve.seconds[-1]:.2f}",
            f"{curve.slope:.2f}",
        ]
        for curve in (Curve(**values) for values in curves)
    ]
    return [
        "## Growth",
        "",
        f"Revision {revision}. Seconds to score candidates on {SIZE}x{SIZE} images, starting at "
        "the input, and their log-log slope (1 = linear).",
        "",
        f"![growth of the cost]({picture})",
        "",
        markdown_table(["what grows", "from, to", "seconds", "slope"], rows),
        "",
    ]


def main(args):
    if args.memory_of:
        print(json.dumps(search_memory(args.memory_of)))
        return
    curves = measure()
    revision = (origin()["revision"] or "unknown")[:7]
    lines = markdown(curves, args.picture or "", revision)
    lines += memory_markdown(measure_memory())
    print("\n".join(lines))
    if args.picture:
        draw(curves, args.picture)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Measure how the cost of a search step grows.")
    parser.add_argument("--picture", help="file that the curves are drawn into")
    parser.add_argument(
        "--memory_of", type=int, help="print the memory of a search with so many large images, JSON"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    utils.run_script(main, parse_args)
