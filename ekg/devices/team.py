"""Teams: the replicas of a job, on one machine or several, which share work."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, NoReturn, TypeVar

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.framework import errors

from ekg.errors import EkgError
from ekg.process import stopping

MAX_TEXT = 2**20  # bytes of a text that workers exchange
MAX_REASON = 400  # characters of the reason why a worker failed
# Errors in a process if another process has ended or cannot be reached
LOST_WORKER = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)

# The reason that a worker sends to the others, within TensorFlow's error message
_REASON = re.compile(r"<<(worker \d+: .*?)>>", re.DOTALL)
HEARD_SECONDS = 1  # in which the other processes receive the reason of a failure


T = TypeVar("T")


class Agreed(EkgError):
    """An error that all processes of a team raise together."""


def reason_of_loss(error):
    """Returns why another worker ended: the reason that it sent, or else TensorFlow's message.

    Args:
        error: an exception of one of the types in LOST_WORKER.
    """
    match = _REASON.search(error.message)
    if match:
        return " ".join(match.group(1).split())
    return f"another worker ended or cannot be reached ({' '.join(error.message.split())[:160]})"


class Team:
    """All replicas of a job, on this and other machines, as members that share work.

    Every process runs the same program in the same order. The results of all members are combined
    such that all processes hold the same bits, and so take the same decisions.

    Attributes:
        strategy: the tf.distribute.Strategy; TensorFlow's default strategy for a single member.
        size: number of members in all processes.
        local_members: range of the numbers of this process's members.
        num_workers: number of processes.
        worker: number of this process; 0 is the chief, the only one that writes files.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None = None) -> None:
        """
        Args:
            strategy: the tf.distribute.Strategy; None for a single member on the default device.

        Raises:
            EkgError: it is not a strategy.
        """
        if strategy is not None and not isinstance(strategy, tf.distribute.Strategy):
            raise EkgError(f"`strategy` must be a tf.distribute.Strategy; received {strategy!r}.")
        self.strategy: Any = strategy or tf.distribute.get_strategy()
        self._devices = strategy.extended.worker_devices if strategy else (None,)
        self.size = strategy.num_replicas_in_sync if strategy else 1
        self.num_workers = self.size // len(self._devices)
        first = 0
        if self.num_workers > 1:
            first = self._replica_number()
        self.local_members = range(first, first + len(self._devices))
        self.worker = first // len(self._devices)
        self._sum = tf.function(
            lambda value: self.strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None),
            reduce_retracing=True,
        )

    def _replica_number(self):
        """Returns the number of this process's first replica among all replicas."""
        numbers = self.strategy.run(
            lambda: tf.distribute.get_replica_context().replica_id_in_sync_group
        )
        return int(self.strategy.experimental_local_results(numbers)[0])

    @property
    def is_chief(self) -> bool:
        return self.worker == 0

    @property
    def shard(self) -> tuple[int, int]:
        """(number of this process, number of processes): the part of each batch that it reads."""
        return self.worker, self.num_workers

    @property
    def device(self) -> str | None:
        """The first device of this process; None for TensorFlow's default device."""
        return self._devices[0]

    def map_members(self, function: Callable[[int], T]) -> dict[int, T]:
        """Returns {member: function(member)} for the members of this process.

        Each call runs on the member's device, in a thread of its own.
        """

        def on_device(member):
            with tf.device(self._devices[member - self.local_members.start]):
                return function(member)

        if len(self.local_members) == 1:
            return {member: on_device(member) for member in self.local_members}
        with futures.ThreadPoolExecutor(len(self.local_members)) as pool:
            return dict(zip(self.local_members, pool.map(on_device, self.local_members)))

    def sum_over_workers(self, array: np.ndarray) -> np.ndarray:
        """Returns the sum of the arrays of all processes, which have the same shape.

        The sum is exact where all but one process hold zero.
        """
        if self.num_workers == 1:
            return array
        flat = np.ascontiguousarray(array).reshape(-1)

        def value_of(context):
            is_first = context.replica_id_in_sync_group == self.local_members.start
            return tf.constant(flat if is_first else np.zeros_like(flat))

        parts = self.strategy.experimental_distribute_values_from_function(value_of)
        return self._sum(parts).numpy().reshape(array.shape)

    def gather_texts(self, text: str) -> list[str]:
        """Returns the list of all processes' texts, cut to MAX_TEXT bytes; all processes wait."""
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

    def wait(self) -> None:
        """Blocks until all processes have called it."""
        self.gather_texts("")

    def as_chief_sees(self, is_so: bool) -> bool:
        """Returns the chief's value of a condition, in all processes.

        One process looks at the files, so that all processes decide alike.
        """
        return self.gather_texts("yes" if is_so else "")[0] == "yes"

    def from_chief(self, make: Callable[[], Any]) -> Any:
        """Calls a function in the chief's process, and returns its JSON value in all processes.

        Raises:
            EkgError: in all processes, if the chief's call raised EkgError or OSError.
        """
        texts = []
        self.on_chief(lambda: texts.append(json.dumps(make())))
        if self.num_workers == 1:
            return json.loads(texts[0])
        text = texts[0] if texts else ""
        length = int(self.gather_texts(str(len(text)))[0])
        pieces = []
        for begin in range(0, length, MAX_TEXT):
            piece = text[begin : begin + MAX_TEXT] if self.is_chief else ""
            pieces.append(self.gather_texts(piece)[0])
        return json.loads("".join(pieces))

    def stop_signal(self) -> int:
        """Returns the number of a signal that any process received as a request to stop, or 0.

        All processes call it together, get the same number, and continue as if they had received
        the signal themselves.
        """
        signals = np.zeros(self.num_workers, np.int32)
        signals[self.worker] = stopping.requested()
        number = int(self.sum_over_workers(signals).max())
        if number:
            stopping.request(number)
        return number

    def on_chief(self, function: Callable[[], Any]) -> None:
        """Calls a function in the chief's process alone; all processes wait until it returns.

        Raises:
            EkgError: in all processes, if the chief's call raised EkgError or OSError.
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

    def check_same(self, values: dict[str, Any]) -> None:
        """Raises EkgError in all processes if one was started differently from the chief.

        Args:
            values: {name: JSON value} of everything that must be the same.
        """
        text = json.dumps(_flat(values), sort_keys=True)
        by_worker = [json.loads(worker_text) for worker_text in self.gather_texts(text)]
        expected = by_worker[0]
        for worker, actual in enumerate(by_worker):
            names = [name for name in expected if actual.get(name) != expected[name]]
            if names:
                differing = "; ".join(
                    f"{name} {actual.get(name)!r} there, {expected[name]!r} at the chief"
                    for name in names
                )
                self._refuse(
                    f"worker {worker}: was started differently from the chief ({differing}); "
                    "start all workers with the same code, arguments, data and versions."
                )

    def _refuse(self, reason: str) -> NoReturn:
        """Raises Agreed for a reason that all processes have just exchanged."""
        self._part()
        raise Agreed(reason)

    def _part(self) -> None:
        """Ends the exchanges of this process, which may end next.

        A process that ends closes its connections, perhaps while another still reads the result of
        the last exchange. So all processes wait once more: whoever returns from that knows that all
        have read it, and for the others a lost connection no longer matters.
        """
        with contextlib.suppress(*LOST_WORKER):
            self.wait()

    @contextlib.contextmanager
    def sharing_failures(self) -> Iterator["Team"]:
        """Context that yields the team, and sends the reason to other processes if this one fails.

        They wait for this process in an exchange, which TensorFlow aborts with the reason; see
        reason_of_loss(). Without a failure all processes leave the context together.
        """
        try:
            yield self
        except (Agreed, stopping.Stopped, *LOST_WORKER):
            raise  # the other processes know the reason already
        except Exception as error:
            if self.num_workers > 1:
                kind = "" if isinstance(error, EkgError) else f"{type(error).__name__}: "
                self._report_to_others(kind + " ".join(str(error).split())[:MAX_REASON])
            raise
        else:
            self._part()

    def _report_to_others(self, reason: str) -> None:
        # If the others have ended already, this process still raises its own error.
        with contextlib.suppress(Exception):
            context.context().report_error_to_cluster(
                errors.ABORTED, f"<<worker {self.worker}: {reason}>>"
            )
            # The chief's process serves the others, so it must not end before they have heard.
            time.sleep(HEARD_SECONDS)


def _flat(values):
    """Flattens a dict of dicts, so that errors name single entries: {"versions numpy": ...}."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name} {inner}": entry for inner, entry in value.items()}
        else:
            flat[name] = value
    return flat
