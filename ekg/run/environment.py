"""What the last digits of a run depend on besides its arguments: machine, threads, kernels. A run
folder keeps it.

Sums of floating-point numbers are rounded in the order in which threads and vector instructions
take them. So a run that is resumed on another machine may end with other numbers than one that
stayed where it was.
"""

import ctypes
import json
import logging
import os
import re
from pathlib import Path

import tensorflow as tf

from ekg.devices import kind
from ekg.devices.kind import machine
from ekg.errors import EkgError
from ekg.io import files
from ekg.run.arguments import count_cores

logger = logging.getLogger(__name__)

MAPPED_FILES = Path("/proc/self/maps")
# Instruction sets by which kernels are chosen, of x86 and ARM, as systems name them.
INSTRUCTIONS = re.compile(r"sse4_\d|avx\w*|fma|f16c|amx_\w+|asimd\w*|sve\w*|bf16|i8mm|fphp")
VARIABLES = (
    "TF_ENABLE_ONEDNN_OPTS",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "OMP_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "XLA_FLAGS",
    "NVIDIA_TF32_OVERRIDE",
)
CORE_NAMES = (
    "scipy_openblas_get_corename64_",
    "openblas_get_corename64_",
    "openblas_get_corename",
)  # of OpenBLAS builds
# How a difference of these is said: {name: text with the value here and the value there}.
SENTENCES = {"cores": "{here} core{s} instead of {there}", "devices": "{here} instead of {there}"}


def describe(team):
    """Returns {name: value that goes to JSON} of all that the last digits of this process's numbers
    depend on.

    Args:
        team: Team that computes.
    """
    threading = tf.config.threading
    device = team.device or kind.default_device()
    environment = {
        "cores": count_cores(),
        "devices": f"{team.size} {'GPU' if 'GPU' in device else 'CPU'}{'s' * (team.size > 1)}",
        "threads of an operation": threading.get_intra_op_parallelism_threads(),
        "operations at once": threading.get_inter_op_parallelism_threads(),
        "instructions": " ".join(sorted(filter(INSTRUCTIONS.fullmatch, kind.processor_flags()))),
        "BLAS kernel": blas_kernel(),
        "GPUs": kind.gpu_names(),
        "architecture": machine()["architecture"],
    }
    return environment | {name: os.environ.get(name) for name in VARIABLES}


def blas_kernel():
    """Returns the name of the processor type that NumPy's OpenBLAS computes for; None where NumPy
    has another library.
    """
    try:
        paths = {
            line.split()[-1] for line in MAPPED_FILES.read_text().splitlines() if "openblas" in line
        }
    except OSError:
        return None
    for path in sorted(path for path in paths if "numpy" in path) or sorted(paths):
        library = ctypes.CDLL(path)  # it is loaded: this is another name for it
        for name in CORE_NAMES:
            if hasattr(library, name):
                function = getattr(library, name)
                function.restype = ctypes.c_char_p
                return function().decode()
    return None


def of_team(team):
    """Returns describe() of the chief's process, with an entry for each worker whose environment is
    another.

    All processes call it together.
    """
    described = [json.loads(text) for text in team.gather_texts(json.dumps(describe(team)))]
    chief = described[0]
    others = {
        f"worker {number}": _text(_differences(other, [chief]))
        for number, other in enumerate(described)
        if other != chief
    }
    return chief | others


def keep(path, here, is_strict):
    """Adds an environment to those that a run has had, and names what differs from them.

    Args:
        path: pathlib.Path of the file of environments, one in a line.
        here: as of_team() gives.
        is_strict: whether a run in another environment, or in several, is refused.

    Raises:
        EkgError: it is refused.
    """
    kept = files.read_report_lines(path)
    problems = [
        f"{name} computes with {text}" for name, text in here.items() if name.startswith("worker ")
    ]
    differing = _differences(here, kept)
    if differing:
        problems.insert(0, f"resumes with {_text(differing)}")
    for problem in problems:
        if is_strict:
            raise EkgError(
                f"{path.parent}: {problem}; `strict` refuses that, as the last digits may differ. "
                "Resume where it began, or leave `strict` out."
            )
        logger.warning("%s: %s: the last digits may differ.", path.parent, problem)
    if here not in kept:
        files.append_json_line(path, here)


def _differences(here, kept):
    """Returns {name: (value here, value there)} of what differs from any of the environments that
    were kept.
    """
    differing = {}
    for there in kept:
        for name in sorted(set(here) | set(there)):
            if here.get(name) != there.get(name):
                differing.setdefault(name, (here.get(name), there.get(name)))
    return differing


def _text(differing):
    return "; ".join(_sentence(name, *values) for name, values in differing.items())


def _sentence(name, here, there):
    """Returns how a difference is said."""
    if name == "instructions":
        ours, theirs = (set(str(value or "").split()) for value in (here, there))
        parts = [
            f"{' '.join(sorted(words))} {where}"
            for words, where in (
                (theirs - ours, "there and not here"),
                (ours - theirs, "here and not there"),
            )
            if words
        ]
        return "instructions " + ", ".join(parts)
    return SENTENCES.get(name, f"{name} {{here}} instead of {{there}}").format(
        here=here, there=there, s="" if here == 1 else "s"
    )
