"""Runs a command of the console program `ekg`."""

import functools

from ekg.commands import evaluate, export, prune
from ekg.commands.runner import run_script

# {command: (its module, arguments that it stands for)}
MODULES = {
    "prune": (prune, ()),
    "inspect": (prune, ("--inspect",)),
    "export": (export, ()),
    "evaluate": (evaluate, ()),
}


def run(command, arguments):
    """Runs a command with its arguments; see run_script() for exit codes."""
    module, _ = MODULES[command]
    run_script(module.main, functools.partial(parse_args, command, arguments))


def parse_args(command, arguments):
    """Returns the parsed arguments of a command, whose first one may be the model without --model.

    Args:
        command: one of MODULES.
        arguments: list of text.
    """
    module, implied = MODULES[command]
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--model", *arguments]
    return module.parse_args([*arguments, *implied], prog=f"ekg {command}")
