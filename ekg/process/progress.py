"""What a person at the terminal watches: progress bars and what is told beside them."""

import contextlib
import logging
import math
import sys

import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm


class _Shown:
    """Whether this process shows progress bars."""

    is_on = True


LINE_SECONDS = 60  # between two lines of a bar in a file
NARROW = 110  # columns of a terminal, below which the figures need the bar's own place
WITHOUT_BAR = "{desc}: {n_fmt}/{total_fmt} {elapsed}<{remaining}, {rate_fmt}{postfix}"


class _Lines:
    """An error stream that is no terminal: every state of a bar is a line of its own."""

    def write(self, text):
        text = text.strip("\r\n ")
        if text:
            with contextlib.suppress(OSError):  # a full disk that holds the log, too
                sys.stderr.write(f"{text}\n")

    def flush(self):
        with contextlib.suppress(OSError):
            sys.stderr.flush()


class _Bar(tqdm.tqdm):
    """A bar that fits its terminal: of what is told beside it, as many figures as can stand there
    whole.
    """

    @property
    def format_dict(self):
        values = super().format_dict
        if values["ncols"] and values["ncols"] < NARROW:
            values["bar_format"] = WITHOUT_BAR
        while values["postfix"] and len(self.format_meter(**values | {"ncols": None})) > (
            values["ncols"] or math.inf
        ):
            values["postfix"] = values["postfix"].rpartition(", ")[0]
        return values


class _LineBar(_Bar):
    """A bar in a file: what it says besides its number waits for the next line."""

    def set_postfix(self, ordered_dict=None, refresh=True, **kwargs):
        super().set_postfix(ordered_dict, refresh=False, **kwargs)


def progress_bar(name, total, unit):
    """Returns a tqdm progress bar on the standard error stream.

    Where that is no terminal but a file, it is a line a minute, and none of what is over within a
    minute.
    """
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    where = (
        {"mininterval": 0.5, "dynamic_ncols": True}
        if is_terminal
        else {
            "mininterval": LINE_SECONDS,
            "maxinterval": LINE_SECONDS,
            "delay": LINE_SECONDS,
            "ncols": 120,
            "file": _Lines(),
        }
    )
    make = _Bar if is_terminal else _LineBar
    return make(total=total, desc=name, unit=unit, smoothing=0.1, disable=not _Shown.is_on, **where)


class _Once(logging.Filter):
    """Lets a warning pass once: copies of a network are made at many places, which all know the
    same of it.
    """

    def __init__(self):
        super().__init__()
        self._seen = set()

    def filter(self, record):
        if record.levelno < logging.WARNING:
            return True
        message = record.getMessage()
        is_new = message not in self._seen
        self._seen.add(message)
        return is_new


@contextlib.contextmanager
def _each_warning_once():
    """Lets the library log each warning once while it lasts."""
    once = _Once()
    loggers = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if name.startswith("ekg.") and isinstance(logger, logging.Logger)
    ]
    for logger in loggers:
        logger.addFilter(once)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(once)


@contextlib.contextmanager
def shown(is_on):
    """Shows progress bars and what the library logs while it lasts, or neither; each warning once.

    Where the program has set up logging itself, so that it shows such messages, they go there
    alone.
    """
    log, handler = logging.getLogger("ekg"), logging.StreamHandler()
    level, propagates = log.level, log.propagate
    speaks = is_on and log.getEffectiveLevel() > logging.INFO
    before, _Shown.is_on = _Shown.is_on, is_on
    if speaks:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    try:
        redirected = (
            logging_redirect_tqdm([log]) if speaks else contextlib.nullcontext()
        )  # above a bar, not behind it
        with redirected, _each_warning_once():
            yield
    finally:
        _Shown.is_on = before
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates
