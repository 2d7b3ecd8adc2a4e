"""Networks by name: builds unpruned networks, and pruned ones from their parameter files."""

import utils
from ekg.errors import EkgError
from nets import mobilenet_v2, resnet

# name -> module with SPECS, build(arch, num_classes, widths=None), conv_widths(arch) and
# streams(arch)
ARCHS = {arch: module for module in (resnet, mobilenet_v2) for arch in module.SPECS}


def archs_for(image_shape):
    """Returns the names of the networks for images of this shape, (height, width, channels)."""
    return [
        arch
        for arch, module in ARCHS.items()
        if module.SPECS[arch].image_shape == tuple(image_shape)
    ]


def build(arch, num_classes):
    """Returns an unpruned network, a keras.Model from normalised images to logits.

    Args:
        arch: one of ARCHS.
        num_classes: number of logits.

    Raises:
        EkgError: arch is not one of ARCHS.
    """
    return _lookup(arch).build(arch, num_classes)


def from_params(arch, params, num_classes, source="parameters"):
    """Returns a network with these parameters, pruned or not; their shapes give its widths.

    Args:
        arch: one of ARCHS.
        params: {name: array} from utils.load_params.
        num_classes: number of logits.
        source: name of the parameters in error messages, such as the file's name.

    Raises:
        EkgError: arch is unknown; or entries are missing, surplus or of the wrong shape, and the
            message lists all of them.
    """
    module = _lookup(arch)
    widths = {}
    problems = []
    for name, full_width in module.conv_widths(arch).items():
        widths[name] = full_width
        entry = _entry(name)
        if entry not in params:
            continue
        shape = params[entry].shape
        # A network may not be wider than the unpruned one, however large the file's arrays are.
        if len(shape) == 4 and 0 < shape[-1] <= full_width:
            widths[name] = shape[-1]
        else:
            problems.append(
                f"{entry} has shape {shape}, expected [kh, kw, c_in, c_out] with 1 to "
                f"{full_width} filters"
            )
    for names in module.streams(arch):
        first = names[0]
        problems += [
            f"{_entry(name)} has {widths[name]} filters, but is added to {widths[first]} of "
            f"{_entry(first)}"
            for name in names
            if widths[name] != widths[first]
        ]
    missing = [name for name in widths if _entry(name) not in params]
    if missing and not problems and len(missing) < len(widths):
        raise EkgError(
            f"{source}: lacks layers of {arch}, {missing[0]!r} for one; check `arch`. A network "
            "that has lost whole blocks cannot be built by name: load its .keras file."
        )
    model = module.build(arch, num_classes, widths if not problems else None)
    if problems:
        problems += utils.find_mismatches(model, params, compare_shapes=False)
        raise EkgError(utils.mismatch(source, arch, problems))
    utils.assign_params_(model, params, source)
    return model


def num_classes_of(params, source="parameters"):
    """Returns the number of logits of the network with these parameters, {name: array}.

    Raises:
        EkgError: there is no entry for the last layer.
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
