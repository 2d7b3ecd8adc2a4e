"""The oracle is a network of torchvision's definition written here in PyTorch."""

import numpy as np
import pytest

import nets
import utils
from ekg.errors import EkgError
from nets import convert
from tests.helpers.comparisons import relative_difference

torch = pytest.importorskip("torch", reason="PyTorch is a development dependency")
nn = torch.nn


class Block(nn.Module):
    """torchvision's BasicBlock or Bottleneck (v1.5: the stride is on the 3x3 convolution)."""

    def __init__(self, c_in, width, stride, is_bottleneck):
        super().__init__()
        c_out = 4 * width if is_bottleneck else width
        plan = (
            [(1, 1, width), (3, stride, width), (1, 1, c_out)]
            if is_bottleneck
            else [(3, stride, width), (3, 1, width)]
        )
        self.count = len(plan)
        channels = c_in
        for i, (size, own_stride, filters) in enumerate(plan, 1):
            setattr(
                self,
                f"conv{i}",
                nn.Conv2d(channels, filters, size, own_stride, size // 2, bias=False),
            )
            setattr(self, f"bn{i}", nn.BatchNorm2d(filters))
            channels = filters
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )
        self.c_out = c_out

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y) if i < self.count else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, blocks, is_bottleneck, num_classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.maxpool, channels = nn.MaxPool2d(3, 2, 1), 64
        for stage, (count, width) in enumerate(zip(blocks, (64, 128, 256, 512))):
            layers = []
            for i in range(count):
                layers.append(Block(channels, width, 2 if stage and not i else 1, is_bottleneck))
                channels = layers[-1].c_out
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean(dim=(2, 3)))


def make(arch, num_classes=12):
    torch.manual_seed(0)
    spec = {
        "ResNet-18": ((2, 2, 2, 2), False),
        "ResNet-34": ((3, 4, 6, 3), False),
        "ResNet-50": ((3, 4, 6, 3), True),
    }[arch]
    model = ResNet(*spec, num_classes).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low in (
                (module.weight, 0.5),
                (module.bias, -0.3),
                (module.running_mean, -0.3),
                (module.running_var, 0.5),
            ):
                nn.init.uniform_(value, low, low + 0.8)
    return model


@pytest.mark.parametrize("arch", nets.archs_for((224, 224, 3)))
def test_converted_weights_give_pytorchs_logits(arch, tmp_path):
    model = make(arch)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    target = convert.main(
        convert.parse_args(
            [str(tmp_path / "weights.pth"), str(tmp_path / "out.pkl"), "--arch", arch]
        )
    )
    ours = nets.from_params(arch, utils.load_params(target), 12)
    images = np.random.default_rng(0).normal(size=(8, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert relative_difference(ours(images, training=False), expected) < 1e-4


def test_safetensors_and_wrapped_state_dicts_are_the_same(tmp_path):
    numpy = pytest.importorskip(
        "safetensors.torch", reason="safetensors is a development dependency"
    )
    weights = make("ResNet-18").state_dict()
    numpy.save_file(weights, tmp_path / "w.safetensors")
    wrapped = {
        "epoch": 3,
        "state_dict": {f"module.{name}": value for name, value in weights.items()},
    }
    torch.save(wrapped, tmp_path / "w.pth")
    plain, wrapped = (
        convert.convert("ResNet-18", convert.read_weights(tmp_path / name))
        for name in ("w.safetensors", "w.pth")
    )
    assert plain.keys() == wrapped.keys() and all(
        (plain[name] == wrapped[name]).all() for name in plain
    )


def test_missing_and_surplus_entries_are_all_named():
    weights = {
        name: np.zeros(tuple(value.shape)) for name, value in make("ResNet-18").state_dict().items()
    }
    del weights["layer2.0.bn1.running_var"]
    weights["projector.weight"] = np.zeros(3)
    message = "2 entries differ: missing layer2.0.bn1.running_var; surplus projector.weight"
    with pytest.raises(EkgError, match=message):
        convert.convert("ResNet-18", weights, "file")


def test_weights_of_another_net_are_refused():
    weights = {
        name: np.zeros(tuple(value.shape)) for name, value in make("ResNet-34").state_dict().items()
    }
    with pytest.raises(EkgError, match="does not fit ResNet-18.*surplus layer1.2.conv1.weight"):
        convert.convert("ResNet-18", weights)


def read(tmp_path, tensor):
    torch.save({"a": tensor}, tmp_path / "w.pth")
    return convert.read_weights(tmp_path / "w.pth")["a"]


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool, torch.float8_e4m3fn],
)
def test_tensors_of_any_real_type_and_parameters_are_read(tmp_path, dtype):
    numbers = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    expected = numbers.numpy()
    for tensor in (numbers.to(dtype), nn.Parameter(numbers.to(dtype), requires_grad=False)):
        found = read(tmp_path, tensor)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


def test_safetensors_in_bfloat16_are_read(tmp_path):
    torch_files = pytest.importorskip(
        "safetensors.torch", reason="safetensors is a development dependency"
    )
    numbers = torch.tensor([[1.5, -2.0, 0.25]])
    torch_files.save_file(
        {"a": numbers.to(torch.bfloat16), "module.b": numbers}, tmp_path / "w.safetensors"
    )
    found = convert.read_weights(tmp_path / "w.safetensors")
    for name in ("a", "b"):
        np.testing.assert_array_equal(found[name], numbers.numpy())


@pytest.mark.filterwarnings("ignore")  # PyTorch's, of kinds of tensors that are going
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.empty(3, device="meta"), "has a shape and no numbers"),
        (lambda: torch.eye(3).to_sparse(), "is sparse"),
        (lambda: torch.eye(3).to_sparse_csr(), "is sparse"),
        (lambda: torch.ones(3, dtype=torch.complex64), "is complex"),
        (lambda: torch.tensor([1.0, float("nan")]), "holds NaN or infinite numbers"),
        (lambda: torch.tensor([1e300], dtype=torch.float64), "holds NaN or infinite numbers"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "is quantised"),
        (
            lambda: torch.ones(1, dtype=torch.bfloat16).expand(10**13),
            "declares 10,000,000,000,000 numbers and holds fewer",
        ),
    ],
)
def test_tensors_that_are_no_plain_numbers_are_refused_in_one_line(tmp_path, make, message):
    with pytest.raises(EkgError, match=f"w.pth: 'a' {message}") as error:
        read(tmp_path, make())
    assert "\n" not in str(error.value)


def test_a_file_that_contains_itself_is_refused(tmp_path):
    itself = {}
    itself["state_dict"] = itself
    torch.save(itself, tmp_path / "w.pth")
    with pytest.raises(EkgError, match="w.pth: holds no dict from names to tensors"):
        convert.read_weights(tmp_path / "w.pth")


def test_a_name_that_comes_twice_is_refused(tmp_path):
    torch.save({"module.a": torch.ones(2), "a": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(EkgError, match="w.pth: holds 'a' twice"):
        convert.read_weights(tmp_path / "w.pth")


def test_misshapen_tensors_are_named():
    weights = {
        name: np.zeros(tuple(value.shape)) for name, value in make("ResNet-18").state_dict().items()
    }
    weights |= {
        "conv1.weight": np.zeros(5),
        "fc.weight": np.zeros(()),
        "bn1.weight": np.zeros((2, 2)),
    }
    message = (
        r"3 entries differ: conv1.weight has shape \(5,\) where 4 axes are expected; bn1.weight "
        r"has shape \(2, 2\) "
        r"where 1 axes.*; fc.weight has shape \(\) where 2 axes"
    )
    with pytest.raises(EkgError, match=message):
        convert.convert("ResNet-18", weights, "file")


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("content", ["garbage", "code", "list"])
def test_files_that_hold_no_weights_are_named(tmp_path, content):
    file = tmp_path / "w.pth"
    if content == "garbage":
        file.write_bytes(b"garbage")
    else:
        torch.save([1, 2] if content == "list" else {"a": Attack(str(tmp_path / "executed"))}, file)
    with pytest.raises(EkgError, match="w.pth: (cannot be read as weights|holds no dict)"):
        convert.read_weights(file)
    assert not (tmp_path / "executed").exists()
