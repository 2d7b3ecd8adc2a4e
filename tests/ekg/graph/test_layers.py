import logging

import keras
import numpy as np
import pytest
from keras import layers

import ekg
from ekg.graph import attention, constants, flow, own_weights, registry
from ekg.graph.complexity import model_complexity
from ekg.graph.records import IN, OUT
from ekg.searching import criteria
from tests.helpers.comparisons import (
    check_landscape_is_that_of_the_cut,
    check_masked_is_cut,
    evaluation_batches,
    make_objective,
    random_subnetwork,
)
from tests.helpers.models import conv_bn, randomise_

# ---------------------------------------------------------------- the records of Keras' own layers

NUM_INPUTS = 6
# kind -> (layer with all weights that its kind may have, its output channels)
KINDS_WITH_WEIGHTS = {
    "convolution": (lambda: layers.Conv2D(4, (3, 2)), 4),
    "convolution 1": (lambda: layers.Conv1D(4, 3), 4),
    "convolution 3": (lambda: layers.Conv3D(4, 3), 4),
    "transposed": (lambda: layers.Conv2DTranspose(4, (3, 2)), 4),
    "transposed 1": (lambda: layers.Conv1DTranspose(4, 3), 4),
    "transposed 3": (lambda: layers.Conv3DTranspose(4, 3), 4),
    "separable": (lambda: layers.SeparableConv2D(4, 3), 4),
    "separable 1": (lambda: layers.SeparableConv1D(4, 3), 4),
    "depthwise convolution": (lambda: layers.DepthwiseConv2D((3, 2), depth_multiplier=2), 12),
    "depthwise 1": (lambda: layers.DepthwiseConv1D(3, depth_multiplier=2), 12),
    "dense": (lambda: layers.Dense(4), 4),
    "einsum dense": (lambda: layers.EinsumDense("abcx,xy->abcy", (8, 8, 4), bias_axes="y"), 4),
    "batch norm": (lambda: layers.BatchNormalization(), 6),
    "layer norm": (lambda: layers.LayerNormalization(), 6),
    "RMS norm": (lambda: layers.RMSNormalization(), 6),
    "group norm": (lambda: layers.GroupNormalization(2), 6),
    "PReLU": (lambda: layers.PReLU(shared_axes=(1, 2)), 6),
}
# Their last axis of channels is a part, or a multiple, of what they read or write.
OTHERS = {
    layers.Embedding,
    layers.ReversibleEmbedding,
    own_weights.OwnWeight,
    constants.Constant,
    layers.MultiHeadAttention,
    layers.GroupQueryAttention,
    attention.ToHeads,
    attention.ToQueries,
    attention.FromHeads,
    layers.LSTM,
    layers.GRU,
    layers.SimpleRNN,
    layers.Bidirectional,
    layers.TimeDistributed,
    layers.Rescaling,
    layers.UnitNormalization,
    layers.Normalization,
    layers.Resizing,
}


@pytest.fixture(params=KINDS_WITH_WEIGHTS)
def layer_and_outputs(request):
    make, num_outputs = KINDS_WITH_WEIGHTS[request.param]
    layer = make()
    rank = {"1": 1, "3": 3}.get(request.param.split()[-1], 2)
    layer.build((None, *[8] * rank, NUM_INPUTS))
    return layer, num_outputs


def test_a_records_axes_are_those_of_a_built_layer(layer_and_outputs):
    layer, num_outputs = layer_and_outputs
    described = registry.record_of(layer).weights
    assert {variable.name for variable in layer.weights} == set(described)
    for variable in layer.weights:
        axes = described[variable.name].axes
        assert len(axes) == len(variable.shape)
        for size, channels in zip(variable.shape, axes):
            assert channels is None or size == {IN: NUM_INPUTS, OUT: num_outputs}[channels]


def test_a_records_filter_axes_name_one_filter_per_output_channel(layer_and_outputs):
    layer, num_outputs = layer_and_outputs
    described = registry.record_of(layer).weights
    for variable in layer.weights:
        filter_axes = described[variable.name].filter_axes
        assert bool(filter_axes) == variable.name.endswith("kernel")
        if filter_axes and variable.name != "depthwise_kernel":
            assert np.prod([variable.shape[axis] for axis in filter_axes]) == num_outputs


def test_every_kind_of_layer_with_weights_is_among_those_tested():
    with_weights = {
        kind
        for kind, record in registry.RECORDS.items()
        if isinstance(kind, type) and (callable(record) or record.weights or record.flops)
    }
    assert with_weights == {type(make()) for make, _ in KINDS_WITH_WEIGHTS.values()} | OTHERS


# ---------------------------------------------------------------- records of users


class ChannelScale(layers.Layer):
    """Multiplies every channel by a learned factor."""

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=(input_shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.scale


class PointwiseMix(layers.Layer):
    """Mixes the channels at every position: a 1x1 convolution."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units = units

    def build(self, input_shape):
        self.kernel = self.add_weight(name="kernel", shape=(input_shape[-1], self.units))
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")

    def call(self, x):
        return keras.ops.einsum("bhwi,io->bhwo", x, self.kernel) + self.bias

    def get_config(self):
        return super().get_config() | {"units": self.units}


SCALE = ekg.LayerRecord(flow.carry, {"scale": ekg.Weight((OUT,))}, multiplies=("scale",))
SCALE_OF_ZEROS = ekg.LayerRecord(
    flow.carry, {"scale": ekg.Weight((OUT,))}, multiplies=("scale",), keeps_zeros=True
)
MIX = ekg.LayerRecord(
    flow.mix,
    {"kernel": ekg.Weight((IN, OUT), (1,)), "bias": ekg.Weight((OUT,))},
    ("kernel",),
    resize=lambda _, kept: {"units": len(kept.output)},
    mixes=True,
)


@pytest.fixture
def known_records(monkeypatch):
    """The registered records, which are restored after the test."""
    monkeypatch.setattr(registry, "RECORDS", dict(registry.RECORDS))
    return registry.RECORDS


def make_network():
    """A residual block whose convolution is a PointwiseMix after a ChannelScale, and a narrower
    PointwiseMix after it.
    """
    inputs = keras.Input((8, 8, 3))
    x = ChannelScale(name="scale")(conv_bn(inputs, 6, "first"))
    x = layers.ReLU(name="sum_relu")(layers.Add(name="sum")([PointwiseMix(6, name="mix")(x), x]))
    x = layers.ReLU(name="narrow_relu")(PointwiseMix(4, name="narrow")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(conv_bn(x, 5, "last"))
    return randomise_(keras.Model(inputs, layers.Dense(3, name="fc")(x), name="user"), seed=4)


@pytest.fixture
def user_network(known_records):
    ekg.register_layer(ChannelScale, SCALE)
    ekg.register_layer(PointwiseMix, MIX)
    return make_network()


@pytest.mark.parametrize(("scale", "site"), [(SCALE, "scale"), (SCALE_OF_ZEROS, "first_relu")])
def test_registered_layers_are_pruned_like_others(known_records, images, caplog, scale, site):
    ekg.register_layer(ChannelScale, scale)
    ekg.register_layer(PointwiseMix, MIX)
    supernet = ekg.Supernet(make_network())
    assert {group.name: (group.size, group.writers, group.sites) for group in supernet.groups} == {
        "first": (6, ("first", "mix"), (site, "sum_relu")),
        "narrow": (4, ("narrow",), ("narrow_relu",)),
        "last": (5, ("last",), ("last_relu",)),
    }
    for seed in range(4):
        check_masked_is_cut(supernet, random_subnetwork(supernet, seed), images)
    assert not [record for record in caplog.records if record.name.startswith("ekg")]


def test_the_complexity_of_registered_layers_by_hand(user_network):
    def by_hand(first, narrow, last):
        flops = 64 * (
            27 * first
            + 2 * first
            + first
            + first * first
            + first * narrow
            + 9 * narrow * last
            + 2 * last
        )
        params = (
            27 * first
            + 4 * first
            + first
            + (first + 1) * first
            + (first + 1) * narrow
            + 9 * narrow * last
            + 4 * last
        )
        return ekg.Complexity(params + (last + 1) * 3, flops + last * 3)

    supernet = ekg.Supernet(user_network)
    assert (
        supernet.complexity(supernet.whole()) == model_complexity(user_network) == by_hand(6, 4, 5)
    )
    assert by_hand(6, 4, 5).params == user_network.count_params()
    half = supernet.whole().with_widths({group.name: 0.5 for group in supernet.groups})
    assert supernet.complexity(half) == by_hand(3, 2, 3)


def test_l1_sums_over_the_filters_of_registered_layers(user_network, tiny_data):
    objective = make_objective(user_network, tiny_data)
    norms = {
        name: np.abs(user_network.get_layer(name).kernel.numpy()).reshape(-1, size).sum(axis=0)
        for name, size in (("first", 6), ("mix", 6), ("narrow", 4), ("last", 5))
    }
    expected = np.concatenate([norms["first"] + norms["mix"], norms["narrow"], norms["last"]])
    context = criteria.CriterionContext(objective, objective.supernet.whole())
    np.testing.assert_allclose(criteria.l1(context), expected, rtol=1e-5)


@pytest.mark.parametrize("criterion", ["ekg", "l1"])
def test_a_search_prunes_registered_layers(user_network, tiny_data, criterion):
    history = ekg.search(
        ekg.Supernet(user_network), tiny_data, target_rate=0.4, criterion=criterion
    ).history
    assert history[-1].rate <= 0.4 < history[-2].rate and {entry.group for entry in history} >= {
        "first",
        "narrow",
    }


def test_a_masked_landscape_with_registered_layers_equals_the_cut_networks(user_network, tiny_data):
    supernet = ekg.Supernet(user_network)
    subnetwork = random_subnetwork(supernet, 1)
    masked, cut = check_landscape_is_that_of_the_cut(
        supernet, subnetwork, evaluation_batches(tiny_data), "all"
    )
    first, narrow, last = (subnetwork.num_kept(group) for group in range(3))
    assert (
        masked.support.sum()
        == cut.dimension
        == (
            (27 + 2 + 1) * first
            + (first + 1) * (first + narrow)
            + (9 * narrow + 2) * last
            + (last + 1) * 3
        )
    )


@pytest.mark.parametrize(
    ("missing", "name", "groups"),
    [(ChannelScale, "scale", ["narrow", "last"]), (PointwiseMix, "mix", ["last"])],
)
def test_without_its_record_a_layer_closes_the_channels_it_reads(
    user_network, known_records, caplog, images, missing, name, groups
):
    del known_records[missing]
    supernet = ekg.Supernet(make_network(), open_layers=False)
    assert [group.name for group in supernet.groups] == groups
    assert f"layer '{name}' ({missing.__name__}): its effect on channels is unknown" in caplog.text
    assert (
        f"the FLOPs of '{name}' ({missing.__name__})" in caplog.text
        and " are not counted, so a rate is" in caplog.text
    )
    check_masked_is_cut(supernet, supernet.smallest(), images)


def test_a_subclass_has_no_record_of_its_own(user_network):
    class ShiftedScale(ChannelScale):
        def call(self, x):
            return super().call(x) + 1

    assert (
        registry.record_of(ChannelScale()) is SCALE and registry.record_of(ShiftedScale()) is None
    )


def test_a_record_may_depend_on_the_layer(known_records):
    ekg.register_layer(PointwiseMix, lambda layer: MIX if layer.units > 1 else None)
    assert (
        registry.record_of(PointwiseMix(2)) is MIX and registry.record_of(PointwiseMix(1)) is None
    )


def test_a_layer_with_a_weight_that_its_record_does_not_know_closes_its_channels(caplog):
    """A PReLU as the activation of a dense layer has a weight, which is one of the dense layer's,
    too.
    """
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D(name="pool")(conv_bn(conv_bn(inputs, 4, "free"), 5, "closed"))
    for activation, names in (("relu", ["free", "closed", "hidden"]), (layers.PReLU(), ["free"])):
        caplog.clear()
        hidden = layers.Dense(6, activation=activation, name="hidden")
        model = keras.Model(inputs, layers.Dense(3, name="fc")(hidden(x)))
        model(np.zeros((1, 8, 8, 3), np.float32))  # only now Keras builds the PReLU
        with caplog.at_level(logging.WARNING):
            assert [group.name for group in ekg.Supernet(model).groups] == names
    assert "layer 'hidden' (Dense): its effect on channels is unknown" in caplog.text


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        (
            np.ndarray,
            SCALE,
            "`kind` must be a subclass of keras.layers.Layer; received <class 'numpy.ndarray'>.",
        ),
        (
            layers.ReLU(name="made"),
            SCALE,
            "`kind` must be a subclass of keras.layers.Layer; received <ReLU name=made",
        ),
        (
            ChannelScale,
            {"scale": (OUT,)},
            "`record` must be an ekg.LayerRecord, or a function from a layer to one; received {",
        ),
    ],
)
def test_only_layer_classes_and_records_are_registered(known_records, kind, record, message):
    before = dict(known_records)
    with pytest.raises(ekg.EkgError) as error:
        ekg.register_layer(kind, record)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert known_records == before


def test_an_inconsistent_record_is_refused():
    with pytest.raises(
        ekg.EkgError, match="`multiplies` names \\['kernel'\\], which `weights` does not describe"
    ):
        ekg.LayerRecord(flow.carry, {"scale": ekg.Weight((OUT,))}, multiplies=("scale", "kernel"))
    with pytest.raises(
        ekg.EkgError, match="`mixes` needs a weight with the axes IN and OUT in `weights`"
    ):
        ekg.LayerRecord(flow.mix, {"scale": ekg.Weight((OUT,))}, mixes=True)
