"""One run owns a folder: a lock of the operating system, which goes with the process that holds
it.
"""

import contextlib
import fcntl
import json
import logging
import os
import platform
import time

from ekg.errors import EkgError

logger = logging.getLogger(__name__)

LOCK = ".lock"


@contextlib.contextmanager
def held(path):
    """Holds the lock of a run folder, which is made if it is not there, while it lasts; gives the
    Lock.

    The file stays in the folder and means nothing by itself: the lock is the operating
    system's, and a process that was killed holds none. A folder that was made for it and stays
    empty goes again.

    Args:
        path: pathlib.Path of the folder.

    Raises:
        EkgError: another run holds it, or the folder cannot be written.
    """
    is_new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = _open(path / LOCK)
    except OSError as error:
        raise EkgError(f"{path}: cannot be written ({error.strerror}).") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EkgError(
                f"{path}: another run works in this folder{_described(file)}; wait for it, or "
                "name another folder."
            ) from None
        except OSError as error:  # some network file systems have no locks
            logger.warning(
                "%s: cannot be locked (%s); see to it that no other run works there.",
                path,
                error.strerror,
            )
        else:
            _describe(file)
        try:
            yield Lock(path, file)
        finally:
            if (
                is_new and path.is_dir() and [entry.name for entry in path.iterdir()] == [LOCK]
            ):  # nothing began here
                (path / LOCK).unlink()
                path.rmdir()


class Lock:
    """The lock of a run folder that is held."""

    def __init__(self, path, file):
        self._path, self._file = path, file

    def check_place(self):
        """Raises EkgError unless the folder that is locked is still the one at its path."""
        try:
            is_there = os.path.samestat(os.stat(self._path / LOCK), os.fstat(self._file.fileno()))
        except OSError:
            is_there = False
        if not is_there:
            raise EkgError(
                f"{self._path}: is no longer the folder that this run began in: it was moved, "
                "removed or replaced. Put it back, and start the same command again."
            )


def _open(path):
    """Returns the lock's file; what stands there and is no file of its own is neither followed nor
    written.
    """
    if path.is_symlink() or path.exists() and not path.is_file():
        raise EkgError(f"{path}: is a link, or no plain file, so it is no run's lock; remove it.")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    return os.fdopen(descriptor, "r+", encoding="utf-8")


def _describe(file):
    """Writes whose lock it is; that is for people alone, so a full disk does not matter here."""
    with contextlib.suppress(OSError):
        file.truncate(0)
        json.dump(
            {
                "host": platform.node(),
                "process": os.getpid(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            },
            file,
        )
        file.flush()


def _described(file):
    """Returns whose lock it is, as text."""
    try:
        file.seek(0)
        owner = json.load(file)
        return f" (process {owner['process']} on {owner['host']}, since {owner['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
