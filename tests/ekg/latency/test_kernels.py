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
