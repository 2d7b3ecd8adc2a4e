"""All decisions that depend on the kind of device, based on the GPUs that TensorFlow lists.

Tests that replace gpus() and details_of() can simulate a machine with GPUs.
"""

import platform
from pathlib import Path

import tensorflow as tf

from ekg.errors import EkgError

PROCESSORS = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # x86 and ARM instructions for bfloat16
BFLOAT16_CAPABILITY = (8, 0)  # compute capability of the first NVIDIA GPUs with bfloat16
COMPILE_CHOICES = ("auto", "on", "off")


def gpus():
    """Returns the list of the tf.config.PhysicalDevice of the GPUs that this process may use."""
    return tf.config.get_visible_devices("GPU")


def details_of(gpu):
    """Returns TensorFlow's details of a GPU: {"device_name": ..., "compute_capability": (8, 0)}."""
    return tf.config.experimental.get_device_details(gpu)


def gpu_names():
    """Returns the model name of each GPU."""
    return [details_of(gpu).get("device_name", gpu.name) for gpu in gpus()]


def gpu_memory_names():
    """Returns the GPU names under which TensorFlow keeps memory statistics."""
    return [f"GPU:{number}" for number, _ in enumerate(gpus())]


def default_device():
    """Returns the name of the default device: the first GPU, or the CPU."""
    return "GPU:0" if gpus() else "CPU:0"


def use_xla(choice="auto"):
    """Returns whether steps are compiled with XLA; "auto" means if there is a GPU.

    On CPUs, training is slower with XLA.
    """
    return choice == "on" or (choice == "auto" and bool(gpus()))


def tiles_norms():
    """Returns whether batch norms over few channels are tiled, see narrow_norms.

    Only CPU kernels are slow for few channels. Tiling also needs has_all_gradients().
    """
    return not gpus()


def has_all_gradients():
    """Returns whether all gradients have deterministic kernels on the devices of this process.

    With op determinism, TensorFlow has no GPU gradients for a fused batch norm with given
    statistics and for resizing to the nearest pixel, and raises UnimplementedError. The operations
    that replace them need more memory.
    """
    return not gpus()


def has_float16():
    """Returns whether the device really computes float16 convolutions in float16."""
    return bool(gpus())


def has_bfloat16():
    """Returns whether all devices of this process have instructions for bfloat16."""
    if gpus():
        capabilities = [details_of(gpu).get("compute_capability", (0, 0)) for gpu in gpus()]
        return all(capability >= BFLOAT16_CAPABILITY for capability in capabilities)
    return bool(BFLOAT16_FLAGS & processor_flags())


def processor_flags():
    """Returns the set of all words in the system's processor description, with instruction sets."""
    return set(PROCESSORS.read_text().split()) if PROCESSORS.exists() else set()


# ---------------------------------------------------------------- choosing devices


def split_cpu(count):
    """Splits the CPU into `count` devices, hides the GPUs, and returns the names of the devices.

    Raises:
        EkgError: this process has already used its devices.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_visible_devices([], "GPU")
        present = tf.config.get_logical_device_configuration(cpu) or []
        if len(present) < count:
            wanted = [tf.config.LogicalDeviceConfiguration()] * count
            tf.config.set_logical_device_configuration(cpu, wanted)
    except RuntimeError:
        raise EkgError(
            f"`virtual_devices` {count}: this process has already used its devices; start a new "
            "one."
        ) from None
    return [f"CPU:{number}" for number in range(count)]


def choose_gpus(gpu_ids=None):
    """Makes only the chosen GPUs visible, with memory on demand, and returns their names.

    Args:
        gpu_ids: numbers of GPUs of this machine; None takes the first GPU, or no GPU if there is
            none.

    Raises:
        EkgError: this machine does not have one of them, or one is listed twice.
    """
    available = tf.config.list_physical_devices("GPU")
    if gpu_ids is None:
        gpu_ids = [0] if available else []
    missing = [number for number in gpu_ids if not 0 <= number < len(available)]
    if missing:
        has = f"GPUs 0 to {len(available) - 1}" if available else "no GPU that TensorFlow can use"
        raise EkgError(
            f"`gpu_id` {' '.join(map(str, missing))}: this machine has {has}; choose others, or "
            "leave `gpu_id` out for the default device."
        )
    if len(set(gpu_ids)) != len(gpu_ids):
        raise EkgError(f"`gpu_id` {' '.join(map(str, gpu_ids))}: name every GPU once.")
    chosen = [available[number] for number in gpu_ids]
    if chosen and tf.config.get_visible_devices("GPU") != chosen:
        tf.config.set_visible_devices(chosen, "GPU")
    for gpu in chosen:
        _let_memory_grow(gpu)
    return [f"GPU:{number}" for number in range(len(chosen))]


def _let_memory_grow(gpu):
    """Lets TensorFlow allocate GPU memory on demand, since others may use the GPU too.

    Raises:
        EkgError: this process has already used the GPU, and has taken all its memory.
    """
    if tf.config.experimental.get_memory_growth(gpu):
        return
    try:
        tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError:
        raise EkgError(
            "`gpu_id`: this process has already used its GPUs; start a new one."
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
