"""Progress bars and log messages on the terminal."""

import contextlib
import logging
import math
import sys
import warnings

import tqdm

with warnings.catch_warnings():
    # In a notebook tqdm asks for widgets at this import; the bars here do not use them.
    warnings.simplefilter("ignore", tqdm.TqdmWarning)
    from tqdm.contrib.logging import logging_redirect_tqdm

LINE_SECONDS = 60  # seconds between two lines of a progress bar in a file
NARROW = 110  # columns of a terminal below which a bar leaves no space for figures
WITHOUT_BAR = "{desc}: {n_fmt}/{total_fmt} {elapsed}<{remaining}, {rate_fmt}{postfix}"


class _Shown:
    """Whether this process shows progress bars."""

    is_on = True


class _Lines:
    """Writes every state of a bar as a line to an error stream that is not a terminal."""

    def write(self, text):
        text = text.strip("\r\n ")
        if text:
            with contextlib.suppress(OSError):  # the log may be on a full disk
                sys.stderr.write(f"{text}\n")

    def flush(self):
        with contextlib.suppress(OSError):
            sys.stderr.flush()


class _Bar(tqdm.tqdm):
    """A progress bar that drops its last figures until the line fits the terminal."""

    @property
    def format_dict(self):
        values = super().format_dict
        if values["ncols"] and values["ncols"] < NARROW:
            values["bar_format"] = WITHOUT_BAR
        columns = values["ncols"] or math.inf
        while values["postfix"] and len(self.format_meter(**values | {"ncols": None})) > columns:
            values["postfix"] = values["postfix"].rpartition(", ")[0]
        return values


class _LineBar(_Bar):
    """A progress bar in a file, where new figures wait for the next line."""

    def set_postfix(self, ordered_dict=None, refresh=True, **kwargs):
        super().set_postfix(ordered_dict, refresh=False, **kwargs)


def progress_bar(name, total, unit):
    """Returns a tqdm progress bar on the standard error stream.

    If the stream is a file, the bar writes one line per minute, and none for shorter work.

    Args:
        name: description in front of the bar.
        total: number of units, or None if it is unknown.
        unit: name of a unit.
    """
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if is_terminal:
        bar_class = _Bar
        options = {"mininterval": 0.5, "dynamic_ncols": True}
    else:
        bar_class = _LineBar
        options = {
            "mininterval": LINE_SECONDS,
            "maxinterval": LINE_SECONDS,
            "delay": LINE_SECONDS,
            "ncols": 120,
            "file": _Lines(),
        }
    is_off = not _Shown.is_on
    return bar_class(total=total, desc=name, unit=unit, smoothing=0.1, disable=is_off, **options)


class _Once(logging.Filter):
    """Lets each warning pass once: a network is copied many times, with the same warnings."""

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
    """Context in which the library logs each warning once."""
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
    """Context in which progress bars and the library's log messages are shown, or neither.

    If the program has configured logging for such messages itself, its configuration is used. Each
    warning is logged once.
    """
    log = logging.getLogger("ekg")
    handler = logging.StreamHandler()
    level = log.level
    propagates = log.propagate
    adds_handler = is_on and log.getEffectiveLevel() > logging.INFO
    was_on = _Shown.is_on
    _Shown.is_on = is_on
    redirected = contextlib.nullcontext()
    if adds_handler:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
        redirected = logging_redirect_tqdm([log])  # writes messages above a bar, not into it
    try:
        with redirected, _each_warning_once():
            yield
    finally:
        _Shown.is_on = was_on
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagates
