"""How functions are computed: on which devices, with or without XLA, in which number format."""

import contextlib
import dataclasses
import functools
import logging
import threading

import keras
import tensorflow as tf

from ekg.devices.team import Team
from ekg.errors import EkgError

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")
AUTO_FORMAT = "auto"  # placeholder for one of DTYPES, until run.precision chooses it
XLA_FAILURES = (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    tf.errors.InternalError,
)


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a phase of a run is computed.

    Attributes:
        team: Team that shares the work; by default one member on the default device.
        use_xla: whether steps are compiled with XLA.
        dtype: number format of convolutions and activations, one of DTYPES.
    """

    team: Team = dataclasses.field(default_factory=Team)
    use_xla: bool = False
    dtype: str = "float32"


@contextlib.contextmanager
def full_float32():
    """Context with TensorFloat-32 switched off, in which GPUs multiply with 10 bits of mantissa.

    The search, second derivatives and all comparisons of two forms of a network need it.
    """
    with _tf32.lock:
        if not _tf32.uses:
            _tf32.was_enabled = tf.config.experimental.tensor_float_32_execution_enabled()
            tf.config.experimental.enable_tensor_float_32_execution(False)
        _tf32.uses += 1
    try:
        yield
    finally:
        with _tf32.lock:
            _tf32.uses -= 1
            if not _tf32.uses:
                tf.config.experimental.enable_tensor_float_32_execution(_tf32.was_enabled)


class _Tf32:
    """Counts the threads that need full float32; TensorFlow has one switch per process."""

    def __init__(self):
        self.lock = threading.Lock()
        self.uses = 0
        self.was_enabled = True


_tf32 = _Tf32()


class Compiled:
    """A function that is compiled with XLA if asked; if XLA fails, it warns and runs uncompiled.

    Attributes:
        is_compiled: whether calls run through XLA.
    """

    def __init__(self, make, name, use_xla):
        """
        Args:
            make: function that takes whether to compile and returns the tf.function.
            name: name of the function in the warning.
            use_xla: whether to compile with XLA.
        """
        self.is_compiled = use_xla
        self._make = make
        self._name = name
        self._function = make(use_xla)

    def __call__(self, *args):
        try:
            return self._function(*args)
        except XLA_FAILURES as error:
            if not self.is_compiled:
                raise
            uncompiled = self._make(False)
            result = uncompiled(*args)  # raises if the arguments, and not XLA, are at fault
            self._function = uncompiled
            self.is_compiled = False
            reason = " ".join(error.message.split())
            logger.warning(
                "XLA cannot compile the %s (%s); it runs uncompiled.", self._name, reason[:160]
            )
            return result

    def count_traces(self):
        """Returns how many graphs were traced of the function."""
        return self._function.experimental_get_tracing_count()


def in_graph(function, use_xla=None, **options):
    """Returns a tf.function that is traced without AutoGraph, as in Keras' own training.

    AutoGraph converts `if` and `for` on tensors, which nothing here needs, and takes several times
    as long as the rest of tracing.
    """
    traced = tf.function(function, jit_compile=use_xla, autograph=False, **options)
    # The same line of code creates a function for every part of every network, and each is traced
    # once per batch shape. TensorFlow counts traces per line, and would warn of retracing.
    traced._omit_frequent_tracing_warning = True
    return traced


def compiled(function, name, use_xla):
    """Returns a pure function as Compiled.

    Args:
        function: pure function of tensors.
        name: name of the function in the warning that XLA failed.
        use_xla: whether to compile with XLA.
    """
    return Compiled(functools.partial(in_graph, function), name, use_xla)


def split_batch(strategy, batch):
    """Splits this process's part of a batch along axis 0, over the replicas of the process.

    Args:
        strategy: tf.distribute.Strategy.
        batch: {name: array [part, ...], or a structure of such arrays}.

    Returns:
        The same with tensors, or per-replica values if there are several replicas.
    """
    if strategy.num_replicas_in_sync == 1:
        return keras.tree.map_structure(tf.convert_to_tensor, batch)
    replicas = len(strategy.extended.worker_devices)
    uneven = [len(value) for value in keras.tree.flatten(batch) if len(value) % replicas]
    if uneven:
        raise EkgError(
            f"a batch of {uneven[0]} images cannot be split over {replicas} devices; `batch_size` "
            "must be a multiple of their number."
        )

    def replica_part(context):
        number = context.replica_id_in_sync_group % replicas

        def part(value):
            size = len(value) // replicas
            return tf.convert_to_tensor(value[number * size : (number + 1) * size])

        return keras.tree.map_structure(part, batch)

    return strategy.experimental_distribute_values_from_function(replica_part)
