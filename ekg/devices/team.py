"""The replicas of a job, on one machine or on several, as a team that shares out pure work."""

import contextlib
import json
import re
import time
from concurrent import futures

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.framework import errors

from ekg.errors import EkgError
from ekg.process import stopping

MAX_TEXT = 2**20  # bytes of a text that workers exchange
MAX_REASON = 400  # characters of why a worker ended
# What a process gets where another one has ended or cannot be reached.
LOST_WORKER = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)

_TOLD = re.compile(
    r"<<(worker \d+: .*?)>>", re.DOTALL
)  # a worker's reason, in what TensorFlow reports to the others


class Agreed(EkgError):
    """A refusal that all processes of a team raise together."""


def reason_of_loss(error):
    """Returns why another worker ended, of one of LOST_WORKER; what TensorFlow reports where that
    worker told nothing.
    """
    told = _TOLD.search(error.message)
    if told:
        return " ".join(told.group(1).split())
    return f"another worker ended or cannot be reached ({' '.join(error.message.split())[:160]})"


class Team:
    """All replicas of a job, on this machine and on others, as members that share out pure work.

    Every process goes through the same program in the same order. What members compute is put
    together so that all processes hold the same, bit for bit; so all take the same decisions.

    Attributes:
        strategy: the tf.distribute.Strategy; TensorFlow's default one for a team of one member.
        size: members, over all processes.
        local_members: range of the numbers of this process's members.
        num_workers: processes.
        worker: number of this process; 0 is the chief, who alone writes files.
    """

    def __init__(self, strategy=None):
        """
        Args:
            strategy: the tf.distribute.Strategy; None stands for one member, on the default device.
        """
        self.strategy = strategy or tf.distribute.get_strategy()
        self._devices = strategy.extended.worker_devices if strategy else (None,)
        self.size = strategy.num_replicas_in_sync if strategy else 1
        self.num_workers = self.size // len(self._devices)
        first = 0
        if self.num_workers > 1:
            first = int(strategy.experimental_local_results(strategy.run(_replica_number))[0])
        self.local_members = range(first, first + len(self._devices))
        self.worker = first // len(self._devices)
        self._sum = tf.function(
            lambda value: strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None),
            reduce_retracing=True,
        )

    @property
    def is_chief(self):
        return self.worker == 0

    @property
    def shard(self):
        """(number of this process, number of processes): which part of every batch this process
        reads.
        """
        return self.worker, self.num_workers

    @property
    def device(self):
        """The first device of this process; None stands for TensorFlow's default."""
        return self._devices[0]

    def map_members(self, function):
        """Returns {member: function(member)} for the members of this process, each on its own
        device and thread.
        """

        def on_device(member):
            with tf.device(self._devices[member - self.local_members.start]):
                return function(member)

        if len(self.local_members) == 1:
            return {member: on_device(member) for member in self.local_members}
        with futures.ThreadPoolExecutor(len(self.local_members)) as pool:
            return dict(zip(self.local_members, pool.map(on_device, self.local_members)))

    def sum_over_workers(self, array):
        """Returns the sum of the processes' arrays of one shape; where all but one hold zero it is
        exact.
        """
        if self.num_workers == 1:
            return array
        flat = np.ascontiguousarray(array).reshape(-1)
        parts = self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                flat
                if context.replica_id_in_sync_group == self.local_members.start
                else np.zeros_like(flat)
            )
        )
        return self._sum(parts).numpy().reshape(array.shape)

    def gather_texts(self, text):
        """Returns the list of all processes' texts, of at most MAX_TEXT bytes; all wait for the
        last.
        """
        if self.num_workers == 1:
            return [text]
        data = text.encode()[:MAX_TEXT]
        sizes = np.zeros(self.num_workers, np.int32)
        sizes[self.worker] = len(data)
        sizes = self.sum_over_workers(sizes)
        table = np.zeros((self.num_workers, max(int(sizes.max()), 1)), np.int32)
        table[self.worker, : len(data)] = np.frombuffer(data, np.uint8)
        return [
            row[:size].astype(np.uint8).tobytes().decode(errors="replace")
            for row, size in zip(self.sum_over_workers(table), sizes)
        ]

    def wait(self):
        """Returns when all processes have called it."""
        self.gather_texts("")

    def as_chief_sees(self, is_so):
        """Returns the chief's value of a condition: files are looked up by one process, so that all
        decide alike.
        """
        return self.gather_texts("yes" if is_so else "")[0] == "yes"

    def from_chief(self, make):
        """Returns the JSON value that a function returns in the chief's process, in all processes.

        Raises:
            EkgError: in all processes, if the chief's call raised it or an OSError.
        """
        texts = []
        self.on_chief(lambda: texts.append(json.dumps(make())))
        if self.num_workers == 1:
            return json.loads(texts[0])
        text = texts[0] if texts else ""
        length = int(self.gather_texts(str(len(text)))[0])
        return json.loads(
            "".join(
                self.gather_texts(text[begin : begin + MAX_TEXT] if self.is_chief else "")[0]
                for begin in range(0, length, MAX_TEXT)
            )
        )

    def stop_signal(self):
        """Returns the number of the signal that asked any process to end, or 0: the same in all,
        which call it together.

        All processes go on as if they had got it themselves.
        """
        signals = np.zeros(self.num_workers, np.int32)
        signals[self.worker] = stopping.requested()
        number = int(self.sum_over_workers(signals).max())
        if number:
            stopping.request(number)
        return number

    def on_chief(self, function):
        """Calls a function in the chief's process alone; all wait until it is done.

        Raises:
            EkgError: in all processes, if the chief's call raised it or an OSError.
        """
        failure = ""
        if self.is_chief:
            try:
                function()
            except (EkgError, OSError) as error:
                if self.num_workers == 1:
                    raise
                failure = str(error)
        failure = self.gather_texts(failure)[0]
        if failure:
            self._refuse(failure)

    def check_same(self, values):
        """Raises EkgError in all processes if one was started otherwise than the chief.

        Args:
            values: {name: value that goes to JSON} of everything that must be the same.
        """
        text = json.dumps(_flat(values), sort_keys=True)
        started = [json.loads(text) for text in self.gather_texts(text)]
        for worker, other in enumerate(started):
            names = [name for name in started[0] if other.get(name) != started[0][name]]
            if names:
                differing = "; ".join(
                    f"{name} {other.get(name)!r} there, {started[0][name]!r} at the chief"
                    for name in names
                )
                self._refuse(
                    f"worker {worker}: was started otherwise than the chief ({differing}); start "
                    "all workers with the same code, arguments, data and versions."
                )

    def _refuse(self, reason):
        """Raises EkgError for a reason that all processes learn in one exchange, whichever of them
        is the first to leave.

        Who ends takes its connections with it, perhaps while another still reads. So all wait once
        more: who gets out of that knows that the others have read, and for the others it does not
        matter whether it breaks off.
        """
        with contextlib.suppress(*LOST_WORKER):
            self.wait()
        raise Agreed(reason)

    @contextlib.contextmanager
    def sharing_failures(self):
        """Gives the team, and lets the other processes know why this one fails: its disk, its
        memory, its data.

        They wait for this one in an exchange, which TensorFlow breaks off with the reason; see
        reason_of_loss().
        """
        try:
            yield self
        except (Agreed, stopping.Stopped, *LOST_WORKER):
            raise  # the others have it, or had it first
        except Exception as error:
            if self.num_workers > 1:
                kind = "" if isinstance(error, EkgError) else f"{type(error).__name__}: "
                self._tell_others(kind + " ".join(str(error).split())[:MAX_REASON])
            raise

    def _tell_others(self, reason):
        with contextlib.suppress(
            Exception
        ):  # they may have ended before; this process has its own reason to name
            context.context().report_error_to_cluster(
                errors.ABORTED, f"<<worker {self.worker}: {reason}>>"
            )
            time.sleep(
                1
            )  # the chief's process serves the others: they must have heard it before it ends


def _flat(values):
    """Returns a dict of dicts as one dict, so that the entry that differs is named: {"versions
    numpy": ...}.
    """
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name} {inner}": entry for inner, entry in value.items()}
        else:
            flat[name] = value
    return flat


def _replica_number():
    return tf.distribute.get_replica_context().replica_id_in_sync_group
