"""Decisions that depend on the kind of device; every question about GPUs is answered here.

A test that replaces gpus() and details_of() sees what a machine with GPUs would do.
"""

import platform
from pathlib import Path

import tensorflow as tf

from ekg.errors import EkgError

PROCESSORS = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # x86 and ARM instructions for bfloat16
BFLOAT16_CAPABILITY = (8, 0)  # of the first NVIDIA GPUs with bfloat16
COMPILE_CHOICES = ("auto", "on", "off")


def gpus():
    """Returns the list of the tf.config.PhysicalDevice of the GPUs that this process may use."""
    return tf.config.get_visible_devices("GPU")


def details_of(gpu):
    """Returns {what: value} that TensorFlow knows of a GPU, as {"device_name": ...,
    "compute_capability": (8, 0)}.
    """
    return tf.config.experimental.get_device_details(gpu)


def gpu_names():
    """Returns the names of the GPUs' types."""
    return [details_of(gpu).get("device_name", gpu.name) for gpu in gpus()]


def gpu_memory_names():
    """Returns the names under which TensorFlow keeps the memory statistics of the GPUs."""
    return [f"GPU:{number}" for number, _ in enumerate(gpus())]


def default_device():
    """Returns the name of the device that is taken where none is named: the first GPU, or the
    CPU.
    """
    return "GPU:0" if gpus() else "CPU:0"


def use_xla(choice="auto"):
    """Returns whether steps are compiled with XLA: auto means where there is a GPU (on a CPU XLA
    trains slower).
    """
    return choice == "on" or (choice == "auto" and bool(gpus()))


def tiles_norms():
    """Returns whether batch norms over few channels count several positions as one; see
    narrow_norms.

    It is what a CPU's kernels are slow for. It also needs has_all_gradients().
    """
    return not gpus()


def has_all_gradients():
    """Returns whether every operation's gradient has a deterministic kernel on all devices of this
    process.

    TensorFlow's for GPUs lack that of a fused batch norm of given statistics and that of resizing
    to the nearest pixel; they raise UnimplementedError where op determinism is on. The form that is
    taken in their place needs more memory.
    """
    return not gpus()


def has_float16():
    """Returns whether convolutions in float16 are computed so."""
    return bool(gpus())


def has_bfloat16():
    """Returns whether all devices that this process computes on have instructions for bfloat16."""
    if gpus():
        return all(
            details_of(gpu).get("compute_capability", (0, 0)) >= BFLOAT16_CAPABILITY
            for gpu in gpus()
        )
    return bool(BFLOAT16_FLAGS & processor_flags())


def processor_flags():
    """Returns the set of the words that the system describes the processors by, instruction sets
    among them.
    """
    return set(PROCESSORS.read_text().split()) if PROCESSORS.exists() else set()


# ---------------------------------------------------------------- which devices are taken


def split_cpu(count):
    """Splits the CPU into so many devices, hides the GPUs, and returns the devices' names.

    Raises:
        EkgError: this process has used its devices already.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_visible_devices([], "GPU")
        if tf.config.get_logical_device_configuration(cpu) is None or (
            len(tf.config.get_logical_device_configuration(cpu)) < count
        ):
            tf.config.set_logical_device_configuration(
                cpu, [tf.config.LogicalDeviceConfiguration()] * count
            )
    except RuntimeError:
        raise EkgError(
            f"`virtual_devices` {count}: this process has used its devices already; start a new "
            f"one."
        ) from None
    return [f"CPU:{number}" for number in range(count)]


def choose_gpus(gpu_ids=None):
    """Makes the chosen GPUs, which alone stay visible, take memory as they need it, and returns
    their names.

    Args:
        gpu_ids: numbers of GPUs of this machine; None takes the first one, or none where there is
            none.

    Raises:
        EkgError: this machine does not have one of them, or one is named twice.
    """
    there = tf.config.list_physical_devices("GPU")
    if gpu_ids is None:
        gpu_ids = [0] if there else []
    missing = [number for number in gpu_ids if not 0 <= number < len(there)]
    if missing:
        have = f"GPUs 0 to {len(there) - 1}" if there else "no GPU that TensorFlow can use"
        raise EkgError(
            f"`gpu_id` {' '.join(map(str, missing))}: this machine has {have}; name others, or "
            f"leave `gpu_id` "
            "out to run on what there is."
        )
    if len(set(gpu_ids)) != len(gpu_ids):
        raise EkgError(f"`gpu_id` {' '.join(map(str, gpu_ids))}: name every GPU once.")
    chosen = [there[number] for number in gpu_ids]
    if chosen and tf.config.get_visible_devices("GPU") != chosen:
        tf.config.set_visible_devices(chosen, "GPU")
    for gpu in chosen:
        _let_memory_grow(gpu)
    return [f"GPU:{number}" for number in range(len(chosen))]


def _let_memory_grow(gpu):
    """Lets TensorFlow take a GPU's memory as it needs it; others may use the GPU, too.

    Raises:
        EkgError: the GPU has been used by this process already, and took all memory.
    """
    if tf.config.experimental.get_memory_growth(gpu):
        return
    try:
        tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        raise EkgError(
            "`gpu_id`: this process has used its GPUs already; start a new one."
        ) from None


def machine():
    """Returns {name: value} of the properties of this machine that a latency depends on."""
    try:
        first = PROCESSORS.read_text(encoding="utf-8").split("\n\n")[0]
        lines = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
        processor = {name.strip(): value.strip() for name, value in lines.items()}
        model = " ".join(
            processor.get(name, "") for name in ("model name", "cpu family", "model")
        ).strip()
    except OSError:
        model = platform.processor()
    return {
        "processor": model or platform.machine(),
        "architecture": platform.machine(),
        "gpus": gpu_names(),
    }
