"""The optional packages that formats and runtimes need."""

import importlib

from ekg.errors import EkgError

MODULES = {"ai-edge-litert": "ai_edge_litert.interpreter", "onnxruntime": "onnxruntime", "onnx": "onnx",
           "tf2onnx": "tf2onnx"}


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
