"""Shared by all scripts: start-up, and names of the library's runner, parser and file I/O.

Import this module before TensorFlow: it sets TensorFlow's environment.
"""

import sys
from pathlib import Path

import ekg_command

FOLDER = Path(__file__).resolve().parent


def _script():
    """Returns the name of the script that runs, if it is one of this folder; otherwise None."""
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
    return script.name if script.resolve().parent == FOLDER else None


ekg_command.load(
    "tensorflow", _script(), sources=[*FOLDER.glob("*.py"), *FOLDER.glob("analyses/*.py")]
)

from ekg.command_line import Parser, with_flags  # noqa: E402
from ekg.commands.runner import run_script  # noqa: E402
from ekg.io.keras_files import load_keras  # noqa: E402
from ekg.io.parameters import (  # noqa: E402
    assign_params_,
    find_mismatches,
    load_params,
    mismatch,
    model_params,
    save_params,
)
from ekg.io.pickles import load_pickle, parse_pickle, save_pickle  # noqa: E402

__all__ = [
    "Parser",
    "assign_params_",
    "find_mismatches",
    "load_keras",
    "load_params",
    "load_pickle",
    "mismatch",
    "model_params",
    "parse_pickle",
    "run_script",
    "save_params",
    "save_pickle",
    "with_flags",
]
