"""Networks by name: build an unpruned one, or the one whose widths a parameter file tells."""

import utils
from ekg.errors import EkgError
from nets import mobilenet_v2, resnet

# name -> module with SPECS, build(arch, num_classes, widths=None), conv_widths(arch) and
# streams(arch)
ARCHS = {arch: module for module in (resnet, mobilenet_v2) for arch in module.SPECS}


def archs_for(image_shape):
    """Returns the names of the networks that take images of this shape, (height, width,
    channels).
    """
    return [
        arch
        for arch, module in ARCHS.items()
        if module.SPECS[arch].image_shape == tuple(image_shape)
    ]


def build(arch, num_classes):
    """Returns an unpruned network: keras.Model from normalised images to logits [batch,
    num_classes].

    Raises:
        EkgError: arch is not one of ARCHS.
    """
    return _lookup(arch).build(arch, num_classes)


def from_params(arch, params, num_classes, source="parameters"):
    """Returns the network, pruned or not, whose widths the shapes of its parameters tell, with
    these parameters.

    Args:
        arch: one of ARCHS.
        params: {name: array}, as utils.load_params gives.
        num_classes: number of logits.
        source: what to call the parameters in an error, say the file's name.

    Raises:
        EkgError: arch is unknown; or entries are missing, surplus or of the wrong shape: all are
            named at once.
    """
    module = _lookup(arch)
    widths, problems = {}, []
    for name, most in module.conv_widths(arch).items():
        entry = _entry(name)
        shape = params[entry].shape if entry in params else None
        widths[name] = (
            shape[-1] if shape is not None and len(shape) == 4 and 0 < shape[-1] <= most else most
        )
        if shape is not None and (len(shape) != 4 or shape[-1] != widths[name]):
            problems.append(
                f"{entry} has shape {shape}, expected [kh, kw, c_in, c_out] with 1 to {most} "
                "filters"
            )
    for names in module.streams(arch):
        problems += [
            f"{_entry(name)} has {widths[name]} filters, but is added to {widths[names[0]]} of "
            f"{_entry(names[0])}"
            for name in names
            if widths[name] != widths[names[0]]
        ]
    # No larger than the unpruned network, whatever the file declares.
    model = module.build(arch, num_classes, widths if not problems else None)
    if problems:
        problems += utils.find_mismatches(model, params, compare_shapes=False)
        raise EkgError(utils.mismatch(source, arch, problems))
    utils.assign_params_(model, params, source)
    return model


def num_classes_of(params, source="parameters"):
    """Returns how many logits the network of some parameters, {name: array}, has.

    Raises:
        EkgError: there is no entry of the last layer.
    """
    if "fc/biases:0" not in params:
        raise EkgError(
            f"{source}: has no entry fc/biases:0, so it is none of this program's networks."
        )
    return params["fc/biases:0"].size


def _entry(conv):
    return f"{conv.replace('-', '/')}/kernel:0"


def _lookup(arch):
    if arch not in ARCHS:
        raise EkgError(f"`arch` {arch}: no such network; there are {', '.join(ARCHS)}.")
    return ARCHS[arch]
