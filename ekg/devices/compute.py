"""How pure functions are computed: on which devices, compiled with XLA or not, in which number
format.
"""

import contextlib
import dataclasses
import functools
import logging
import threading

import tensorflow as tf

from ekg.devices.team import Team
from ekg.errors import EkgError

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")
AUTO_FORMAT = "auto"  # stands for one of them until run.precision has chosen it
XLA_FAILURES = (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    tf.errors.InternalError,
)


@dataclasses.dataclass(frozen=True)
class Compute:
    """What computes a phase of a run.

    Attributes:
        team: Team that shares the work; by default one member, on the default device.
        use_xla: whether steps are compiled with XLA.
        dtype: one of DTYPES, of convolutions and activations.
    """

    team: Team = dataclasses.field(default_factory=Team)
    use_xla: bool = False
    dtype: str = "float32"


@contextlib.contextmanager
def full_float32():
    """Switches TensorFloat-32 off while it lasts: GPUs that have it would multiply float32 with 10
    bits of mantissa.

    The search, second derivatives and whatever compares two forms of one network are computed so.
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
    """How many threads ask for full float32 at the moment; TensorFlow's switch is the process's."""

    def __init__(self):
        self.lock, self.uses, self.was_enabled = threading.Lock(), 0, True


_tf32 = _Tf32()


class Compiled:
    """A function that is compiled with XLA if asked and if XLA can; else one warning line, and it
    goes on uncompiled.

    Attributes:
        is_compiled: whether calls run through XLA.
    """

    def __init__(self, make, name, use_xla):
        """
        Args:
            make: function from whether to compile to the tf.function.
            name: what to call it in the warning.
            use_xla: whether to compile with XLA.
        """
        self._make, self._name, self.is_compiled = make, name, use_xla
        self._function = make(use_xla)

    def __call__(self, *args):
        try:
            return self._function(*args)
        except XLA_FAILURES as error:
            if not self.is_compiled:
                raise
            plain = self._make(False)
            result = plain(*args)  # what is wrong with the arguments fails here, too
            self._function, self.is_compiled = plain, False
            reason = " ".join(error.message.split())
            logger.warning(
                "XLA cannot compile the %s (%s); it runs uncompiled.", self._name, reason[:160]
            )
            return result

    def count_traces(self):
        """Returns how many graphs were made of the function."""
        return self._function.experimental_get_tracing_count()


def in_graph(function, use_xla=None, **options):
    """Returns a tf.function whose Python runs as it stands while a graph is made, as in Keras' own
    training.

    Converting `if` and `for` for tensors, which nothing here needs, takes several times as long as
    all else of that.
    """
    made = tf.function(function, jit_compile=use_xla, autograph=False, **options)
    # One line of code makes a function for every part of every network, each traced once for a
    # batch shape. TensorFlow goes by the line, and would warn that one function is traced again and
    # again.
    made._omit_frequent_tracing_warning = True
    return made


def compiled(function, name, use_xla):
    """Returns a pure function as Compiled; see there."""
    return Compiled(functools.partial(in_graph, function), name, use_xla)


def split_batch(strategy, batch):
    """Returns this process's part of a batch {name: array [part, ...]} as values of its replicas,
    split along axis 0.
    """
    if strategy.num_replicas_in_sync == 1:
        return {name: tf.convert_to_tensor(value) for name, value in batch.items()}
    replicas = len(strategy.extended.worker_devices)
    uneven = [len(value) for value in batch.values() if len(value) % replicas]
    if uneven:
        raise EkgError(
            f"a batch of {uneven[0]} images cannot be split over {replicas} devices; `batch_size` "
            "must be a multiple of their number."
        )

    def replica_part(context):
        number = context.replica_id_in_sync_group % replicas
        size = {name: len(value) // replicas for name, value in batch.items()}
        return {
            name: tf.convert_to_tensor(value[number * size[name] : (number + 1) * size[name]])
            for name, value in batch.items()
        }

    return strategy.experimental_distribute_values_from_function(replica_part)
