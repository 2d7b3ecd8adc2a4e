"""Stops long jobs on a signal: a handler records the request, and loops check it at safe points.

A process has one set of signal handlers, and so one request.
"""

import contextlib
import logging
import signal
import threading

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """A signal requested that the job stops.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Interrupted(KeyboardInterrupt):
    """Ctrl-C stopped a job that the same call resumes.

    Attributes:
        signal: number of the signal.
    """

    signal = signal.SIGINT


class Terminated(SystemExit):
    """Another signal stopped a job that the same call resumes; exit codes are as in shells.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, number, text):
        super().__init__(SIGNAL_EXIT + number)
        self.signal = number
        self._text = text

    def __str__(self):
        return self._text


SIGNAL_EXIT = 128  # exit code minus the number of the signal


def ended(number, after):
    """Returns the exception to raise from a library call that a signal stopped.

    Args:
        number: number of the signal.
        after: description of the work that is done, for the message.
    """
    text = f"stopped by {signal.Signals(number).name} after {after}; the same call resumes there."
    return Interrupted(text) if number == signal.SIGINT else Terminated(number, text)


class _Request:
    """Holds the signal that requested this process to stop, or None."""

    def __init__(self):
        self.signal = None


_request = _Request()


def handle_signal(number, _frame):
    """Signal handler that records a request to stop; a second Ctrl-C stops at once."""
    if _request.signal is not None and number == signal.SIGINT:
        raise KeyboardInterrupt
    _request.signal = number
    logger.info("%s: stopping; Ctrl-C again stops at once.", signal.Signals(number).name)


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextlib.contextmanager
def handled():
    """Context that handles signals which request a stop.

    Python lets only the main thread set signal handlers; in other threads the context does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle_signal) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _request.signal = None


def request(number):
    """Records a request to stop as if this signal had arrived; None withdraws the request."""
    _request.signal = number


def requested():
    """Returns the number of the signal that requested a stop, or 0."""
    return _request.signal or 0


def check():
    """Raises Stopped if a signal has requested a stop."""
    if _request.signal is not None:
        raise Stopped(_request.signal)
