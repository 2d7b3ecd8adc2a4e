"""The optional packages that formats and runtimes need."""

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
import tempfile
import warnings

from ekg.errors import EkgError

MODULES = {
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "onnxruntime": "onnxruntime",
    "onnx": "onnx",
    "tf2onnx": "tf2onnx",
}

TALKATIVE = ("absl", "tensorflow", "tf2onnx")  # loggers of converters
MOST_LINES = 20  # of their output that are shown if they fail


@contextlib.contextmanager
def quiet():
    """Keeps converters and runtimes from printing each of their steps.

    Their compiled parts write to the process's own outputs, which a notebook also shows. This
    output is held back, and goes to standard error only if they fail.
    """
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), _held_back():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


@contextlib.contextmanager
def _held_back():
    """Sends file descriptors 1 and 2 to a file, whose end is printed if the body fails."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as held:
        try:
            with contextlib.ExitStack() as stack:
                for number, stream in ((1, sys.stdout), (2, sys.stderr)):
                    stack.enter_context(_redirected(number, stream, held.fileno()))
                yield
        except Exception:
            held.seek(0)
            lines = held.read().splitlines()[-MOST_LINES:]
            if lines:
                print(*lines, sep="\n", file=sys.stderr)
            raise


@contextlib.contextmanager
def _redirected(number, stream, target):
    """Redirects a file descriptor temporarily; a closed one stays closed."""
    if stream is not None and not stream.closed:
        stream.flush()
    try:
        saved = os.dup(number)
    except OSError:
        yield
        return
    try:
        os.dup2(target, number)
        yield
    finally:
        os.dup2(saved, number)
        os.close(saved)


def is_installed(package):
    """Returns whether an optional package can be imported; it is not imported."""
    return importlib.util.find_spec(MODULES[package].partition(".")[0]) is not None


def require(package):
    """Returns the module of an optional package.

    Raises:
        EkgError: it is not installed.
    """
    try:
        return importlib.import_module(MODULES[package])
    except ImportError:
        raise EkgError(
            f"{package} is not installed; install the packages for exports with: pip install "
            f"'ekg-pruning[export]', or pip install {package}"
        ) from None
