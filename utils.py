"""What the scripts share around the job itself: their run with its exit codes and signals, and the
reading of files.

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

# TensorFlow reads this when it is first imported. Without it, CPUs that lack VNNI get kernels whose
# convolution gradients take several times as long.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# What TensorFlow's C++ code writes while it is imported, before it reads its own log level:
# messages of the level INFO.
FIRST_LINES = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called|I\d{4} [\d:.]+ "
)


def _say_at_once():
    """Says what a script of this project was asked for, as TensorFlow takes seconds before it can
    say more.
    """
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or "")
    if script.resolve().parent == Path(__file__).resolve().parent and not {
        "-h",
        "--help",
        "--quiet",
    } & set(sys.argv):
        with contextlib.suppress(OSError):  # a full disk that holds the log
            print(
                f"{shlex.join([script.name, *sys.argv[1:]])}: loading TensorFlow",
                file=sys.stderr,
                flush=True,
            )


def _open_closed_streams():
    """Opens standard streams that are closed, to nowhere: the next file that is opened would take
    their place.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))


@contextlib.contextmanager
def _without_first_lines():
    """Leaves FIRST_LINES out of the standard error stream while it lasts; all else that is written
    is passed on.

    A process of its own passes it on, so that the last words of an import that aborts are seen.
    """
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _pass_on(reading, writing)
    kept = os.dup(2)
    os.dup2(writing, 2)
    for descriptor in (reading, writing):
        os.close(descriptor)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.waitpid(child, 0)


def _pass_on(reading, writing):
    """Writes the lines that come through a pipe, but for FIRST_LINES, to the standard error stream,
    and ends the process.
    """
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
    _say_at_once()
    with (
        contextlib.nullcontext()
        if os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
        else _without_first_lines()
    ):
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
EXIT_STOPPED = stopping.SIGNAL_EXIT  # plus the number of the signal, as shells count
HOW_TO_GO_ON = "the same command{} goes on where the run stopped."


# ---------------------------------------------------------------- running a script


def run_script(main, parse_args):
    """Runs main(parse_args()) as a script and ends it with one line and an exit code where it
    fails.

    0: done; 1: a number became non-finite; 2: a user's mistake; 3: another worker was lost; 130,
    143, 138: Ctrl-C, SIGTERM, SIGUSR1, after a checkpoint.
    """
    args = parse_args()
    # What is left of a cluster would wait for a process that is shutting down.
    end = functools.partial(_exit, at_once=getattr(args, "strategy", None) == "multi_worker")
    how_to_go_on = HOW_TO_GO_ON.format(
        " without --overwrite" if getattr(args, "overwrite", False) else ""
    )
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
        # What is written without a name is above all the output; at once, as Python would try it
        # again.
        _exit(
            EXIT_USER_ERROR,
            f"error: the output cannot be written ({error.strerror or error}).",
            at_once=True,
        )
    except (tf.errors.ResourceExhaustedError, MemoryError):
        end(
            EXIT_USER_ERROR,
            "error: out of memory; lower the size of the batches, or raise --accum where there "
            "is one.",
        )
    except LOST_WORKER as error:
        if stopping.requested():  # the others were told to stop, too
            _exit_stopped(stopping.requested(), how_to_go_on)
        _exit(
            EXIT_LOST_WORKER,
            f"error: {with_flags(reason_of_loss(error), vars(args)).rstrip('.')}; start all "
            "workers again with the same command: the run resumes.",
            at_once=True,
        )
    except FloatingPointError as error:
        end(EXIT_NOT_FINITE, f"error: {error}")
    except (Stopped, stopping.Interrupted, stopping.Terminated) as stop:
        _exit_stopped(stop.signal, how_to_go_on)
    except KeyboardInterrupt:
        _exit(EXIT_STOPPED + signal.SIGINT, f"interrupted; {how_to_go_on}", at_once=True)


class Parser(argparse.ArgumentParser):
    """An argument parser of a script: --help shows defaults, and a mistake is one line without the
    usage before it.

    Every script has --quiet and --verbose.
    """

    def __init__(self, *args, **options):
        super().__init__(
            *args, **{"formatter_class": argparse.ArgumentDefaultsHelpFormatter, **options}
        )
        told = self.add_mutually_exclusive_group()
        told.add_argument(
            "--quiet", action="store_true", help="tell the result, warnings and errors alone"
        )
        told.add_argument(
            "--verbose", action="store_true", help="tell also what each search step tried"
        )

    def parse_args(self, args=None, namespace=None):
        """Returns the arguments; those that are no text, as names of files in another encoding, are
        a mistake.
        """
        for argument in sys.argv[1:] if args is None else args:
            try:
                str(argument).encode()
            except UnicodeEncodeError:
                shown = str(argument).encode(errors="backslashreplace").decode()
                self.error(
                    f"the argument {shown} is no UTF-8 text; rename what it names, or link to it"
                )
        return super().parse_args(args, namespace)

    def names_given(self, argv=None):
        """Returns the set of the names of the arguments that a command line gives, at their
        defaults or not.
        """
        not_given = object()
        probe = argparse.Namespace(**{action.dest: not_given for action in self._actions})
        return {
            name
            for name, value in vars(self.parse_args(argv, probe)).items()
            if value is not not_given
        }

    def error(self, message):
        self.exit(EXIT_USER_ERROR, f"error: {message.rstrip('.')}. --help lists all arguments.\n")


def with_flags(text, names):
    """Returns an error's text with a flag for each argument that it names between backticks, if one
    goes by that name.
    """
    return re.sub(
        r"`(\w+)`", lambda match: f"--{match[1]}" if match[1] in names else match[0], text
    )


def _set_up_process(is_quiet, is_verbose):
    """Sets loggers, signal handlers and what happens to characters that a terminal cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    tf.get_logger().setLevel("ERROR")
    logging.getLogger("absl").setLevel(
        logging.WARNING
    )  # TensorFlow tells there how long a checkpoint's sharding took
    logging.basicConfig(
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        level=logging.WARNING if is_quiet else logging.INFO,
    )
    logging.getLogger("ekg").setLevel(logging.DEBUG if is_verbose else logging.NOTSET)
    for number in stopping.STOP_SIGNALS:
        signal.signal(number, stopping.handle_signal)


def _exit_stopped(number, how_to_go_on):
    _exit(
        EXIT_STOPPED + number,
        f"stopped by {signal.Signals(number).name}; {how_to_go_on}",
        at_once=True,
    )


def _exit(code, text, at_once=False):
    with contextlib.suppress(OSError):  # the disk that is full may hold the log, too
        print(text, file=sys.stderr, flush=True)
        sys.stdout.flush()
    if at_once:
        os._exit(code)
    sys.exit(code)
