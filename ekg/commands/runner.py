"""Runs a command: exit codes, signals, and the log."""

import contextlib
import functools
import logging
import os
import signal
import sys

import tensorflow as tf
from tqdm.contrib.logging import logging_redirect_tqdm

from ekg.command_line import EXIT_USER_ERROR, with_flags
from ekg.devices.team import LOST_WORKER, reason_of_loss
from ekg.errors import EkgError, escaped
from ekg.process import progress, stopping
from ekg.process.stopping import Stopped

EXIT_NOT_FINITE = 1
EXIT_LOST_WORKER = 3
EXIT_STOPPED = stopping.SIGNAL_EXIT  # plus the number of the signal, as in shells
HOW_TO_RESUME = "the same command{} resumes the run where it stopped."


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
        end(EXIT_USER_ERROR, f"error: {_described(error, vars(args))}")
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


def _described(error, arguments):
    """Returns the text of an error with flags, and with paths on one line even if they have more.

    Args:
        error: EkgError.
        arguments: {name: value} of the command line.
    """
    text = with_flags(str(error), arguments)
    for value in filter(None, map(str, arguments.values())):
        if len(value.splitlines()) > 1:
            text = text.replace(value, escaped(value))
    return text


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
