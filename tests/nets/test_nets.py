import numpy as np
import pytest

import ekg
import nets
import utils
from ekg.errors import EkgError
from ekg.graph.calls import Graph
from ekg.graph.complexity import model_complexity
from ekg.graph.groups import find


@pytest.mark.parametrize(
    ("arch", "classes", "params", "flops"),
    [
        ("ResNet-8", 10, 78_714, 12_673_664),  # by hand
        ("ResNet-20", 10, 274_042, 41_214_592),
        ("ResNet-56", 10, 860_026, 126_837_376),
        ("ResNet-56", 100, 865_876, 126_843_136),
        ("ResNet-18", 1000, 11_699_112, 1_819_040_768),
        ("ResNet-34", 1000, 21_814_696, 3_671_237_632),
        ("ResNet-50", 1000, 25_610_152, 4_111_412_224),
    ],
)
def test_complexity_is_the_published_one(arch, classes, params, flops):
    model = nets.build(arch, classes)
    assert model_complexity(model) == ekg.Complexity(params, flops)
    assert sum(np.prod(weight.shape) for weight in model.weights) == params


@pytest.mark.parametrize(
    "arch", [arch for arch in nets.archs_for((32, 32, 3)) if arch.startswith("ResNet")]
)
def test_a_resnet_has_as_many_layers_as_its_name_says(arch):
    model, depth = nets.build(arch, 10), int(arch.removeprefix("ResNet-"))
    convs_and_fc = [
        layer.name for layer in model.layers if "conv" in layer.name or layer.name == "fc"
    ]
    assert len(convs_and_fc) == depth + 2  # the two projections are not counted in the name
    groups = find(Graph(model)).groups
    assert [len(group.writers) for group in groups].count(1) == (depth - 2) // 2


def mobilenet_costs():
    """Parameters and FLOPs of MobileNet-v2, layer by layer as its paper lists them, with strides 1,
    1, 1, 2, 1, 2, 1.
    """
    params = flops = 0

    def add(positions, taps, pairs, filters):
        """A convolution with this many (input, output) channel pairs, and the batch norm behind
        it.
        """
        nonlocal params, flops
        params += taps * pairs + 4 * filters
        flops += positions * (taps * pairs + 2 * filters)

    side, channels = 32, 32
    add(side**2, 9, 3 * 32, 32)
    for t, c, n, s in (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 1),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for block in range(n):
            wide = t * channels
            if t > 1:
                add(side**2, 1, channels * wide, wide)
            side //= s if block == 0 else 1
            add(side**2, 9, wide, wide)
            add(side**2, 1, wide * c, c)
            channels = c
    add(side**2, 1, 320 * 1280, 1280)
    return params + 1280 * 10 + 10, flops + 1280 * 10


def test_mobilenets_complexity_equals_the_hand_count():
    model = nets.build("MobileNet-v2", 10)
    assert (
        model_complexity(model) == ekg.Complexity(*mobilenet_costs())
        and mobilenet_costs()[0] == 2_270_794
    )
    assert model.get_layer("conv_last").output.shape[1:3] == (8, 8)


def test_mobilenets_groups_continue_through_depthwise_convolutions():
    supernet = ekg.Supernet(nets.build("MobileNet-v2", 10))
    groups = {group.name: group for group in supernet.groups}
    expansion = next(
        group for group in supernet.groups if group.writers == ("InvertedResidual1.0-conv0",)
    )
    assert expansion.size == 96 and len(groups) == 1 + 7 + 16 + 1  # stem, streams, expansions, head
    stream = next(
        group for group in supernet.groups if "InvertedResidual3.3-conv2" in group.writers
    )
    assert (
        stream.writers == tuple(f"InvertedResidual3.{block}-conv2" for block in range(4))
        and stream.size == 64
    )


def test_second_batch_norm_of_a_block_starts_at_zero():
    model = nets.build("ResNet-20", 10)
    assert not model.get_layer("BasicBlock1.0-bn2").gamma.numpy().any()
    assert (model.get_layer("BasicBlock1.0-bn3").gamma.numpy() == 1).all()


def test_unknown_arch_lists_the_known_ones():
    with pytest.raises(EkgError, match="ResNet-57.*ResNet-56"):
        nets.build("ResNet-57", 10)


def test_names_and_shapes_match_published_files():
    params = utils.model_params(nets.build("ResNet-20", 10))
    shapes = {
        name: params[name].shape
        for name in (
            "conv/kernel:0",
            "bn/gamma:0",
            "BasicBlock0.1/conv2/kernel:0",
            "BasicBlock1.0/conv3/kernel:0",
            "BasicBlock2.0/bn3/moving_variance:0",
            "fc/kernel:0",
            "fc/biases:0",
        )
    }
    assert list(shapes.values()) == [
        (3, 3, 3, 16),
        (1, 1, 1, 16),
        (3, 3, 16, 16),
        (1, 1, 16, 32),
        (1, 1, 1, 64),
        (64, 10),
        (1, 10),
    ]


def test_problems_of_a_parameter_file_are_all_named_at_once():
    params = utils.model_params(nets.build("ResNet-20", 10))
    del params["bn/beta:0"]
    params["extra/kernel:0"] = np.zeros(3)
    params["fc/kernel:0"] = np.zeros((64, 11))
    with pytest.raises(EkgError) as error:
        nets.from_params("ResNet-20", params, 10, "FILE")
    for part in (
        "FILE",
        "3 entries",
        "missing bn/beta:0",
        "surplus extra/kernel:0 (3,)",
        "fc/kernel:0 has shape (64, 11), expected (64, 10)",
    ):
        assert part in str(error.value)


def test_parameters_of_another_net_are_refused():
    params = utils.model_params(nets.build("ResNet-32", 10))
    with pytest.raises(
        EkgError, match="does not fit ResNet-20.*surplus BasicBlock0.3/conv1/kernel:0"
    ):
        nets.from_params("ResNet-20", params, 10)


def test_a_network_that_has_lost_a_block_is_refused():
    supernet = ekg.Supernet(nets.build("ResNet-20", 10), min_channels={"^BasicBlock1.1-conv1$": 0})
    cut = supernet.cut(supernet.whole().with_widths({"BasicBlock1.1-conv1": 0.0}))
    message = "FILE: lacks layers of ResNet-20, 'BasicBlock1.1-conv1' for one; check `arch`. A net"
    with pytest.raises(EkgError, match=message):
        nets.from_params("ResNet-20", utils.model_params(cut), 10, "FILE")


def test_a_network_wider_than_the_unpruned_one_is_refused_before_it_is_built():
    params = utils.model_params(nets.build("ResNet-20", 10))
    params["BasicBlock0.0/conv1/kernel:0"] = np.zeros((1, 1, 1, 1_000_000), bool)
    params["BasicBlock0.0/conv2/kernel:0"] = np.zeros((1, 1, 1, 1_000_000), bool)
    del params["bn/gamma:0"]
    with pytest.raises(
        EkgError, match="conv1/kernel:0 has shape .* 1 to 16 filters.*missing bn/gamma:0"
    ):
        nets.from_params("ResNet-20", params, 10)


def test_widths_that_cannot_be_added_are_refused():
    params = utils.model_params(nets.build("ResNet-20", 10))
    params["BasicBlock1.1/conv2/kernel:0"] = np.zeros((3, 3, 32, 30))
    with pytest.raises(
        EkgError, match="BasicBlock1.1/conv2/kernel:0 has 30 filters, but is added to 32"
    ):
        nets.from_params("ResNet-20", params, 10)
