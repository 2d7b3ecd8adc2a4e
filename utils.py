"""Shared by all scripts: start-up, exit codes, signals, argument parser, and names for file I/O.

Import this module before TensorFlow: it sets TensorFlow's environment.
"""

import argparse
import contextlib
import functools
import importlib
import logging
import os
import re
import shlex
import signal
import sys
from pathlib import Path

# TensorFlow reads this when it is first imported. Without it, convolution gradients take several
# times as long on CPUs without VNNI instructions.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# INFO messages of TensorFlow's C++ code during the import, before it reads its log level
FIRST_LINES = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called|I\d{4} [\d:.]+ "
)


def _announce():
    """Echoes the command line of a script, since loading TensorFlow takes seconds."""
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
    is_ours = script.resolve().parent == Path(__file__).resolve().parent
    if not is_ours or {"-h", "--help", "--quiet"} & set(sys.argv):
        return
    command = shlex.join([script.name, *sys.argv[1:]])
    with contextlib.suppress(OSError):  # the log may be on a full disk
        print(f"{command}: loading TensorFlow", file=sys.stderr, flush=True)


def _open_closed_streams():
    """Opens closed standard streams to the null device, or the next file would take their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))


@contextlib.contextmanager
def _without_first_lines():
    """Context that filters FIRST_LINES out of the standard error stream.

    A child process filters, so that the last messages of an import that aborts are not lost.
    """
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _filter_lines(reading, writing)
    original = os.dup(2)
    os.dup2(writing, 2)
    os.close(reading)
    os.close(writing)
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
        os.waitpid(child, 0)


def _filter_lines(reading, writing):
    """Copies lines from a pipe to the standard error stream, without FIRST_LINES, and exits."""
    try:
        os.close(writing)
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                if not FIRST_LINES.match(line):
                    os.write(2, line)
    finally:
        os._exit(0)


_open_closed_streams()
if "tensorflow" not in sys.modules:
    _announce()
    shows_all = os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
    with contextlib.nullcontext() if shows_all else _without_first_lines():
        importlib.import_module("tensorflow")

import tensorflow as tf  # noqa: E402
from tqdm.contrib.logging import logging_redirect_tqdm  # noqa: E402

from ekg.devices.team import LOST_WORKER, reason_of_loss  # noqa: E402
from ekg.errors import EkgError  # noqa: E402
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
from ekg.process import progress, stopping  # noqa: E402
from ekg.process.stopping import Stopped  # noqa: E402

__all__ = [
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

EXIT_NOT_FINITE = 1
EXIT_USER_ERROR = 2
EXIT_LOST_WORKER = 3
EXIT_STOPPED = stopping.SIGNAL_EXIT  # plus the number of the signal, as in shells
HOW_TO_RESUME = "the same command{} resumes the run where it stopped."


# ---------------------------------------------------------------- running a script


def run_script(main, parse_args):
    """Runs main(parse_args()) as a script; a failure ends it with one line and an exit code.

    Exit codes: 0, success; 1, a number became non-finite; 2, a user's mistake; 3, another worker
    was lost; 130, 143, 138: Ctrl-C, SIGTERM, SIGUSR1, after a checkpoint.
    """
    args = parse_args()
    # A normal shutdown would wait for the remaining workers of a cluster.
    end = functools.partial(_exit, at_once=getattr(args, "strategy", None) == "multi_worker")
    change = " without --overwrite" if getattr(args, "overwrite", False) else ""
    how_to_resume = HOW_TO_RESUME.format(change)
    is_quiet = getattr(args, "quiet", False)
    _set_up_process(is_quiet, getattr(args, "verbose", False))
    try:
        with progress.shown(not is_quiet), logging_redirect_tqdm():
            main(args)
    except EkgError as error:
        end(EXIT_USER_ERROR, f"error: {with_flags(str(error), vars(args))}")
    except OSError as error:
        if error.filename is not None:
            end(EXIT_USER_ERROR, f"error: {error}")
        # Without a file name it is most likely the standard output. Exits at once, as Python would
        # try to flush it again.
        _exit(
            EXIT_USER_ERROR,
            f"error: the output cannot be written ({error.strerror or error}).",
            at_once=True,
        )
    except (tf.errors.ResourceExhaustedError, MemoryError):
        end(
            EXIT_USER_ERROR,
            "error: out of memory; lower the batch size, or raise --accum if the script has it.",
        )
    except LOST_WORKER as error:
        if stopping.requested():  # the other workers stopped for the same reason
            _exit_stopped(stopping.requested(), how_to_resume)
        _exit(
            EXIT_LOST_WORKER,
            f"error: {with_flags(reason_of_loss(error), vars(args)).rstrip('.')}; start all "
            "workers again with the same command: the run resumes.",
            at_once=True,
        )
    except FloatingPointError as error:
        end(EXIT_NOT_FINITE, f"error: {error}")
    except (Stopped, stopping.Interrupted, stopping.Terminated) as stop:
        _exit_stopped(stop.signal, how_to_resume)
    except KeyboardInterrupt:
        _exit(EXIT_STOPPED + signal.SIGINT, f"interrupted; {how_to_resume}", at_once=True)


class Parser(argparse.ArgumentParser):
    """The argument parser of all scripts, with --quiet and --verbose.

    --help shows defaults, and the error for a mistake is one line without the usage.
    """

    def __init__(self, *args, **options):
        options = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter, **options}
        super().__init__(*args, **options)
        verbosity = self.add_mutually_exclusive_group()
        verbosity.add_argument(
            "--quiet", action="store_true", help="print only the result, warnings and errors"
        )
        verbosity.add_argument(
            "--verbose", action="store_true", help="also print what each search step tried"
        )

    def parse_args(self, args=None, namespace=None):
        """Parses arguments; an argument that is not valid UTF-8 (a file name) is an error."""
        for argument in sys.argv[1:] if args is None else args:
            try:
                str(argument).encode()
            except UnicodeEncodeError:
                shown = str(argument).encode(errors="backslashreplace").decode()
                self.error(
                    f"the argument {shown} is not valid UTF-8; rename the file, or link to it"
                )
        return super().parse_args(args, namespace)

    def names_given(self, argv=None):
        """Returns the names of the arguments that a command line gives explicitly, a set."""
        not_given = object()
        probe = argparse.Namespace(**{action.dest: not_given for action in self._actions})
        values = vars(self.parse_args(argv, probe))
        return {name for name, value in values.items() if value is not not_given}

    def error(self, message):
        """Ends the program with a one-line error message."""
        self.exit(EXIT_USER_ERROR, f"error: {message.rstrip('.')}. --help lists all arguments.\n")


def with_flags(text, names):
    """Replaces `name` by --name in an error message, for the names of flags."""

    def flag_of(match):
        return f"--{match[1]}" if match[1] in names else match[0]

    return re.sub(r"`(\w+)`", flag_of, text)


def _set_up_process(is_quiet, is_verbose):
    """Sets up logging, signal handlers, and escapes for characters that a terminal cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    tf.get_logger().setLevel("ERROR")
    logging.getLogger("absl").setLevel(logging.WARNING)  # hides the timings of checkpoints
    logging.basicConfig(
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        level=logging.WARNING if is_quiet else logging.INFO,
    )
    logging.getLogger("ekg").setLevel(logging.DEBUG if is_verbose else logging.NOTSET)
    for number in stopping.STOP_SIGNALS:
        signal.signal(number, stopping.handle_signal)


def _exit_stopped(number, how_to_resume):
    text = f"stopped by {signal.Signals(number).name}; {how_to_resume}"
    _exit(EXIT_STOPPED + number, text, at_once=True)


def _exit(code, text, at_once=False):
    """Prints a line and ends the process, without any clean-up if `at_once`."""
    with contextlib.suppress(OSError):  # the log may be on the full disk
        print(text, file=sys.stderr, flush=True)
        sys.stdout.flush()
    if at_once:
        os._exit(code)
    sys.exit(code)
