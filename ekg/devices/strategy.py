"""Devices of a command: settings, strategy, and clusters that TF_CONFIG or SLURM describes."""

import dataclasses
import json
import logging
import os

import tensorflow as tf

from ekg import settings
from ekg.devices import kind
from ekg.devices.kind import COMPILE_CHOICES
from ekg.errors import EkgError
from ekg.settings import MACHINE, setting

logger = logging.getLogger(__name__)

STRATEGIES = ("mirrored", "multi_worker")
SLURM_PORT, MAX_TASKS_PER_NODE = 8888, 64
MAX_PORT, MAX_VIRTUAL_DEVICES = 65535, 64


@dataclasses.dataclass(frozen=True)
class DeviceSettings(settings.Settings):
    """Which devices a script uses."""

    gpu_id: tuple[int, ...] | None = setting(
        None,
        "GPUs to use; without it GPU 0, or the CPU",
        MACHINE,
        may_be_none=True,
        is_per_worker=True,
    )
    virtual_devices: int | None = setting(
        None,
        "number of devices to split the CPU into, to try several",
        MACHINE,
        range=settings.Range(1, MAX_VIRTUAL_DEVICES),
        may_be_none=True,
    )
    strategy: str = setting(
        "mirrored",
        "this machine alone, or all processes that TF_CONFIG or SLURM names",
        MACHINE,
        choices=STRATEGIES,
    )
    compile: str = setting(
        "auto",
        "compile steps with XLA; auto: where there is a GPU",
        MACHINE,
        choices=COMPILE_CHOICES,
    )

    def __post_init__(self):
        super().__post_init__()
        if self.virtual_devices and self.strategy == "multi_worker":
            raise EkgError(
                "`virtual_devices` and the multi_worker `strategy` exclude each other: without "
                "GPUs a worker has "
                "one device."
            )
        if self.virtual_devices and self.gpu_id is not None:
            raise EkgError(
                "`virtual_devices` and `gpu_id` exclude each other: one splits the CPU, the other "
                "names GPUs."
            )


def make_strategy(chosen=None):
    """Returns the tf.distribute.Strategy of a script. It must be made before anything else touches
    a device.

    Args:
        chosen: DeviceSettings; None takes GPU 0 where there is one, or the CPU.

    Raises:
        EkgError: a GPU is named that this machine does not have, or one is named twice; TF_CONFIG
            is malformed.
    """
    chosen = chosen or DeviceSettings()
    resolver = _make_resolver() if chosen.strategy == "multi_worker" else None
    devices = (
        kind.split_cpu(chosen.virtual_devices)
        if chosen.virtual_devices
        else kind.choose_gpus(chosen.gpu_id) or ["CPU:0"]
    )
    if resolver is None:
        return tf.distribute.MirroredStrategy(devices)
    addresses = resolver.cluster_spec().as_dict()["worker"]
    logger.info(
        "worker %d of %d, at %s, waits until all are there: %s",
        resolver.task_id,
        len(addresses),
        addresses[resolver.task_id],
        ", ".join(addresses),
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EkgError(
            f"`strategy` multi_worker: the workers cannot be joined ({reason}); check the "
            f"addresses and start "
            "all workers."
        ) from None


def describe_devices(strategy):
    """Returns what a strategy computes on, as "2 GPUs"."""
    count, device = strategy.num_replicas_in_sync, strategy.extended.worker_devices[0]
    return f"{count} {'GPU' if 'GPU' in device else 'CPU'}{'s' * (count > 1)}"


def _make_resolver():
    """Returns the cluster resolver of TF_CONFIG, or else of SLURM."""
    if "TF_CONFIG" in os.environ:
        _check_tf_config(os.environ["TF_CONFIG"])
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if "SLURM_PROCID" not in os.environ:
        raise EkgError(
            "`strategy` multi_worker: neither TF_CONFIG nor SLURM names the workers; set "
            "TF_CONFIG, or start the "
            "workers with srun."
        )
    try:
        # The resolver would ask for the node's GPUs; which of them a process takes is said by SLURM
        # or the user.
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=SLURM_PORT,
            gpus_per_node=MAX_TASKS_PER_NODE,
            gpus_per_task=1,
            auto_set_gpu=False,
        )
        resolver.cluster_spec()
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise EkgError(
            f"`strategy` multi_worker: SLURM's variables cannot be understood ({error}); start "
            f"the workers with "
            "srun, or set TF_CONFIG."
        ) from None
    return resolver


def _check_tf_config(text):
    """Raises EkgError if TF_CONFIG does not name workers and this one's place among them."""
    example = (
        '{"cluster": {"worker": ["host1:port", "host2:port"]}, "task": {"type": "worker", '
        '"index": 0}}'
    )
    try:
        config = json.loads(text)
    except ValueError as error:
        raise EkgError(f"TF_CONFIG: is no JSON ({error}); it must look like {example}.") from None
    cluster = config.get("cluster") if isinstance(config, dict) else None
    workers = cluster.get("worker") if isinstance(cluster, dict) else None
    if (
        set(cluster or {}) != {"worker"}
        or not isinstance(workers, list)
        or not workers
        or not all(_is_address(worker) for worker in workers)
    ):
        raise EkgError(
            f"TF_CONFIG: its cluster must name workers as host:port, of ports from 1 to "
            f"{MAX_PORT}, and "
            f"nothing else; it must look like {example}."
        )
    task = config.get("task")
    if (
        not isinstance(task, dict)
        or task.get("type") != "worker"
        or type(task.get("index")) is not int
        or not (0 <= task["index"] < len(workers))
    ):
        raise EkgError(
            f"TF_CONFIG: its task must be of type worker with an index from 0 to "
            f"{len(workers) - 1}; it must "
            f"look like {example}."
        )


def _is_address(worker):
    """Returns whether a value is host:port."""
    host, _, port = worker.rpartition(":") if isinstance(worker, str) else ("", "", "")
    is_number = port.isascii() and port.isdigit() and len(port) <= len(str(MAX_PORT))
    return bool(host) and is_number and 1 <= int(port) <= MAX_PORT
