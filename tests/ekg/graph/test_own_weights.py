"""Class tokens, position embeddings and other weights of a layer itself follow the channels."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import ekg
from ekg.graph.calls import Graph
from ekg.testing import check_prunable
from tests.helpers.models import randomise_

TOKENS, WIDTH, HIDDEN, CLASSES = 4, 6, 5, 3


@keras.saving.register_keras_serializable("test_own_weights")
class Embeddings(layers.Layer):
    """Patches, a class token before them, and two kinds of position embeddings."""

    def build(self, shape):
        self.patches = layers.Conv2D(WIDTH, 4, 4, name="patches")
        self.patches.build(shape)
        self.token = self.add_weight(shape=(WIDTH,), name="token")
        self.places = self.add_weight(shape=(1, TOKENS + 1, WIDTH), name="places")
        self.unused = self.add_weight(shape=(1, WIDTH), name="unused")
        self.numbers = self.add_weight(
            shape=(1, TOKENS + 1), dtype="int32", trainable=False, initializer="zeros"
        )
        self.numbers.assign(np.arange(TOKENS + 1)[None, ::-1])
        self.table = layers.Embedding(TOKENS + 1, WIDTH, name="table")
        self.table.build((1, TOKENS + 1))

    def call(self, x):
        batch = ops.shape(x)[0]
        y = ops.reshape(self.patches(x), (batch, -1, WIDTH))
        token = ops.tile(ops.expand_dims(self.token, axis=(0, 1)), (batch, 1, 1))
        return ops.concatenate([token, y], axis=1) + self.places + self.table(self.numbers)

    def compute_output_shape(self, shape):
        return (shape[0], TOKENS + 1, WIDTH)


@keras.saving.register_keras_serializable("test_own_weights")
class Affine(layers.Layer):
    """A factor per channel, and one and an offset for all of them."""

    def build(self, shape):
        self.each = self.add_weight(shape=(shape[-1],), name="each")
        self.scale = self.add_weight(shape=(), name="scale")
        self.shift = self.add_weight(shape=(1, 1), name="shift")

    def call(self, x):
        return self.scale * (x * self.each) + self.shift


def quick_gelu(x):
    return x * ops.sigmoid(1.702 * x)


@keras.saving.register_keras_serializable("test_own_weights")
class Block(layers.Layer):
    """An MLP beside a shortcut; returns None and a number of no use beside the sum."""

    def build(self, shape):
        self.norm = layers.LayerNormalization(epsilon=1e-3, name="norm")
        self.up = layers.Dense(HIDDEN, name="up")
        self.activation = layers.Activation(quick_gelu, name="activation")
        self.down = layers.Dense(shape[-1], name="down")
        self.norm.build(shape)
        self.up.build(shape)
        self.down.build((*shape[:-1], HIDDEN))

    def call(self, x):
        return x + self.down(self.activation(self.up(self.norm(x)))), None


@keras.saving.register_keras_serializable("test_own_weights")
class Encoder(layers.Layer):
    def build(self, shape):
        self.blocks = [Block(name=f"block_{i}") for i in range(2)]
        for block in self.blocks:
            block.build(shape)

    def call(self, x):
        for block in self.blocks:
            x, _ = block(x)
        return x, ops.zeros((0, 3))

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape), keras.KerasTensor((0, 3))


def vision(make=lambda x: x):
    inputs = keras.Input((8, 8, 3))
    x, _ = Encoder(name="encoder")(make(Embeddings(name="embeddings")(inputs)))
    x = layers.Dense(CLASSES, name="fc")(x[:, 0])
    return randomise_(keras.Model(inputs, x, name="vision"))


def flops_of(width, hidden):
    """Patches, norms and MLPs of TOKENS + 1 tokens, and the logits of CLASSES."""
    blocks = 2 * (TOKENS + 1) * (2 * width + 2 * width * hidden)
    return TOKENS * 48 * width + blocks + width * CLASSES


def test_tokens_and_positions_follow_the_channels_of_the_stream():
    model = vision()
    supernet = check_prunable(model)
    assert {group.name: group.writers for group in supernet.groups} == {
        "embeddings/patches": (
            "embeddings/patches",
            "encoder/block_0/down",
            "encoder/block_1/down",
        ),
        "encoder/block_0/up": ("encoder/block_0/up",),
        "encoder/block_1/up": ("encoder/block_1/up",),
    }
    assert supernet.complexity(supernet.whole()).flops == flops_of(WIDTH, HIDDEN)
    assert supernet.complexity(supernet.smallest()).flops == flops_of(1, 1)
    # Numbers that count and a weight that call() does not read are no parameters of the graph.
    unused = WIDTH + TOKENS + 1
    assert supernet.complexity(supernet.whole()).params == model.count_params() - unused
    assert not Graph(supernet.cut(supernet.smallest()), open_layers=True).unopened


def test_the_cut_network_trains_its_token_and_positions():
    supernet = ekg.Supernet(vision())
    cut = supernet.cut(supernet.smallest())
    rng = np.random.default_rng(0)
    before = [np.array(weight) for weight in cut.trainable_weights]
    assert len(before) == len(supernet.model.trainable_weights) - 1  # all but the unused one
    cut.compile(keras.optimizers.SGD(0.1), "mse")
    images = rng.normal(size=(4, 8, 8, 3))
    cut.fit(images, rng.normal(size=(4, CLASSES)), epochs=1, shuffle=False, verbose=0)
    moved = [np.abs(w - old).max() > 0 for w, old in zip(cut.trainable_weights, before)]
    # A norm over one channel has no effect, and neither has what it reads.
    assert sum(moved) >= 4


def test_factors_and_offsets_follow_whether_they_are_shared_or_not():
    model = vision(Affine(name="affine"))
    supernet = check_prunable(model, subnetworks=1)
    assert supernet.complexity(supernet.whole()).flops == flops_of(WIDTH, HIDDEN)
    assert [group.size for group in supernet.groups] == [WIDTH, HIDDEN, HIDDEN]


def test_a_weight_of_unknown_use_keeps_the_layer_closed():
    class Flipping(Affine):
        def call(self, x):
            return x * ops.flip(self.each, axis=-1)

    supernet = ekg.Supernet(vision(Flipping(name="flipping")))
    assert [group.size for group in supernet.groups] == [HIDDEN, HIDDEN]
    assert supernet.layout.closed["embeddings/patches"].startswith(
        "read by 'flipping' (Flipping), as it stays closed: a weight of its own goes into 'flip"
    )


def test_embeddings_of_words_follow_the_stream_that_a_dense_layer_writes():
    inputs = keras.Input((TOKENS,), dtype="int32")
    x = layers.Embedding(9, WIDTH, name="words")(inputs)
    x = x + layers.Dense(WIDTH, name="down")(layers.Dense(HIDDEN, name="up")(x))
    x = layers.Dense(CLASSES, name="fc")(layers.GlobalAveragePooling1D()(x))
    supernet = check_prunable(randomise_(keras.Model(inputs, x, name="text")))
    assert {group.name: group.size for group in supernet.groups} == {"up": HIDDEN, "down": WIDTH}
    assert supernet.cut(supernet.smallest()).get_layer("words").get_config()["output_dim"] == 1

    x = layers.Dense(CLASSES)(layers.Dense(HIDDEN, name="up")(layers.Embedding(9, WIDTH)(inputs)))
    alone = ekg.Supernet(keras.Model(inputs, x, name="alone"))
    assert [group.name for group in alone.groups] == ["up"]  # nothing else writes what it looks up


def test_embeddings_that_are_also_used_in_reverse_stay():
    inputs = keras.Input((TOKENS,), dtype="int32")
    words = layers.ReversibleEmbedding(9, WIDTH, name="words")
    x = words(inputs)
    x = x + layers.Dense(WIDTH, name="down")(layers.Dense(HIDDEN, name="up")(x))
    model = randomise_(keras.Model(inputs, words(x, reverse=True), name="text"))
    supernet = check_prunable(model, subnetworks=1)
    assert [group.name for group in supernet.groups] == ["up"]
    products = TOKENS * WIDTH * (2 * HIDDEN + 9)
    assert supernet.complexity(supernet.whole()).flops == products


@keras.saving.register_keras_serializable("test_own_weights")
class Windows(layers.Layer):
    """Two windows of shifted tokens as rows of the batch; then the sums of all tokens before."""

    def build(self, shape):
        self.dense = layers.Dense(shape[-1], name="dense")
        self.dense.build(shape)

    def call(self, x):
        batch, tokens, width = ops.shape(x)
        y = self.dense(ops.reshape(ops.roll(x, 1, axis=1), (batch * 2, tokens // 2, width)))
        causal = np.tril(np.ones((1, tokens, tokens), np.float32))
        mask = ops.broadcast_to(causal, (batch, tokens, tokens))
        mask = ops.minimum(ops.ones_like(x[:, :, :1]), mask)
        return x + ops.einsum("bij,bjc->bic", mask, ops.reshape(y, (batch, tokens, width)))


def test_values_computed_from_the_batch_size_do_not_matter():
    inputs = keras.Input((TOKENS, 3))
    x = Windows(name="windows")(layers.Dense(WIDTH, name="embed")(inputs))
    x = layers.Dense(CLASSES, name="fc")(layers.GlobalAveragePooling1D()(x))
    model = keras.Model(inputs, x, name="windows_network")
    opened = Graph(model, open_layers=True)
    assert "windows/dense" in opened.layers, opened.unopened
    examples = np.random.default_rng(0).normal(size=(7, TOKENS, 3)).astype(np.float32)
    functional = ekg.open_model(model)
    np.testing.assert_allclose(functional(examples), model(examples), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("product", "count"),
    [
        (lambda x: ops.matmul(x, ops.transpose(x, (0, 2, 1))), TOKENS * TOKENS * WIDTH),
        (lambda x: ops.einsum("b...ic,b...jc->b...ij", x, x), TOKENS * TOKENS * WIDTH),
        (
            lambda x: ops.dot_product_attention(*[ops.reshape(x, (-1, TOKENS, 2, 3))] * 3)[:, :, 0],
            2 * TOKENS * TOKENS * WIDTH,
        ),
    ],
)
def test_products_of_two_tensors_count(product, count):
    inputs = keras.Input((TOKENS, 3))
    x = layers.Dense(HIDDEN, name="up")(product(layers.Dense(WIDTH, name="embed")(inputs)))
    model = keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x)))
    table = ekg.Supernet(model).table
    read = model.get_layer("up").kernel.shape[0]
    by_hand = TOKENS * (3 * WIDTH + read * HIDDEN) + HIDDEN * CLASSES + count
    assert table.count(np.ones(HIDDEN + 1)).flops == by_hand


def test_a_custom_activation_follows_if_it_is_elementwise():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation=quick_gelu, name="own")(inputs)
    x = layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x))
    supernet = check_prunable(randomise_(keras.Model(inputs, x)), subnetworks=1, reload=False)
    assert [group.name for group in supernet.groups] == ["own"]
