"""Prunes a ResNet for small images with Torch-Pruning, in an environment made by benchmarks.peers.

    python peers_torch.py IN.npz OUT.npz --importance l2 --rate 0.45

IN.npz has the parameters of a network by this project's names, normalised images [n, height, width,
3], their labels, and the logits of the first images, which the rebuilt network must reproduce.
Channels are ranked over the whole network (global pruning) and removed a few at a time, until the
FLOPs are at or below the rate; group Taylor computes new gradients before each step. OUT.npz gets
the remaining parameters.
"""

import argparse

import numpy as np
import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional

EPSILON = 1e-5  # of batch norms
STEPS = 200
TAYLOR_IMAGES = 512
TOLERANCE = 1e-3  # largest difference of logits, as a share of the largest logit
NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, with a projection where the width changes."""

    def __init__(self, c_in, c_out, strides, has_projection):
        super().__init__()
        self.strides = strides
        self.conv1 = nn.Conv2d(c_in, c_out, 3, strides, 0 if strides > 1 else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out, EPSILON)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out, EPSILON)
        if has_projection:
            self.conv3 = nn.Conv2d(c_in, c_out, 1, strides, bias=False)
            self.bn3 = nn.BatchNorm2d(c_out, EPSILON)
        self.has_projection = has_projection

    def forward(self, x):
        # Keras' padding "same" of an even size with stride 2 is all at the end.
        y = functional.pad(x, (0, 1, 0, 1)) if self.strides > 1 else x
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(y)))))
        return functional.relu(y + (self.bn3(self.conv3(x)) if self.has_projection else x))


class ResNet(nn.Module):
    """A ResNet for small images, with the widths and values of unpruned parameters."""

    def __init__(self, params):
        super().__init__()
        width = params["conv/kernel:0"].shape[-1]
        self.conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width, EPSILON)
        names = sorted(
            {name.split("/")[0] for name in params if name.startswith("BasicBlock")},
            key=lambda name: [int(part) for part in name[len("BasicBlock") :].split(".")],
        )
        self.blocks = nn.ModuleDict()
        for name in names:
            c_in, c_out = params[f"{name}/conv1/kernel:0"].shape[2:]
            has_projection = f"{name}/conv3/kernel:0" in params
            self.blocks[name.replace(".", "_")] = Block(
                c_in, c_out, 2 if has_projection else 1, has_projection
            )
        self.fc = nn.Linear(*params["fc/kernel:0"].shape)
        for name, tensor in self.named_arrays():
            value = torch.from_numpy(to_torch(name, params[name]))
            if tensor.shape != value.shape:
                raise ValueError(f"{name}: {tuple(value.shape)} where {tuple(tensor.shape)} is due")
            tensor.data.copy_(value)

    def forward(self, x):
        x = functional.relu(self.bn(self.conv(x)))
        for block in self.blocks.values():
            x = block(x)
        return self.fc(x.mean((2, 3)))

    def named_arrays(self):
        """Yields (this project's name, tensor) of all parameters and moving statistics."""
        modules = {"conv": self.conv, "bn": self.bn}
        for name, block in self.blocks.items():
            modules |= {
                f"{name.replace('_', '.')}/{part}": module
                for part, module in block.named_children()
            }
        for name, module in modules.items():
            if isinstance(module, nn.Conv2d):
                yield f"{name}/kernel:0", module.weight
            else:
                yield from (
                    (f"{name}/{ours}:0", getattr(module, theirs)) for ours, theirs in NORM.items()
                )
        yield "fc/kernel:0", self.fc.weight
        yield "fc/biases:0", self.fc.bias


def to_torch(name, array):
    """Returns an array of this project with PyTorch's order of axes."""
    if array.ndim == 4 and "kernel" in name:
        return np.ascontiguousarray(array.transpose(3, 2, 0, 1))
    return np.ascontiguousarray(array.T if "kernel" in name else array.reshape(-1))


def from_torch(name, array):
    """Returns an array of PyTorch with this project's order of axes."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T if "kernel" in name else array


def count_flops(model, image):
    """Returns the multiply-accumulates of one image, with 2·H·W·C per batch norm as in ekg."""
    total = [0]
    hooks = []

    def count(module, inputs, output):
        if isinstance(module, nn.Conv2d):
            total[0] += module.weight.numel() * output.shape[2] * output.shape[3]
        elif isinstance(module, nn.BatchNorm2d):
            total[0] += 2 * output[0].numel()
        else:
            total[0] += module.weight.numel()

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            hooks.append(module.register_forward_hook(count))
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return total[0]


def prune(model, images, labels, importance, rate):
    """Removes channels until at most a share `rate` of the FLOPs is left; returns the share."""
    image = images[:1]
    whole = count_flops(model, image)
    makers = {
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "taylor": tp.importance.GroupTaylorImportance,
    }
    pruner = tp.pruner.BasePruner(
        model,
        image,
        makers[importance](),
        global_pruning=True,
        pruning_ratio=0.95,
        iterative_steps=STEPS,
        ignored_layers=[model.fc],
    )
    present = 1.0
    for _ in range(STEPS):
        if present <= rate:
            break
        if importance == "taylor":
            model.zero_grad()
            logits = model(images[:TAYLOR_IMAGES])
            functional.cross_entropy(logits, labels[:TAYLOR_IMAGES]).backward()
        pruner.step()
        present = count_flops(model, image) / whole
    if present > rate:
        raise SystemExit(
            f"error: {importance}: {present:.4f} of the FLOPs are left, and {rate} were asked for."
        )
    return present


def main():
    parser = argparse.ArgumentParser(description="Prune a ResNet with Torch-Pruning.")
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--importance", choices=("l2", "taylor"), required=True)
    parser.add_argument("--rate", type=float, required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    with np.load(args.source, allow_pickle=False) as arrays:
        stored = dict(arrays)
    images = torch.from_numpy(np.ascontiguousarray(stored.pop("images").transpose(0, 3, 1, 2)))
    labels = torch.from_numpy(stored.pop("labels")).long()
    logits = stored.pop("logits")
    model = ResNet(stored).eval()
    with torch.no_grad():
        rebuilt_logits = model(images[: len(logits)]).numpy()
    difference = np.abs(rebuilt_logits - logits).max() / np.abs(logits).max()
    if difference > TOLERANCE:
        raise SystemExit(
            f"error: the logits differ by {difference:.2g} of the greatest from this project's."
        )
    rate = prune(model, images, labels, args.importance, args.rate)
    np.savez(
        args.target,
        **{
            name: from_torch(name, tensor.detach().numpy()) for name, tensor in model.named_arrays()
        },
    )
    print(f"{args.importance}: {rate:.4f} of the FLOPs; logits agreed to {difference:.1g}")


if __name__ == "__main__":
    main()
