"""The optional packages that formats and runtimes need."""

import contextlib
import importlib
import logging
import warnings

from ekg.errors import EkgError

MODULES = {"ai-edge-litert": "ai_edge_litert.interpreter", "onnxruntime": "onnxruntime", "onnx": "onnx",
           "tf2onnx": "tf2onnx"}

TALKATIVE = ("absl", "tensorflow", "tf2onnx")  # loggers of converters


@contextlib.contextmanager
def quiet():
    """Keeps converters from telling each of their steps; errors are still told."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def require(package):
    """Returns the module of an optional package.

    Raises:
        EkgError: it is not installed.
    """
    try:
        return importlib.import_module(MODULES[package])
    except ImportError:
        raise EkgError(f"{package} is not installed; install what exports need with: pip install 'ekg-pruning[export]', or "
                       f"pip install {package}") from None
