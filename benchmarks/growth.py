"""How the cost of a search step grows with candidates, images, depth and width.

    python -m benchmarks.growth --picture growth.png
"""

import argparse
import dataclasses

import utils  # before TensorFlow: it sets TensorFlow's environment
import keras
import nets
import numpy as np
from benchmarks import common
from ekg.data import Batches
from ekg.network.supernet import Supernet
from ekg.search.objective import Objective

RUNS, IMAGES, SIZE = 3, 256, 32
CANDIDATES, IMAGE_COUNTS = (1, 2, 4, 8, 16), (128, 256, 512, 1024)
ARCHS, WIDTHS = ("ResNet-8", "ResNet-20", "ResNet-32", "ResNet-56"), (32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Seconds of what grows along one axis.

    Attributes:
        name: what is counted.
        counts: how many of them, or how much.
        seconds: of each.
    """
    name: str
    counts: list
    seconds: list

    @property
    def slope(self):
        """Slope of log seconds over log counts: 1 where twice as much takes twice as long."""
        return float(np.polyfit(np.log(self.counts), np.log(self.seconds), 1)[0])


def scoring_seconds(model, num_images, num_candidates):
    """Returns the seconds in which candidates are scored from the input on, with as many images."""
    supernet, data = Supernet(model), common.random_data(num_images, SIZE)
    objective = Objective(supernet, Batches(data.train, data.normalise, IMAGES), "none")
    whole = supernet.whole()
    return common.seconds(lambda: objective.scores(whole, [(None, whole)] * num_candidates), RUNS)


def plain_network(width):
    """Returns a network of three convolutions of so many channels."""
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
    small, wide = nets.build("ResNet-20", 10), [plain_network(width) for width in WIDTHS]
    deep = [nets.build(arch, 10) for arch in ARCHS]
    curves = [
        Curve("candidates", list(CANDIDATES), [scoring_seconds(small, IMAGES, count) for count in CANDIDATES]),
        Curve("images", list(IMAGE_COUNTS), [scoring_seconds(small, count, 2) for count in IMAGE_COUNTS]),
        Curve("FLOPs by depth", [cost(model) for model in deep], [scoring_seconds(model, IMAGES, 2) for model in deep]),
        Curve("FLOPs by width", [cost(model) for model in wide], [scoring_seconds(model, IMAGES, 2) for model in wide])]
    return [dataclasses.asdict(curve) for curve in curves]


def draw(curves, path):
    """Draws the curves as plain data, each relative to its first point, on log-log axes."""
    from ekg.report.pictures import plt  # it imports matplotlib
    figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
    most = 1.0
    for curve in (Curve(**values) for values in curves):
        counts, seconds = (np.array(values) / values[0] for values in (curve.counts, curve.seconds))
        axes.plot(counts, seconds, "o-", label=f"{curve.name}, slope {curve.slope:.2f}")
        most = max(most, counts[-1])
    axes.plot([1, most], [1, most], "k:", label="as much more time")
    axes.set(xscale="log", yscale="log", xlabel="times as many, or as much", ylabel="times as long")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def markdown(curves, picture):
    """Returns the lines of a page about the curves as plain data."""
    rows = [[curve.name, f"{curve.counts[0]:,} to {curve.counts[-1]:,}",
             f"{curve.seconds[0]:.2f} to {curve.seconds[-1]:.2f}", f"{curve.slope:.2f}"]
            for curve in (Curve(**values) for values in curves)]
    return ["## Growth", "", f"Seconds in which candidates are scored on {SIZE}x{SIZE} images, from the input on, and the "
            "slope of their logarithm: 1 where twice as much takes twice as long.", "",
            f"![growth of the cost]({picture})", "",
            *common.table_lines(["what grows", "from, to", "seconds", "slope"], rows), ""]


def main(args):
    curves = measure()
    print("\n".join(markdown(curves, args.picture or "")))
    if args.picture:
        draw(curves, args.picture)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Measure how the cost of a search step grows.")
    parser.add_argument("--picture", help="file that the curves are drawn into")
    return parser.parse_args(argv)


if __name__ == "__main__":
    utils.run_script(main, parse_args)
