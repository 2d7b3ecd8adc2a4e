"""Atomic writes, and files with checksums that reveal damage."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import zlib
from pathlib import Path

from ekg.errors import EkgError, first_line

logger = logging.getLogger(__name__)

CHECKSUM = "crc32"  # key of the checksum, the last entry of every JSON object written here
SEAL = b"\nsha256:"
READ_TOGETHER = 2**16  # bytes
# Error numbers of a file system that cannot force data to its disk
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def check_paths(paths):
    """Raises EkgError unless arguments that name files or folders are paths or None.

    Args:
        paths: {name of an argument: its value}.
    """
    for name, path in paths.items():
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise EkgError(f"`{name}` must be a path; received {path!r}.")


def check_name(path):
    """Raises EkgError unless a path is valid UTF-8, which TensorFlow needs to write checkpoints."""
    text = str(Path(path).absolute())
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = text.encode(errors="backslashreplace").decode()
        raise EkgError(f"{shown}: its name is not valid UTF-8; choose another folder.") from None


@contextlib.contextmanager
def writing(path):
    """Turns an OSError of its body into an EkgError that names the file and says what to do.

    Raises:
        EkgError: the body raised an OSError: no space, no permission, a lost disk.
    """
    try:
        yield
    except OSError as error:
        raise EkgError(
            f"{path}: cannot be written ({error.strerror or error}); fix that, and start the same "
            "command again."
        ) from None


def reason_of(error):
    """Returns the reason in a tf.errors.OpError about a file: the text after the file's name."""
    return first_line(error.message).rpartition("; ")[2].removesuffix(" [Op:SaveV2]")


def write_whole(path, write):
    """Writes a file atomically: it appears whole or not at all.

    Args:
        path: path of the file.
        write: function that takes an open binary file and writes the contents into it.

    Raises:
        EkgError: the file cannot be written.
    """
    path = Path(path)
    with writing(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                sync(file)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to report
                os.unlink(temporary)
            raise


def sync(file):
    """Flushes an open file to its disk, if its file system supports that."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256(path):
    """Returns the SHA-256 of a file, as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- sealed files


def seal(data):
    """Returns the checksum that is appended to the bytes of a file; unpicklers do not read it."""
    return SEAL + hashlib.sha256(data).hexdigest().encode() + b"\n"


def write_sealed(path, data):
    """Writes bytes, followed by their seal()."""
    write_whole(path, lambda file: file.write(data + seal(data)))


def read_sealed(path):
    """Returns the bytes that write_sealed() wrote, without their seal.

    Raises:
        EkgError: the file cannot be read, or does not end with the right seal.
    """
    try:
        sealed = Path(path).read_bytes()
    except OSError as error:
        raise EkgError(f"{path}: cannot be read ({error.strerror}).") from None
    data = sealed[: -len(seal(b""))]
    if sealed != data + seal(data):
        raise EkgError(f"{path}: damaged, its checksum is wrong; put the file back.")
    return data


# ---------------------------------------------------------------- JSON


def _with_checksum(value):
    """Returns the dict with the checksum of its JSON text appended as last entry."""
    return value | {CHECKSUM: zlib.crc32(json.dumps(value).encode())}


def _without_checksum(text, kinds=None):
    """Parses JSON, verifies its checksum and returns the dict; the inverse of _with_checksum().

    Args:
        text: JSON, as str or bytes.
        kinds: {name of a required entry: its type, or a tuple of types}, or None.

    Raises:
        ValueError: the text is damaged, or lacks an entry.
    """
    try:
        value = json.loads(text)
        checksum = value.pop(CHECKSUM, None) if isinstance(value, dict) else None
        if checksum is None or checksum != zlib.crc32(json.dumps(value).encode()):
            raise ValueError("its checksum is wrong")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    for name, kind in (kinds or {}).items():
        if not isinstance(value.get(name), kind) or isinstance(value[name], bool):
            raise ValueError(f"it has no {name}")
    return value


def write_json(path, value):
    """Writes a dict as indented JSON with a checksum."""
    text = json.dumps(_with_checksum(value), indent=2) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def read_json(path, kinds=None):
    """Returns the dict in a file that write_json() wrote.

    Args:
        path: path of the file.
        kinds: {name of a required entry: its type, or a tuple of types}, or None.

    Raises:
        EkgError: the file is damaged, or lacks an entry.
    """
    try:
        return _without_checksum(Path(path).read_bytes(), kinds)
    except ValueError:
        raise EkgError(
            f"{path}: damaged; put the file back, or start again in another folder."
        ) from None


def read_json_lines(path, until_damage=False, kinds=None):
    """Returns the dicts in a file of append_json_line(), without an unfinished last line.

    Args:
        path: path of the file.
        until_damage: whether to stop at the first damaged line instead of raising.
        kinds: required entries of each line; see read_json.

    Raises:
        EkgError: a line is damaged, and until_damage is not set.
    """
    values = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n")[:-1], 1):
        try:
            values.append(_without_checksum(line, kinds))
        except ValueError:
            if until_damage:
                break
            raise EkgError(
                f"{path}: line {number} is damaged; delete it and all lines after it, and the run "
                "resumes from there, or put the file back."
            ) from None
    return values


def read_report_lines(path, kinds=None):
    """Returns the dicts in a log of append_json_line(), and skips damaged lines with a warning.

    Use it for logs, which no result depends on. A missing file counts as empty.

    Args:
        path: path of the file.
        kinds: required entries of each line; see read_json.
    """
    values = []
    damaged = []
    lines = Path(path).read_bytes().split(b"\n")[:-1] if Path(path).exists() else []
    for number, line in enumerate(lines, 1):
        try:
            values.append(_without_checksum(line, kinds))
        except ValueError:
            damaged.append(str(number))
    if damaged:
        logger.warning(
            "%s: skipping damaged line %s; no result depends on it.", path, ", ".join(damaged)
        )
    return values


def write_json_lines(path, values):
    """Writes dicts in the format of append_json_line(); the file appears whole or not at all."""
    text = "".join(json.dumps(_with_checksum(value)) + "\n" for value in values)
    write_whole(path, lambda file: file.write(text.encode()))


def append_json_line(path, value):
    """Appends a dict as one line with a checksum, after removing an unfinished last line.

    Raises:
        EkgError: the file cannot be written.
    """
    with writing(path), open(path, "ab+") as file:
        file.truncate(_end_of_lines(file))
        file.write((json.dumps(_with_checksum(value)) + "\n").encode())
        sync(file)


def _end_of_lines(file):
    """Returns the position after the last line end of an open file, which is read from its end."""
    position = file.seek(0, os.SEEK_END)
    while position:
        start = max(position - READ_TOGETHER, 0)
        file.seek(start)
        found = file.read(position - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0


def remove(path):
    """Removes a file, a link or a whole folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
