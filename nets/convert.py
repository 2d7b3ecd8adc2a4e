"""Converts torchvision-style weights of an ImageNet ResNet to a parameter file.

    python -m nets.convert resnet50.pth resnet50.pkl --arch ResNet-50

Reads a PyTorch state dict (.pth or .pt; tensors only, without running code) or .safetensors, and
needs PyTorch or safetensors for it; nothing else in this project does.
"""

import re
from pathlib import Path

import ml_dtypes  # comes with TensorFlow
import numpy as np

import nets
import utils
from ekg.errors import EkgError, first_line
from nets import resnet

# Entries in which training programs store the network, and prefixes that they add to its names
WRAPPERS = ("state_dict", "model", "model_state_dict")
PREFIXES = re.compile(r"^((module|model|encoder|backbone|online_encoder|net)\.)+")
NORM_ENTRIES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
BFLOAT16 = ml_dtypes.bfloat16
_DTYPES = {  # dtype in a .safetensors file -> NumPy dtype
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": BFLOAT16,
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
COUNTER = "num_batches_tracked"  # entry of torchvision's batch norms that is not needed here


def parse_args(argv=None):
    """Parses and checks the command line."""
    parser = utils.Parser(description="Convert torchvision-style weights to a parameter file.")
    parser.add_argument(
        "source", type=Path, metavar="FILE", help=".pth or .pt state dict, or .safetensors"
    )
    parser.add_argument("target", type=Path, metavar="OUT.pkl", help="parameter file to write")
    large = [arch for arch, spec in resnet.SPECS.items() if spec.is_large]
    parser.add_argument("--arch", required=True, choices=large, help="network")
    return parser.parse_args(argv)


def read_weights(path):
    """Returns the {name: float32 array} in a PyTorch state dict or a .safetensors file.

    Raises:
        EkgError: the file, or the package that reads it, is missing; or the file does not hold a
            dict of dense tensors of real numbers.
    """
    if not path.is_file():
        raise EkgError(f"{path}: no such file.")
    try:
        read, to_array = _safetensors() if path.suffix == ".safetensors" else _pytorch()
    except ImportError as error:
        raise EkgError(f"{path}: to read it, install {error.name} with pip.") from None
    try:
        weights = read(path)
    except Exception as error:  # both packages raise many types for damaged files and for code
        raise EkgError(f"{path}: cannot be read as weights ({first_line(error)[:200]}).") from None
    arrays = {}
    for name, value in _unwrapped(weights, path).items():
        short_name = PREFIXES.sub("", str(name))
        if short_name in arrays:
            raise EkgError(
                f"{path}: holds {short_name!r} twice, under names with different prefixes; leave "
                "one out."
            )
        try:
            arrays[short_name] = _finite(to_array(value))
        except EkgError as error:
            raise EkgError(f"{path}: {str(name)[:80]!r} {error}") from None
        except Exception as error:  # the package cannot convert the tensor
            raise EkgError(
                f"{path}: {str(name)[:80]!r} cannot be read ({first_line(error)[:120]})."
            ) from None
    return arrays


def _unwrapped(weights, path):
    """Returns the dict of tensors inside the dicts that training programs wrap around it."""
    seen = set()  # a dict may contain itself
    while isinstance(weights, dict) and id(weights) not in seen:
        seen.add(id(weights))
        inner = [weights[name] for name in WRAPPERS if isinstance(weights.get(name), dict)]
        if inner:
            weights = inner[0]
    is_dict = isinstance(weights, dict)
    if not is_dict or not all(hasattr(value, "shape") for value in weights.values()):
        raise EkgError(f"{path}: holds no dict from names to tensors.")
    return weights


def _pytorch():
    """Returns (function that reads a file of torch.save(), function from a tensor to float32)."""
    import torch

    def to_array(value):
        if not isinstance(value, torch.Tensor):
            return _plain(np.asarray(value))
        kinds = {
            "has a shape and no numbers (device meta)": value.is_meta,
            "is quantised": value.is_quantized,
            "is sparse": value.layout != torch.strided or value.is_nested,
            "is complex": value.is_complex(),
        }
        problems = [problem for problem, is_so in kinds.items() if is_so]
        if problems:
            raise EkgError(f"{problems[0]}; save the weights as dense tensors of real numbers.")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise EkgError(
                f"declares {value.numel():,} numbers and holds fewer; save a copy of it."
            )
        return value.detach().to(torch.float32).numpy()

    return lambda path: torch.load(path, map_location="cpu", weights_only=True), to_array


def _safetensors():
    """Returns (function that reads a .safetensors file, function from an array to float32)."""
    from safetensors import deserialize

    def read(path):
        return {
            name: np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in deserialize(path.read_bytes())
        }

    return read, _plain


def _plain(array):
    if array.dtype.kind not in "biuf" and array.dtype != BFLOAT16:
        raise EkgError(
            f"is of type {array.dtype}; save the weights as dense tensors of real numbers."
        )
    return array.astype(np.float32)


def _finite(array):
    if not np.isfinite(array).all():
        raise EkgError("holds NaN or infinite numbers; save the weights of a network that works.")
    return array


def sources(arch):
    """Returns {torchvision's layer: this project's layer} for all layers with weights."""
    spec = resnet.SPECS[arch]
    names = {"conv1": "conv", "bn1": "bn", "fc": "fc"}
    first = 0 if spec.is_bottleneck else 1
    for stage, block, strides, has_projection in spec.stages():
        theirs = f"layer{stage + 1}.{block}"
        ours = f"BasicBlock{stage}.{block}"
        for i in range(len(spec.block_convs(strides))):
            names |= {
                f"{theirs}.conv{i + 1}": f"{ours}/conv{first + i}",
                f"{theirs}.bn{i + 1}": f"{ours}/bn{first + i}",
            }
        if has_projection:
            names |= {
                f"{theirs}.downsample.0": f"{ours}/conv3",
                f"{theirs}.downsample.1": f"{ours}/bn3",
            }
    return names


def convert(arch, weights, source="weights"):
    """Returns the {name: array} for a parameter file, and uses every entry of `weights` once.

    Kernels [c_out, c_in, kh, kw] become [kh, kw, c_in, c_out]; the classifier's [classes, c_in]
    becomes [c_in, classes].

    Args:
        arch: "ResNet-18", "ResNet-34" or "ResNet-50".
        weights: {torchvision's name: array}.
        source: name of the weights in error messages.

    Raises:
        EkgError: entries are missing, surplus or misshapen; the message lists all of them.
    """
    params = {}
    problems = []
    remaining = dict(weights)

    def take(theirs, ours, rank, to_layout):
        if theirs not in remaining:
            problems.append(f"missing {theirs}")
            return
        array = remaining.pop(theirs)
        if array.ndim == rank:
            params[ours] = to_layout(array)
        else:
            problems.append(f"{theirs} has shape {array.shape} where {rank} axes are expected")

    for theirs, ours in sources(arch).items():
        if theirs == "fc":
            take("fc.weight", "fc/kernel:0", 2, np.transpose)
            take("fc.bias", "fc/biases:0", 1, lambda bias: bias.reshape(1, -1))
        elif re.search(r"conv\d$|downsample\.0$", theirs):
            take(f"{theirs}.weight", f"{ours}/kernel:0", 4, _keras_kernel)
        else:
            for entry, name in NORM_ENTRIES.items():
                take(f"{theirs}.{entry}", f"{ours}/{name}:0", 1, _norm_array)
            remaining.pop(f"{theirs}.{COUNTER}", None)
    problems += [f"surplus {name}" for name in remaining]
    if problems:
        raise EkgError(utils.mismatch(source, arch, problems))
    return params


def _keras_kernel(kernel):
    """Returns a kernel [c_out, c_in, kh, kw] as [kh, kw, c_in, c_out]."""
    return np.moveaxis(kernel, (0, 1), (-1, -2))


def _norm_array(array):
    return array.reshape(1, 1, 1, -1)


def main(args):
    """Converts a file and returns the path of the parameter file."""
    params = convert(args.arch, read_weights(args.source), args.source)
    model = nets.from_params(args.arch, params, params["fc/biases:0"].size, args.source)
    if not args.target.parent.is_dir():
        raise EkgError(f"{args.target}: there is no folder {args.target.parent} to write it to.")
    utils.save_params(model, args.target)
    print(
        f"{args.target}: {len(params)} arrays of {args.arch}, {params['fc/biases:0'].size} classes"
    )
    return args.target


if __name__ == "__main__":
    utils.run_script(main, parse_args)
