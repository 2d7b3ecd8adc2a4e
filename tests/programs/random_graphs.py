"""Random functional networks of all kinds of layers, for what must hold of any network; and a
search over many of them.

python -m tests.programs.random_graphs --examples 10000    # for hours; prints the smallest network
that breaks the promise
"""

import argparse

import hypothesis
import keras
import numpy as np
from hypothesis import strategies as st
from keras import layers, ops

import ekg
from ekg.graph.checks import NothingToPrune
from ekg.tasks.output_choice import Names
from ekg.testing import check_prunable
from tests.helpers.models import randomise_

SIZE, DEPTH = 8, 12


class Composite(layers.Layer):
    """Layers in one layer, with a shortcut around them; in training they work otherwise."""

    def __init__(self, inner, **options):
        super().__init__(**options)
        self.inner = inner

    def build(self, shape):
        for layer in self.inner:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def compute_output_shape(self, shape):
        return shape

    def call(self, x, training=False):
        y = x
        for layer in self.inner:
            y = layer(y, training=training) if layer._call_has_training_arg else layer(y)
        return ops.relu(y) + x


class Maker:
    """Draws the parts of a network; every layer has a name of its own."""

    def __init__(self, draw):
        self._draw, self._count, self._shared = draw, 0, {}

    def pick(self, *choices):
        return self._draw(st.sampled_from(choices))

    def name(self, kind):
        self._count += 1
        return f"{kind}{self._count}"

    def layer(self, kind, *args, **options):
        return kind(*args, name=self.name(kind.__name__.lower()), **options)

    # ---------------------------------------------------------------- one tensor

    def norm(self, x):
        kind = self.pick("batch", "batch", "layer", "group", "rms", None)
        if kind == "batch":
            options = self.pick(
                {}, {"scale": False}, {"center": False}, {"scale": False, "center": False}
            )
            return self.layer(layers.BatchNormalization, epsilon=1e-3, **options)(x)
        if kind == "layer":
            return self.layer(layers.LayerNormalization, epsilon=1e-3)(x)
        if kind == "rms":
            return self.layer(layers.RMSNormalization, epsilon=1e-3)(x)
        if kind == "group":
            groups = self.pick(*[g for g in range(1, x.shape[-1] + 1) if x.shape[-1] % g == 0])
            return self.layer(layers.GroupNormalization, groups, epsilon=1e-3)(x)
        return x

    def activation(self, x):
        kind = self.pick(
            "relu",
            "silu",
            "sigmoid",
            "leaky",
            "prelu",
            "ops.relu",
            "ops.gelu",
            "hard",
            "softmax",
            None,
        )
        if kind == "leaky":
            return self.layer(layers.LeakyReLU)(x)
        if kind == "prelu":
            return self.layer(layers.PReLU, shared_axes=(1, 2), alpha_initializer="random_normal")(
                x
            )
        if kind == "hard":
            return self.layer(layers.ReLU, 6.0)(x + 3.0) * (1.0 / 6.0)
        if kind and kind.startswith("ops."):
            return getattr(ops, kind[4:])(x)
        return x if kind is None else self.layer(layers.Activation, kind)(x)

    def after(self, x):
        return self.activation(self.norm(x))

    def conv(self, x, filters=None):
        filters = filters or self.pick(2, 4, 6)
        kind, bias = (
            self.pick("conv", "conv", "separable", "grouped", "transposed", "dense"),
            self.pick(True, False),
        )
        if kind == "separable":
            x = self.layer(
                layers.SeparableConv2D,
                filters,
                3,
                padding="same",
                depth_multiplier=self.pick(1, 2),
                use_bias=bias,
            )(x)
        elif kind == "grouped":
            groups = self.pick(
                *[g for g in range(1, x.shape[-1] + 1) if x.shape[-1] % g == 0 and filters % g == 0]
            )
            x = self.layer(layers.Conv2D, filters, 3, padding="same", groups=groups, use_bias=bias)(
                x
            )
        elif kind == "transposed":
            x = self.layer(
                layers.Conv2DTranspose, filters, self.pick(1, 3), padding="same", use_bias=bias
            )(x)
        elif kind == "dense":
            x = self.layer(layers.Dense, filters, use_bias=bias)(x)
        else:
            x = self.layer(layers.Conv2D, filters, self.pick(1, 3), padding="same", use_bias=bias)(
                x
            )
        return self.after(x)

    def depthwise(self, x):
        conv = self.layer(
            layers.DepthwiseConv2D, 3, padding="same", depth_multiplier=self.pick(1, 2)
        )
        return self.after(conv(x))

    def pooled(self, x):
        kind = self.pick(layers.MaxPooling2D, layers.AveragePooling2D)
        return self.layer(kind, 2, 1, padding="same")(x)

    def scaled(self, x):
        kind = self.pick("number", "vector", "rescaling", "transpose", "padded")
        if kind == "number":
            return self.pick(
                lambda: 2.0 - x,
                lambda: x / 2.0,
                lambda: ops.maximum(x, 0.1),
                lambda: -x,
                lambda: ops.abs(x),
            )()
        if kind == "vector":
            return x * np.arange(1, x.shape[-1] + 1, dtype=np.float32)
        if kind == "rescaling":
            return self.layer(layers.Rescaling, [0.5 + i for i in range(x.shape[-1])], 0.1)(x)
        if kind == "transpose":
            return ops.transpose(ops.transpose(x, (0, 2, 3, 1)), (0, 3, 1, 2))
        return ops.pad(x, [[0, 0], [1, 0], [0, 1], [0, 0]])[:, 1:, :-1]

    # ---------------------------------------------------------------- several branches

    def residual(self, x):
        branch = self.conv(self.conv(x), x.shape[-1])
        if self.pick(True, False):
            branch = self.layer(layers.Dropout, 0.2)(branch)
        return self.pick(
            lambda: self.layer(layers.Add)([branch, x]),
            lambda: branch + x,
            lambda: ops.subtract(branch, x),
            lambda: self.layer(layers.Maximum)([branch, x]),
        )()

    def stacked(self, x):
        parts = [self.conv(x), self.pick(self.conv, self.depthwise)(x), *self.pick([], [x])]
        return self.pick(
            lambda: self.layer(layers.Concatenate)(parts), lambda: ops.concatenate(parts, axis=-1)
        )()

    def split(self, x):
        if x.shape[-1] % 2:
            return x
        half = x.shape[-1] // 2
        first, second = self.pick(
            lambda: ops.split(x, 2, axis=-1),
            lambda: ops.split(x, [half], axis=-1),
            lambda: (x[..., :half], x[:, :, :, half:]),
        )()
        return ops.concatenate([self.conv(first), second], axis=-1)

    def squeeze(self, x):
        channels = x.shape[-1]
        s = self.pick(
            lambda: self.layer(layers.GlobalAveragePooling2D, keepdims=True)(x),
            lambda: ops.mean(x, axis=(1, 2), keepdims=True),
            lambda: self.layer(layers.Reshape, (1, 1, channels))(
                self.layer(layers.GlobalMaxPooling2D)(x)
            ),
        )()
        s = self.layer(layers.Conv2D, 2, 1, activation="relu")(s)
        s = self.layer(layers.Conv2D, channels, 1, activation="sigmoid")(s)
        return self.layer(layers.Multiply)([x, s])

    def attended(self, x):
        return x * self.layer(layers.Conv2D, 1, 3, padding="same", activation="sigmoid")(x)

    def shared(self, x):
        conv = self.layer(layers.Conv2D, x.shape[-1], 3, padding="same")
        return self.after(conv(self.activation(conv(x))))

    def frozen(self, x):
        conv = self.layer(layers.Conv2D, 4, 3, padding="same", trainable=False)
        return self.layer(layers.BatchNormalization, trainable=self.pick(True, False))(conv(x))

    def nested(self, x):
        inside = keras.Input(x.shape[1:], name=self.name("inside"))
        inner = keras.Model(inside, self.after(self.conv(inside)), name=self.name("inner"))
        options = self.pick({}, {}, {"training": False})
        y = inner(x, **options)
        return inner(y) if y.shape == x.shape and self.pick(True, False) else y

    # ---------------------------------------------------------------- layers made of layers

    def composite(self, x, depth=1):
        channels, inner = x.shape[-1], []
        inner.append(layers.Conv2D(self.pick(2, 4), 3, padding="same", name="conv"))
        inner.append(layers.BatchNormalization(epsilon=1e-3, name="norm"))
        inner += self.pick([], [layers.Dropout(0.2, name="dropout")], [layers.ReLU(name="relu")])
        inner.append(layers.Dense(channels, name="mix"))
        if depth and self.pick(True, False):
            inner.append(
                Composite(
                    [
                        layers.Dense(3, activation="relu", name="up"),
                        layers.Dense(channels, name="down"),
                    ],
                    name="inside",
                )
            )
        composite = self.layer(Composite, inner)
        y = composite(x)
        return composite(y) if self.pick(True, False, False) else y

    def heads(self, x):
        size, options = self.pick(2, 3), {"use_bias": self.pick(True, False)}
        if self.pick(True, False):
            axes = self.pick(None, (1,), (2,))
            layer = self.layer(
                layers.MultiHeadAttention,
                self.pick(2, 3),
                size,
                attention_axes=axes,
                output_shape=self.pick(None, 4),
                use_gate=self.pick(True, False),
                **options,
            )
            y = layer(x, self.pick(x, self.conv(x)))
        else:
            tokens = self.layer(layers.Reshape, (-1, x.shape[-1]))(x)
            y = self.layer(layers.GroupQueryAttention, size, *self.pick((2, 1), (4, 2)), **options)(
                tokens, tokens, use_causal_mask=self.pick(True, False)
            )
            y = self.layer(layers.Reshape, x.shape[1:])(y)
        return y + x if y.shape == x.shape and self.pick(True, False) else y

    def units(self, x):
        rows = ops.mean(x, axis=1)
        units, kind = self.pick(2, 4), self.pick(layers.LSTM, layers.GRU, layers.SimpleRNN)
        options = {"use_bias": self.pick(True, False)}
        if kind is layers.GRU:
            options["reset_after"] = self.pick(True, False)
        layer = self.layer(kind, units, return_sequences=True, **options)
        if self.pick(True, False):
            layer = self.layer(layers.Bidirectional, layer, merge_mode=self.pick("concat", "sum"))
        y = ops.expand_dims(layer(rows), 1)
        return self.conv(x, y.shape[-1]) + y

    def head(self, x):
        """Returns (kind of an output, the output): logits, shares, labels or numbers, vectors or
        maps.
        """
        kind, place = (
            self.pick("logits", "softmax", "sigmoid", "numbers"),
            self.pick("pool", "mean", "flat", "map"),
        )
        if place == "pool":
            x = self.layer(layers.GlobalAveragePooling2D)(x)
        elif place == "mean":
            x = self.pick(ops.max, ops.mean)(x, axis=(1, 2))
        elif place == "flat":
            x = self.layer(layers.Dense, 6, activation="relu")(self.layer(layers.Flatten)(x))
        made = (
            self.pick("activation", "layer", "function") if kind in ("softmax", "sigmoid") else None
        )
        units = 3 if kind in ("logits", "softmax") else self.pick(1, 2)
        options = {"activation": kind if made == "activation" else None}
        last = (layers.Conv2D, units, 1) if place == "map" else (layers.Dense, units)
        x = self.layer(*last, **options)(x)
        if made == "layer":
            x = (
                self.layer(layers.Softmax)(x)
                if kind == "softmax"
                else self.layer(layers.Activation, kind)(x)
            )
        return kind, getattr(ops, kind)(x) if made == "function" else x

    def part(self, x):
        return self.pick(
            self.conv,
            self.conv,
            self.depthwise,
            self.pooled,
            self.scaled,
            self.residual,
            self.stacked,
            self.split,
            self.squeeze,
            self.attended,
            self.shared,
            self.frozen,
            self.nested,
            self.composite,
            self.heads,
            self.units,
        )(x)


@st.composite
def networks_and_kinds(draw, depth=DEPTH):
    """(A random network for images of 8x8, with random weights, the kind of each of its outputs as
    Keras flattens them).

    It has at most so many parts, and one to three outputs in a list or a dict, some of them made in
    its midst.
    """
    maker = Maker(draw)
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Activation("relu", name="begin")(
        layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    )
    places = [x]
    for _ in range(draw(st.integers(1, depth))):
        x = maker.part(x)
        if x.shape[-1] > 16:
            x = maker.conv(x)
        places.append(x)
    count = maker.pick(1, 1, 2, 3)
    kinds, outputs = zip(
        *[maker.head(maker.pick(*places) if number else x) for number in range(count)]
    )
    if maker.pick(True, False):
        outputs = {f"out{number}": output for number, output in enumerate(outputs)}
    elif count == 1:
        outputs = outputs[0]
    return randomise_(keras.Model(inputs, outputs, name="random"), draw(st.integers(0, 9))), kinds


def networks(depth=DEPTH):
    """A random network; see networks_and_kinds()."""
    return networks_and_kinds(depth).map(lambda drawn: drawn[0])


def check(model, seed):
    """Checks the promise of check_prunable, and that a cut can be cut again, where anything can be
    pruned; of every other seed with groups that may vanish.
    """
    least = {"min_channels": seed % 2}
    # norms and softmaxes in a row enlarge rounding errors: a network of random weights is no
    # trained one
    try:
        supernet = check_prunable(
            model, subnetworks=1, seed=seed, tolerance=1e-4, batch_tolerance=1e-3, **least
        )
        check_prunable(supernet.cut(supernet.smallest()), subnetworks=0, reload=False, **least)
    except NothingToPrune:
        return


# ---------------------------------------------------------------- whole jobs

LABELLED = {
    "softmax": ("top1", keras.metrics.SparseCategoricalAccuracy),
    "sigmoid": ("accuracy", keras.metrics.BinaryAccuracy),
    "numbers": ("mae", keras.metrics.MeanAbsoluteError),
}
WITHOUT = {
    "softmax": "agreement",
    "sigmoid": "agreement",
    "numbers": "difference",
    "logits": "difference",
}
NUM_IMAGES = 24


def make_labels(kind, shape, rng):
    """Returns labels of an output of this shape, [NUM_IMAGES, ...]."""
    if kind in ("logits", "softmax"):
        return rng.integers(0, shape[-1], (NUM_IMAGES, *shape[:-1])).astype(np.int32)
    if kind == "sigmoid":
        return rng.integers(0, 2, (NUM_IMAGES, *shape)).astype(np.int32)
    return rng.normal(size=(NUM_IMAGES, *shape)).astype(np.float32)


def expected_metric(kind, shape, labels, before):
    """Returns (name of a figure of merit, Keras' metric, what it compares with) of an output.

    Args:
        kind: of the output.
        shape: of it, for one example.
        labels: of it, or None.
        before: what the unpruned network returns, [NUM_IMAGES, ...].
    """
    name, metric = LABELLED["softmax" if kind == "logits" else kind]
    if labels is not None:
        return ("pixel_accuracy" if len(shape) > 1 and name != "mae" else name), metric, labels
    if kind == "softmax":
        return WITHOUT[kind], metric, before.argmax(-1)
    if kind == "sigmoid":
        return WITHOUT[kind], metric, (before > 0.5).astype(np.int32)
    return WITHOUT[kind], keras.metrics.MeanAbsoluteError, before


def check_job(model, kinds, seed):
    """Prunes a network whole, search, bank and a few steps of training, and holds its table against
    Keras' evaluate().
    """
    try:
        supernet = ekg.Supernet(model)
    except NothingToPrune:
        return
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(NUM_IMAGES, SIZE, SIZE, 3)).astype(np.float32)
    shapes = [tuple(output.shape[1:]) for output in model.outputs]
    labels = [
        make_labels(kind, shape, rng) if rng.random() < 0.7 else None
        for kind, shape in zip(kinds, shapes)
    ]
    names = Names(model).all
    given = {name: own for name, own in zip(names, labels) if own is not None}
    before = keras.tree.flatten(model.predict(images, verbose=0))
    result = ekg.prune(
        model,
        (images, given or None),
        validation_data=(images, given or None),
        epochs=1,
        seed=seed,
        verbose=False,
        target_rate=(1 + supernet.rate(supernet.smallest())) / 2,
        bank={"num_teacher": 2},
        run={"runtimes": ()},
        search={"search_step": 1.0, "val_per_class": 2, "subset_per_class": 2},
        fine_tune={"batch_size": 12},
    )
    handed_out = result.run.result  # the row of the better of the cut and the fine-tuned network
    for row, pruned in ((result.table[0], model), (handed_out, result.model)):
        for number, (kind, shape) in enumerate(zip(kinds, shapes)):
            metric, measure, target = expected_metric(kind, shape, labels[number], before[number])
            alone = keras.Model(pruned.inputs, pruned.outputs[number])
            alone.compile(
                loss=lambda _, output: ops.mean(output),
                metrics=[measure(name="value")],
                run_eagerly=True,
            )
            value = alone.evaluate(images, target, verbose=0, return_dict=True)["value"]
            key = metric if len(kinds) == 1 else f"{names[number]}/{metric}"
            assert abs(row.metrics[key] - value) <= 1e-4 * max(1, abs(value)), (
                row.name,
                key,
                row.metrics[key],
                value,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=1000, help="number of random networks")
    parser.add_argument("--seed", type=int, default=0, help="of the networks")
    parser.add_argument("--jobs", action="store_true", help="prune each network whole, too")
    options = parser.parse_args()
    count = 0

    @hypothesis.seed(options.seed)
    @hypothesis.settings(
        max_examples=options.examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(drawn=networks_and_kinds(), seed=st.integers(0, 2**16))
    def run(drawn, seed):
        nonlocal count
        model, kinds = drawn
        count += 1
        if count % 100 == 0:
            print(f"{count} networks", flush=True)
        check(model, seed)
        if options.jobs:
            check_job(model, kinds, seed)
        keras.backend.clear_session()

    run()
    print(f"{count} networks, all right")


if __name__ == "__main__":
    main()
