import keras
import pytest
from keras import layers

import ekg
from ekg.latency import kernels
from tests.helpers import networks
from tests.helpers.models import make_tiny_resnet


def kernels_of(model):
    supernet = ekg.Supernet(model)
    return supernet, kernels.find_kernels(supernet.graph, supernet.layout)


def test_a_kernel_is_a_group_of_layers_that_a_runtime_fuses():
    _, found = kernels_of(make_tiny_resnet())
    assert [[call.key for call in kernel.calls] for kernel in found] == [
        ["stem", "stem_bn", "stem_relu"],
        ["a1", "a1_bn", "a1_relu"],
        ["a2", "a2_bn"],
        ["a_add", "a_out"],
        ["b1", "b1_bn", "b1_relu"],
        ["b2", "b2_bn"],
        ["b3", "b3_bn"],
        ["b_add", "b_out"],
        ["pool"],
        ["fc"],
    ]
    assert [kernel.sizes for kernel in found] == [
        (6,),
        (6, 4),
        (4, 6),
        (6,),
        (6, 5),
        (5, 8),
        (6, 8),
        (8,),
        (8,),
        (8,),
    ]


def test_kernels_that_differ_only_in_channels_are_of_one_kind():
    entry = keras.Input((8, 8, 4))
    x = entry
    for place, filters in enumerate((6, 5, 7)):
        x = layers.Conv2D(filters, 3, padding="same", name=f"c{place}", kernel_regularizer="l2")(x)
    x = layers.Conv2D(9, 3, strides=2, padding="same", name="strided")(x)
    _, found = kernels_of(keras.Model(entry, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))))
    kinds = [kernel.kind for kernel in found]
    assert kinds[1] == kinds[2] and kinds[3] != kinds[2]
    assert kinds[0] != kinds[1]  # four channels that it reads are fixed


def test_a_padding_belongs_to_its_reader_and_a_branch_ends_a_kernel():
    entry = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, name="first")(layers.ZeroPadding2D(name="pad")(entry))
    both = layers.Add(name="add")(
        [layers.ReLU(name="left")(x), layers.Activation("tanh", name="right")(x)]
    )
    _, found = kernels_of(
        keras.Model(entry, layers.Dense(2, name="end")(layers.Flatten(name="flat")(both)))
    )
    assert [[call.key for call in kernel.calls] for kernel in found] == [
        ["pad", "first"],
        ["left"],
        ["right"],
        ["add"],
        ["flat"],
        ["end"],
    ]


@pytest.mark.parametrize(
    "make", [make_tiny_resnet, networks.regnet, networks.unet, networks.shufflenet]
)
def test_a_part_has_the_shapes_that_the_cut_network_has_there(make):
    """All kernels of a network at some widths, and the layers of the same names in the network that
    is cut at these.
    """
    supernet, found = kernels_of(make())
    half = supernet.whole().with_widths({group.name: 0.5 for group in supernet.groups})
    mask, cut = supernet.mask(half) > 0, supernet.cut(half)
    for kernel in found:
        model = kernels.part(supernet.graph, supernet.layout, kernel, kernel.counts(mask))
        last = kernel.calls[-1].layer.name
        if kernel.calls[-1].key == last and last in [layer.name for layer in cut.layers]:
            expected = cut.get_layer(last).output
            expected = expected if isinstance(expected, list) else [expected]
            assert [tuple(symbol.shape) for symbol in model.outputs] == [
                tuple(symbol.shape) for symbol in expected
            ], last


def attended():
    inputs = keras.Input((4, 3))
    x = layers.Dense(8, name="embed")(inputs)
    x = layers.MultiHeadAttention(4, 6, value_dim=5, name="mha")(x, x)
    return keras.Model(inputs, layers.Dense(2, name="fc")(layers.Flatten(name="flat")(x)))


def test_numbers_within_heads_are_dims_of_their_own():
    supernet, found = kernels_of(attended())
    sizes = {kernel.calls[-1].key: kernel.sizes for kernel in found}
    assert {key: own for key, own in sizes.items() if key.startswith("mha/")} == {
        "mha/query": (8, 4, 6),
        "mha/key": (8, 4, 6),
        "mha/value": (8, 4, 5),
        "mha/attention": (4, 6, 5),
        "mha/output": (4, 8, 5),
    }
    widths = {"embed": 3, "mha/query": 2, "mha/key_dim": 4, "mha/value_dim": 1}
    subnetwork = supernet.whole()
    for number, group in enumerate(supernet.groups):
        subnetwork = subnetwork.with_kept(number, widths.get(group.name, group.size))
    mask = supernet.mask(subnetwork) > 0
    shapes = {}
    for kernel in found:
        model = kernels.part(supernet.graph, supernet.layout, kernel, kernel.counts(mask))
        read = [tuple(symbol.shape[1:]) for symbol in model.inputs]
        shapes[kernel.calls[-1].key] = read, tuple(model.outputs[0].shape[1:])
    assert shapes["mha/query"] == ([(4, 3), (4,)], (4, 2, 4))
    assert shapes["mha/value"] == ([(4, 3), (1,)], (4, 2, 1))
    assert shapes["mha/attention"] == ([(4, 2, 4), (4, 2, 4), (4, 2, 1), (4,), (1,)], (4, 2, 1))
    assert shapes["mha/output"] == ([(4, 2, 1), (1,)], (4, 8))


def test_kinds_of_attention_differ_in_what_stays_within_heads():
    kinds = []
    for size in (4, 6):
        inputs = keras.Input((4, 3))
        x = layers.Dense(8, name="embed")(inputs)
        x = layers.MultiHeadAttention(4, size, value_dim=5, name="mha")(x, x)
        model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
        for exclude in ((), "key_dim"):
            supernet = ekg.Supernet(model, exclude=exclude)
            found = kernels.find_kernels(supernet.graph, supernet.layout)
            kinds += [kernel.kind for kernel in found if kernel.calls[0].key == "mha/key"]
    # open numbers are counted, and numbers that stay are a part of the kind
    assert kinds[0] == kinds[2] and len(set(kinds)) == 3
