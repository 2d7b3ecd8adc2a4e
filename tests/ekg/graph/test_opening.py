"""Layers and models made of layers are pruned inside, or stay closed for a reason."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import ekg
from ekg.graph.calls import Graph
from ekg.testing import check_prunable
from tests.helpers.models import make_data, randomise_


@keras.saving.register_keras_serializable("test_opening")
class Block(layers.Layer):
    """A residual block of a bottleneck of so many channels, with all that differs in training."""

    def __init__(self, width, **options):
        super().__init__(**options)
        self.width = width

    def build(self, shape):
        self.first = layers.Conv2D(self.width, 3, padding="same", use_bias=False, name="first")
        self.norm = layers.BatchNormalization(epsilon=1e-3, name="norm")
        self.dropout = layers.Dropout(0.3, name="dropout")
        self.second = layers.Conv2D(shape[-1], 3, padding="same", name="second")
        self.first.build(shape)
        self.norm.build((*shape[:-1], self.width))
        self.second.build((*shape[:-1], self.width))

    def call(self, x, training=False):
        y = ops.relu(self.norm(self.first(x), training=training))
        return ops.relu(self.second(self.dropout(y, training=training)) + x)


@keras.saving.register_keras_serializable("test_opening")
class Stage(layers.Layer):
    """Two blocks, the second called by name with a shortcut."""

    def __init__(self, **options):
        super().__init__(**options)
        self.blocks = [Block(4, name="block_0"), Block(3, name="block_1")]

    def call(self, x, shortcut=None):
        for block in self.blocks:
            x = block(x)
        return x + shortcut


class ResNet(keras.Model):
    """A network that says nothing of its graph."""

    def __init__(self, block=None, **options):
        super().__init__(**options)
        self.stem = layers.Conv2D(6, 3, padding="same", name="stem")
        self.block = Block(4, name="block") if block is None else block
        self.pool, self.fc = layers.GlobalAveragePooling2D(name="pool"), layers.Dense(3, name="fc")

    def call(self, x, training=None):
        return self.fc(self.pool(self.block(self.stem(x), training=training)))


def network_of(make):
    inputs = keras.Input((8, 8, 3))
    x = make(layers.Conv2D(6, 3, padding="same", activation="relu", name="stem")(inputs))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return randomise_(keras.Model(inputs, layers.Dense(3, name="fc")(x), name="network"))


def groups_of(supernet):
    return {group.name: group.writers for group in supernet.groups}


def flops_of(stem, *widths):
    """A stem, blocks of bottlenecks and the logits of 3 classes on 8x8, by hand."""
    blocks = sum(9 * stem * width + 2 * width + 9 * width * stem for width in widths)
    return 64 * (27 * stem + blocks) + 3 * stem


def test_blocks_within_a_stage_lose_channels_and_have_names():
    stage = Stage(name="stage")
    model = network_of(lambda x: stage(x, shortcut=x))
    supernet = check_prunable(model)
    assert groups_of(supernet) == {
        "stem": ("stem", "stage/block_0/second", "stage/block_1/second"),
        "stage/block_0/first": ("stage/block_0/first",),
        "stage/block_1/first": ("stage/block_1/first",),
    }
    assert supernet.complexity(supernet.whole()).flops == flops_of(6, 4, 3)
    assert supernet.complexity(supernet.smallest()).flops == flops_of(1, 1, 1)
    assert not Graph(supernet.cut(supernet.smallest()), open_layers=True).unopened


def test_a_subclassed_model_is_pruned_from_its_shape_or_after_a_call():
    model = ResNet(name="own")
    with pytest.raises(
        ekg.EkgError,
        match="`model` 'own' .ResNet. is a subclassed model, whose "
        "input shape is not known; give `input_shape`",
    ):
        ekg.Supernet(model)
    supernet = check_prunable(model, input_shape=(8, 8, 3), subnetworks=1)
    called = check_prunable(randomise_(model))
    assert (
        groups_of(supernet)
        == groups_of(called)
        == {"stem": ("stem", "block/second"), "block/first": ("block/first",)}
    )
    assert called.complexity(called.whole()).flops == flops_of(6, 4)
    assert called.complexity(called.whole()).params == model.count_params()


def test_the_supernet_reads_the_weights_of_the_subclassed_model_itself():
    model = ResNet()
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype(np.float32)
    model(images)
    supernet = ekg.Supernet(model)
    before = supernet.logits(images, supernet.whole(), training=False)
    randomise_(model)
    after = supernet.logits(images, supernet.whole(), training=False)
    np.testing.assert_allclose(after, model(images, training=False), rtol=1e-4, atol=1e-5)
    assert np.abs(after - before).max() > 0.01


class Twice(keras.Model):
    """Computes something else than its graph."""

    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training)


def test_a_functional_model_with_its_own_call_computes_that_call():
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="conv")(inputs))
    model = Twice(inputs, layers.Dense(3, name="fc")(x), name="twice")
    assert list(groups_of(check_prunable(randomise_(model), subnetworks=1))) == ["conv"]
    with pytest.raises(ekg.EkgError, match="`model` 'twice' .Twice. has a call.. of its own"):
        ekg.Supernet(model, open_layers=False)


def test_an_opened_copy_trains_like_the_subclassed_model():
    model = ResNet()
    model(np.zeros((1, 8, 8, 3), np.float32))
    randomise_(model).block.dropout.rate = 0.0
    opened = ekg.open_model(model)
    assert isinstance(opened, keras.Model) and not isinstance(opened, ResNet)
    images, labels = np.random.default_rng(0).normal(size=(8, 8, 8, 3)), np.arange(8) % 3
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for network in (model, opened):
        network.compile(keras.optimizers.SGD(0.01), loss)
        network.fit(images, labels, batch_size=4, epochs=1, shuffle=False, verbose=0)
    np.testing.assert_allclose(
        opened.predict(images, verbose=0), model.predict(images, verbose=0), rtol=1e-3, atol=1e-4
    )


def test_a_layer_called_twice_is_one_layer():
    block = Block(4, name="block")
    model = network_of(lambda x: block(block(x)))
    supernet = check_prunable(model, subnetworks=1)
    assert supernet.complexity(supernet.whole()).params == model.count_params()


def test_a_layer_called_in_two_ways_stays_closed():
    stage = Stage(name="stage")
    model = network_of(lambda x: stage(x, shortcut=1.0) + stage(x, shortcut=2.0))
    for norm in (block.norm for block in stage.blocks):
        norm.trainable = False
    inspected = ekg.inspect(model)
    assert inspected.closed["stem"] == (
        "read by 'stage' (Stage), as it stays closed: it is called in several ways"
    )


def test_layers_stay_closed_as_asked():
    stage = Stage(name="stage")
    model = network_of(lambda x: stage(x, shortcut=x))
    refused = "layer 'stage' .Stage. holds batch norm 'norm'"
    with pytest.raises(ekg.EkgError, match=refused):
        ekg.Supernet(model, open_layers=False)
    with pytest.raises(ekg.EkgError, match=refused):
        ekg.Supernet(model, open_layers="block_0")
    for block in stage.blocks:
        block.norm.trainable = False
    supernet = check_prunable(
        network_of(lambda x: stage(x, shortcut=Block(3, name="beside")(x))),
        open_layers=["^beside"],
        subnetworks=1,
    )
    assert list(groups_of(supernet)) == ["beside/first"]
    with pytest.raises(ekg.EkgError, match="`open_layers` must be True, False, a regular"):
        ekg.Supernet(model, open_layers=3)


# ---------------------------------------------------------------- what stays closed, and why


class Holder(layers.Layer):
    """Holds a dense layer and does something that no graph shows."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(6, name="dense")

    def build(self, shape):
        self.dense.build(shape)


class Weighing(Holder):
    def build(self, shape):
        super().build(shape)
        self.factor = self.add_weight(shape=(6,), name="factor", initializer="ones")

    def call(self, x):
        return self.dense(x) * ops.flip(self.factor, axis=0)


class Deciding(Holder):
    def call(self, x):
        return self.dense(x) if ops.max(x) > 0 else x

    def compute_output_shape(self, shape):
        return shape


class Seeded(Holder):
    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x):
        return self.dense(x) + keras.random.normal((6,), seed=self.seeds)


class Noisy(Holder):
    def call(self, x):
        return self.dense(x) + keras.random.normal((6,))


class OtherInTraining(Holder):
    def call(self, x, training=False):
        return self.dense(x) * (2.0 if training else 1.0)


class Counting(Holder):
    calls = 0

    def call(self, x):
        self.calls += 1
        return self.dense(x) * float(self.calls)


class Borrowing(Holder):
    def call(self, x):
        return ops.matmul(x, self.dense.kernel + 0.0)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Deciding, "its call() does not run on symbolic tensors: "),
        (Seeded, "it has randomness of its own"),
        (Noisy, "in inference the graph of its parts does not give what it gives"),
        (OtherInTraining, "in training the graph of its parts does not give what it gives"),
        (Counting, "in inference the graph of its parts does not give what it gives"),
        (Borrowing, "its call() does not use the weight "),
        (Weighing, "a weight of its own goes into 'flip"),
    ],
)
def test_layers_that_no_graph_shows_stay_closed_with_the_reason(kind, reason, caplog):
    supernet = ekg.Supernet(network_of(lambda x: kind(name="holder")(Block(4, name="block")(x))))
    closed = f"read by 'holder' ({kind.__name__}), as it stays closed: {reason}"
    assert supernet.layout.closed["stem"].startswith(closed) and "\n" not in closed
    assert list(groups_of(supernet)) == ["block/first"] and reason in caplog.text


def test_a_subclassed_model_that_no_graph_shows_is_refused_in_one_line():
    model = ResNet(OtherInTraining(name="holder"), name="own")
    opened = ekg.inspect(model, input_shape=(8, 8, 3))
    assert "in training the graph" in opened.closed["stem"]

    class Deciding(ResNet):
        def call(self, x, training=None):
            return super().call(x, training) if ops.max(x) > 0 else self.fc(self.pool(x))

    message = (
        "`model` 'own' .Deciding. cannot be taken apart into its layers: its call.. does not run "
        "on symbolic"
    )
    with pytest.raises(ekg.EkgError, match=message) as error:
        ekg.Supernet(Deciding(name="own"), input_shape=(8, 8, 3))
    assert "\n" not in str(error.value)


def test_a_whole_job_prunes_a_subclassed_model():
    model, data = ResNet(), make_data(num_train=24)
    model(np.zeros((1, 8, 8, 3), np.float32))
    pair = (data.train.images.astype(np.float32) / 50 - 2, data.train.labels)
    result = ekg.prune(
        randomise_(model),
        pair,
        target_rate=0.5,
        epochs=None,
        bank=False,
        exclude=model.stem,
        verbose=False,
    )
    assert result.rate <= 0.5 and result.subnetwork.names == ("block/first",)
    assert isinstance(result.model, keras.Model)
    assert result.model.count_params() < model.count_params()
