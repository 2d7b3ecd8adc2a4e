"""The devices a run has, on one machine or on several, and how work is shared out among them."""

import json
import os
from concurrent import futures

import numpy as np
import tensorflow as tf

import utils

COMPILE_CHOICES = ("auto", "on", "off")
STRATEGIES = ("mirrored", "multi_worker")
SLURM_PORT, MAX_TASKS_PER_NODE = 8888, 64
MAX_TEXT = 2**20  # bytes of a text that workers exchange


# ---------------------------------------------------------------- flags

def add_flags(group):
    """Adds the flags that say which devices a script uses to a group of its parser."""
    group.add_argument("--gpu_id", type=int, nargs="+", help="GPUs to use; without it GPU 0, or the CPU")
    group.add_argument("--virtual_devices", type=int, help="split the CPU into so many devices, to try several")
    group.add_argument("--strategy", default="mirrored", choices=STRATEGIES,
                       help="this machine alone, or all processes that TF_CONFIG or SLURM names")
    group.add_argument("--compile", default="auto", choices=COMPILE_CHOICES,
                       help="compile steps with XLA; auto: where there is a GPU")


def check_flags(parser, args):
    """Ends the program with one line if the flags of add_flags do not go together."""
    if args.virtual_devices is not None and args.virtual_devices < 1:
        parser.error(f"--virtual_devices must be at least 1; received {args.virtual_devices}.")
    if args.virtual_devices and args.strategy == "multi_worker":
        parser.error("--virtual_devices and --strategy multi_worker exclude each other: without GPUs a worker has "
                     "one device.")
    if args.virtual_devices and args.gpu_id is not None:
        parser.error("--virtual_devices and --gpu_id exclude each other: the one splits the CPU, the other names GPUs.")


# ---------------------------------------------------------------- strategy

def make_strategy(gpu_ids=None, virtual_devices=None, kind="mirrored"):
    """Returns the tf.distribute.Strategy of a run. It must be made before anything else touches a device.

    Args:
        gpu_ids: list of GPU numbers; None takes GPU 0 where there is one, or the CPU.
        virtual_devices: split the CPU into so many devices instead; for trying and testing.
        kind: "mirrored" for this machine alone, "multi_worker" for all processes that TF_CONFIG or SLURM names.

    Raises:
        utils.UserError: a GPU is named that this machine does not have, or one is named twice; TF_CONFIG is malformed.
    """
    resolver = _make_resolver() if kind == "multi_worker" else None
    if virtual_devices:
        devices = _split_cpu(virtual_devices)
    else:
        devices = _choose_gpus(gpu_ids) or ["CPU:0"]
    if resolver is None:
        return tf.distribute.MirroredStrategy(devices)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise utils.UserError(f"--strategy multi_worker: the workers cannot be joined ({reason}); check the addresses and "
                              "start all workers.") from None


def _split_cpu(count):
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_visible_devices([], "GPU")
        if tf.config.get_logical_device_configuration(cpu) is None or (
                len(tf.config.get_logical_device_configuration(cpu)) < count):
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        raise utils.UserError(f"--virtual_devices {count}: this process has used its devices already; start a new one."
                              ) from None
    return [f"CPU:{number}" for number in range(count)]


def _choose_gpus(gpu_ids):
    """Returns the names of the chosen GPUs, which alone stay visible."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpu_ids is None:
        gpu_ids = [0] if gpus else []
    missing = [number for number in gpu_ids if not 0 <= number < len(gpus)]
    if missing:
        have = f"GPUs 0 to {len(gpus) - 1}" if gpus else "no GPU that TensorFlow can use"
        raise utils.UserError(f"--gpu_id {' '.join(map(str, missing))}: this machine has {have}; "
                              "name others, or leave --gpu_id out to run on what there is.")
    if len(set(gpu_ids)) != len(gpu_ids):
        raise utils.UserError(f"--gpu_id {' '.join(map(str, gpu_ids))}: name every GPU once.")
    chosen = [gpus[number] for number in gpu_ids]
    if chosen and tf.config.get_visible_devices("GPU") != chosen:
        tf.config.set_visible_devices(chosen, "GPU")
        for gpu in chosen:
            tf.config.experimental.set_memory_growth(gpu, True)
    return [f"GPU:{number}" for number in range(len(chosen))]


def _make_resolver():
    """Returns the cluster resolver of TF_CONFIG, or else of SLURM."""
    if "TF_CONFIG" in os.environ:
        _check_tf_config(os.environ["TF_CONFIG"])
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if "SLURM_PROCID" not in os.environ:
        raise utils.UserError("--strategy multi_worker: neither TF_CONFIG nor SLURM names the workers; set TF_CONFIG, or "
                              "start the workers with srun.")
    try:
        # The resolver would ask for the node's GPUs; which of them a process takes is said by SLURM or --gpu_id.
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=SLURM_PORT, gpus_per_node=MAX_TASKS_PER_NODE, gpus_per_task=1, auto_set_gpu=False)
        resolver.cluster_spec()
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise utils.UserError(f"--strategy multi_worker: SLURM's variables cannot be understood ({error}); start the "
                              "workers with srun, or set TF_CONFIG.") from None
    return resolver


def _check_tf_config(text):
    """Raises utils.UserError if TF_CONFIG does not name workers and this one's place among them."""
    example = '{"cluster": {"worker": ["host1:port", "host2:port"]}, "task": {"type": "worker", "index": 0}}'
    try:
        config = json.loads(text)
    except ValueError as error:
        raise utils.UserError(f"TF_CONFIG: is no JSON ({error}); it must look like {example}.") from None
    cluster = config.get("cluster") if isinstance(config, dict) else None
    workers = cluster.get("worker") if isinstance(cluster, dict) else None
    if set(cluster or {}) != {"worker"} or not isinstance(workers, list) or not workers or not all(
            isinstance(worker, str) and worker.rpartition(":")[2].isdigit() and worker.rpartition(":")[0]
            for worker in workers):
        raise utils.UserError(f"TF_CONFIG: its cluster must name workers as host:port, and nothing else; it must look like "
                              f"{example}.")
    task = config.get("task")
    if not isinstance(task, dict) or task.get("type") != "worker" or type(task.get("index")) is not int or not (
            0 <= task["index"] < len(workers)):
        raise utils.UserError(f"TF_CONFIG: its task must be of type worker with an index from 0 to {len(workers) - 1}; it "
                              f"must look like {example}.")


def use_xla(choice):
    """Returns whether steps are compiled with XLA: auto means where there is a GPU (on a CPU XLA trains slower)."""
    return choice == "on" or (choice == "auto" and bool(tf.config.list_physical_devices("GPU")))


def check_batch(name, batch_size, parts):
    """Raises utils.UserError if a batch cannot be split evenly.

    Args:
        name: flag of the batch.
        batch_size: images.
        parts: {what the batch is split into: number}.
    """
    count = int(np.prod(list(parts.values())))
    if batch_size % count:
        product = " x ".join(f"{number} {what}" for what, number in parts.items())
        raise utils.UserError(f"{name} {batch_size} must be a multiple of {count} = {product}.")


# ---------------------------------------------------------------- team

class Team:
    """All replicas of a run, on this machine and on others, as members that share out pure work.

    Every process goes through the same program in the same order. What a member finds is put together so that all processes
    hold the same, bit for bit; so all take the same decisions.

    Attributes:
        count: members, over all processes.
        numbers: range of the members of this process.
        num_workers: processes.
        worker: number of this process; 0 is the chief, who alone writes files.
    """

    def __init__(self, strategy=None):
        """
        Args:
            strategy: the tf.distribute.Strategy; None stands for one member, on the default device.
        """
        self._strategy = strategy
        self._devices = strategy.extended.worker_devices if strategy else (None,)
        self.count = strategy.num_replicas_in_sync if strategy else 1
        self.num_workers = self.count // len(self._devices)
        first = 0
        if self.num_workers > 1:
            first = int(strategy.experimental_local_results(strategy.run(_replica_number))[0])
        self.numbers = range(first, first + len(self._devices))
        self.worker = first // len(self._devices)
        self._sum = tf.function(lambda value: strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None),
                                reduce_retracing=True)

    @property
    def is_chief(self):
        return self.worker == 0

    @property
    def device(self):
        """The first device of this process."""
        return self._devices[0]

    def run(self, function):
        """Returns {number: function(number)} for the members of this process, each on its own device and thread."""
        def on_device(number):
            with tf.device(self._devices[number - self.numbers.start]):
                return function(number)

        if len(self.numbers) == 1:
            return {number: on_device(number) for number in self.numbers}
        with futures.ThreadPoolExecutor(len(self.numbers)) as pool:
            return dict(zip(self.numbers, pool.map(on_device, self.numbers)))

    def total(self, array):
        """Returns the sum of the processes' arrays of one shape; where all but one hold zero it is exact."""
        if self.num_workers == 1:
            return array
        flat = np.ascontiguousarray(array).reshape(-1)
        parts = self._strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(flat if context.replica_id_in_sync_group == self.numbers.start
                                        else np.zeros_like(flat)))
        return self._sum(parts).numpy().reshape(array.shape)

    def exchange(self, text):
        """Returns the list of all processes' texts; all wait for the last."""
        if self.num_workers == 1:
            return [text]
        data = text.encode()[:MAX_TEXT]
        sizes = np.zeros(self.num_workers, np.int32)
        sizes[self.worker] = len(data)
        sizes = self.total(sizes)
        table = np.zeros((self.num_workers, max(int(sizes.max()), 1)), np.int32)
        table[self.worker, :len(data)] = np.frombuffer(data, np.uint8)
        return [row[:size].astype(np.uint8).tobytes().decode(errors="replace")
                for row, size in zip(self.total(table), sizes)]

    def chief_says(self, is_so):
        """Returns what the chief says: files are looked up by one process, so that all decide alike."""
        return self.exchange("yes" if is_so else "")[0] == "yes"

    def stop_signal(self):
        """Returns the number of the signal that asked a process to end, or 0: the same in all, which call it together.

        All processes go on as if they had got it themselves.
        """
        signals = np.zeros(self.num_workers, np.int32)
        signals[self.worker] = utils.stop_signal()
        number = int(self.total(signals).max())
        if number:
            utils.request_stop(number)
        return number

    def on_chief(self, function):
        """Calls a function in the chief's process alone; all wait until it is done.

        Raises:
            utils.UserError: in all processes, if the chief's call raised it or an OSError.
        """
        failure = ""
        if self.is_chief:
            try:
                function()
            except (utils.UserError, OSError) as error:
                if self.num_workers == 1:
                    raise
                failure = str(error)
        failure = self.exchange(failure)[0]
        if failure:
            raise utils.UserError(failure)

    def check_same(self, what):
        """Raises utils.UserError in all processes if one was started otherwise than the chief.

        Args:
            what: {name: value that goes to JSON} of everything that must be the same.
        """
        texts = [json.loads(text) for text in self.exchange(json.dumps(what, sort_keys=True))]
        for worker, other in enumerate(texts):
            names = [name for name in texts[0] if other.get(name) != texts[0][name]]
            if names:
                differing = "; ".join(f"{name} {other.get(name)!r} there, {texts[0][name]!r} at the chief"
                                      for name in names)
                raise utils.UserError(f"worker {worker}: was started otherwise than the chief ({differing}); start all "
                                      "workers with the same code and arguments.")


def _replica_number():
    return tf.distribute.get_replica_context().replica_id_in_sync_group
