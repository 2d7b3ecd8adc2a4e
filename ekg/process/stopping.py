"""How a long job is asked to end: a signal handler notes the request, and loops look for it where
nothing is lost.

A process has one set of signal handlers, hence one request.
"""

import contextlib
import logging
import signal
import threading

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """A signal asked the job to end.

    Attributes:
        signal: its number.
    """

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended a job that the same call resumes.

    Attributes:
        signal: its number.
    """

    signal = signal.SIGINT


class Terminated(SystemExit):
    """Another signal ended a job that the same call resumes; the exit code is as shells count it.

    Attributes:
        signal: its number.
    """

    def __init__(self, number, text):
        super().__init__(SIGNAL_EXIT + number)
        self.signal, self._text = number, text

    def __str__(self):
        return self._text


SIGNAL_EXIT = 128  # plus the number of the signal


def ended(number, after):
    """Returns the exception by which a library call ends where a signal asked it to.

    Args:
        number: of the signal.
        after: what was done by then, in words.
    """
    text = f"stopped by {signal.Signals(number).name} after {after}; the same call resumes there."
    return Interrupted(text) if number == signal.SIGINT else Terminated(number, text)


class _Request:
    """The signal that asked this process to end, or None."""

    def __init__(self):
        self.signal = None


_request = _Request()


def handle_signal(number, _frame):
    """Notes a signal that asks this process to end; Ctrl-C for the second time ends it at once. A
    signal handler.
    """
    if _request.signal is not None and number == signal.SIGINT:
        raise KeyboardInterrupt
    _request.signal = number
    logger.info("%s: stopping; Ctrl-C again stops at once.", signal.Signals(number).name)


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextlib.contextmanager
def handled():
    """Handles the signals that ask a job to end while it lasts, if this is the main thread, which
    alone may.
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
    """Behaves from now on as if this process had got that signal; None withdraws the request."""
    _request.signal = number


def requested():
    """Returns the number of the signal that asked this process to end, or 0."""
    return _request.signal or 0


def check():
    """Raises Stopped if a signal asked this process to end."""
    if _request.signal is not None:
        raise Stopped(_request.signal)
