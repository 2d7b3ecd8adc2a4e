"""Files that appear whole or not at all, and that tell when they are damaged."""

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

CHECKSUM = "crc32"  # name of the last entry of a JSON object written here
SEAL = b"\nsha256:"
NO_SYNC = (
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTSUP,
)  # of a file system that cannot force data to its disk


def check_name(path):
    """Raises EkgError unless a path is UTF-8 text: TensorFlow writes checkpoints under no other
    name.
    """
    text = str(Path(path).absolute())
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = text.encode(errors="backslashreplace").decode()
        raise EkgError(f"{shown}: its name is no UTF-8 text; name another folder.") from None


@contextlib.contextmanager
def writing(path):
    """Names the file, and says what to do, where it cannot be written: no room, no permission, a
    lost disk.

    Raises:
        EkgError: the body raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise EkgError(
            f"{path}: cannot be written ({error.strerror or error}); see to it, and start the "
            "same command again."
        ) from None


def reason_of(error):
    """Returns why TensorFlow could not write a file, of its tf.errors.OpError: what stands behind
    the file's name.
    """
    return first_line(error.message).rpartition("; ")[2].removesuffix(" [Op:SaveV2]")


def write_whole(path, write):
    """Writes a file so that it appears whole or not at all.

    Args:
        path: where it will stand.
        write: function that writes into the binary file it is given.

    Raises:
        EkgError: it cannot be written.
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
            with contextlib.suppress(OSError):  # what went wrong is what was raised
                os.unlink(temporary)
            raise


def sync(file):
    """Brings what was written into an open file to its disk, where its file system can."""
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
    """Returns the checksum that stands behind the bytes of a file; readers of pickles do not see
    it.
    """
    return SEAL + hashlib.sha256(data).hexdigest().encode() + b"\n"


def write_sealed(path, data):
    """Writes bytes with their seal() behind them."""
    write_whole(path, lambda file: file.write(data + seal(data)))


def read_sealed(path):
    """Returns the bytes that write_sealed() was given.

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
    """Returns a dict with the checksum of its JSON text as its last entry."""
    return value | {CHECKSUM: zlib.crc32(json.dumps(value).encode())}


def _without_checksum(text, kinds=None):
    """Returns the dict that _with_checksum() made this text of.

    Args:
        text: JSON, text or bytes.
        kinds: {name of an entry that must be there: its type, or a tuple of types}, or None.

    Raises:
        ValueError: the text is damaged, or lacks an entry.
    """
    try:
        value = json.loads(text)
        if not isinstance(value, dict) or value.pop(CHECKSUM, None) != zlib.crc32(
            json.dumps(value).encode()
        ):
            raise ValueError("its checksum is wrong")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    for name, kind in (kinds or {}).items():
        if not isinstance(value.get(name), kind) or isinstance(value[name], bool):
            raise ValueError(f"it has no {name}")
    return value


def write_json(path, value):
    """Writes a dict as indented JSON with a checksum."""
    write_whole(
        path, lambda file: file.write((json.dumps(_with_checksum(value), indent=2) + "\n").encode())
    )


def read_json(path, kinds=None):
    """Returns the dict in a file of write_json.

    Args:
        path: the file.
        kinds: {name of an entry that must be there: its type, or a tuple of types}, or None.

    Raises:
        EkgError: the file is damaged, or lacks an entry.
    """
    try:
        return _without_checksum(Path(path).read_bytes(), kinds)
    except ValueError:
        raise EkgError(
            f"{path}: damaged; put the file back, or start anew in another folder."
        ) from None


def read_json_lines(path, until_damage=False, kinds=None):
    """Returns the list of dicts in a file of append_json_line; a last line that was cut short is
    left out.

    Args:
        path: the file.
        until_damage: whether to return the lines before the first damaged one.
        kinds: see read_json.

    Raises:
        EkgError: a line is damaged, unless until_damage is set.
    """
    values = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n")[:-1], 1):
        try:
            values.append(_without_checksum(line, kinds))
        except ValueError:
            if until_damage:
                break
            raise EkgError(
                f"{path}: line {number} is damaged; delete it and those behind it, and the run "
                "goes on from there, or put the file back."
            ) from None
    return values


def read_report_lines(path, kinds=None):
    """Returns the list of dicts in a file of append_json_line that only tells what was: damaged
    lines are left out.

    A warning names them; a file that is not there holds none.

    Args:
        path: the file.
        kinds: see read_json.
    """
    values, damaged = [], []
    lines = Path(path).read_bytes().split(b"\n")[:-1] if Path(path).exists() else []
    for number, line in enumerate(lines, 1):
        try:
            values.append(_without_checksum(line, kinds))
        except ValueError:
            damaged.append(str(number))
    if damaged:
        logger.warning(
            "%s: line %s is damaged and left out; it only tells what was.", path, ", ".join(damaged)
        )
    return values


def write_json_lines(path, values):
    """Writes a file that append_json_line() would have made of these dicts; it appears whole or not
    at all.
    """
    text = "".join(json.dumps(_with_checksum(value)) + "\n" for value in values)
    write_whole(path, lambda file: file.write(text.encode()))


def append_json_line(path, value):
    """Appends a dict as one line with a checksum; what a stopped write left of an unfinished line
    is cut off first.

    Raises:
        EkgError: it cannot be written.
    """
    with writing(path), open(path, "ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write((json.dumps(_with_checksum(value)) + "\n").encode())
        sync(file)


def remove(path):
    """Removes a file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
