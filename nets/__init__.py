"""Networks by name: build an unpruned one, or the one whose widths a parameter file tells."""

import utils
from nets import resnet

# name -> (builder(arch, num_classes, widths=None), conv_widths(arch), streams(arch))
ARCHS = {arch: (resnet.build, resnet.conv_widths, resnet.streams) for arch in resnet.SPECS}


def archs_for(image_shape):
    """Returns the names of the networks that take images of this shape, (height, width, channels)."""
    return [arch for arch, spec in resnet.SPECS.items() if spec.image_shape == tuple(image_shape)]


def build(arch, num_classes):
    """Returns an unpruned network: keras.Model from normalised images to logits [batch, num_classes].

    Raises:
        utils.UserError: arch is not one of ARCHS.
    """
    return _lookup(arch)[0](arch, num_classes)


def from_params(arch, params, num_classes, source="parameters"):
    """Returns the network, pruned or not, whose widths the shapes of its parameters tell, with these parameters.

    Args:
        arch: one of ARCHS.
        params: {name: array}, as utils.load_params gives.
        num_classes: number of logits.
        source: what to call the parameters in an error, say the file's name.

    Raises:
        utils.UserError: arch is unknown; or entries are missing, surplus or of the wrong shape: all are named at once.
    """
    builder, conv_widths, streams = _lookup(arch)
    widths, problems = {}, []
    for name, default in conv_widths(arch).items():
        entry = f"{name.replace('-', '/')}/kernel:0"
        shape = params[entry].shape if entry in params else None
        if shape is not None and len(shape) == 4 and all(shape):
            widths[name] = shape[-1]
        else:
            widths[name] = default
            problems += [f"{entry} has shape {shape}, expected [kh, kw, c_in, c_out]"] * (shape is not None)
    for names in streams(arch):
        target = widths[names[0]]
        problems += [f"{name.replace('-', '/')}/kernel:0 has {widths[name]} filters, but is added to {target} of "
                     f"{names[0].replace('-', '/')}" for name in names if widths[name] != target]
    if problems:
        raise utils.UserError(utils.mismatch(source, arch, problems))
    model = builder(arch, num_classes, widths)
    utils.assign_params_(model, params, source)
    return model


def _lookup(arch):
    if arch not in ARCHS:
        raise utils.UserError(f"--arch {arch}: no such network; there are {', '.join(ARCHS)}.")
    return ARCHS[arch]
