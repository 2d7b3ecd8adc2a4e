"""The files of a memory bank: one array written front to back in blocks, each with its checksum."""

import hashlib
import io
import logging
import math
import shutil
from concurrent import futures

import numpy as np

from ekg.errors import EkgError
from ekg.io import files

logger = logging.getLogger(__name__)

ARRAY_FILE, INFO_FILE, BLOCKS_FILE = "logits.npy", "bank.json", "blocks.jsonl"
BLOCK_ROWS = (
    10_000  # images whose rows get one checksum, at most: so many are lost where a run is killed
)
HALF_PRECISION_NUMBERS = (
    1000  # from so many classes, or numbers an example, up outputs are kept as float16
)
FINGERPRINT_IMAGES = 64


def fingerprint(split, task=None):
    """Returns what tells one split from another.

    That is {count, shape and hashes of all labels and of spread images}.

    Args:
        split: Split.
        task: Task that its labels are for: those that the unpruned network made are left out; None
            takes all as given.
    """
    labels = split.labels if task is None else task.given(split.labels)
    sample = split.read(np.linspace(0, len(split) - 1, FINGERPRINT_IMAGES).astype(int))
    return {
        "images": len(split),
        "shape": list(sample.shape[1:]),
        "labels": hashlib.sha256(np.ascontiguousarray(labels).tobytes()).hexdigest(),
        "sample": hashlib.sha256(sample.tobytes()).hexdigest(),
    }


def describe(supernet, batches, teachers):
    """Returns what tells one bank from another, as it stands in bank.json: shape, teachers,
    network, data and batches.

    Args:
        supernet: the Supernet that the teachers are sub-networks of.
        batches: data.Batches of the training split.
        teachers: list of history entries.
    """
    network, split, shape = hashlib.sha256(), batches.split, batches.task.shape(supernet.graph)
    for array in supernet.model.get_weights():
        network.update(np.ascontiguousarray(array).tobytes())
    return {
        "rows": len(split),
        "outputs": list(shape),
        "dtype": dtype_for(shape),
        "teachers": [{"step": entry.step, "loss": entry.loss} for entry in teachers],
        "network": network.hexdigest(),
        "data": fingerprint(split, batches.task),
        "batch_size": batches.batch_size,
        "order": hashlib.sha256(np.concatenate(batches.indices).tobytes()).hexdigest(),
    }


def dtype_for(shape):
    """Returns the name of the format that outputs of this shape are kept in."""
    return "float16" if math.prod(shape) >= HALF_PRECISION_NUMBERS else "float32"


def shape_of(info):
    """Returns the shape of the array that describe() tells of, (images, teachers, ...)."""
    return info["rows"], len(info["teachers"]), *info["outputs"]


def count_good(folder, info):
    """Returns how many rows of a bank are there and undamaged, from the front on.

    Every block that was written is read and compared with its checksum.

    Args:
        folder: pathlib.Path of the bank.
        info: as describe() gives.

    Raises:
        EkgError: the folder holds a bank of other data, another network or other teachers.
    """
    if not (folder / INFO_FILE).is_file():
        return 0
    try:
        stored = files.read_json(folder / INFO_FILE)
    except EkgError:
        logger.warning("%s: damaged; the memory bank is built again.", folder / INFO_FILE)
        return 0
    differing = [name for name in info if stored.get(name) != info[name]]
    if differing:
        raise EkgError(
            f"{folder}: this memory bank belongs to another run, its {' and '.join(differing)} "
            "differ; move it away, and a new one is built."
        )
    good, shape, dtype = 0, shape_of(info), np.dtype(info["dtype"])
    if not (folder / ARRAY_FILE).is_file() or not (folder / BLOCKS_FILE).is_file():
        return 0
    with open(folder / ARRAY_FILE, "rb") as file:
        is_good = file.read(len(header(shape, dtype))) == header(shape, dtype)
        for block in _read_blocks(folder) if is_good else []:
            if not good < block["stop"] <= info["rows"]:
                break
            data = file.read((block["stop"] - good) * math.prod(shape[1:]) * dtype.itemsize)
            is_good = hashlib.sha256(data).hexdigest() == block["sha256"]
            if not is_good:
                break
            good = block["stop"]
    if good < info["rows"]:
        logger.warning(
            "%s: %d of %d rows are good; the memory bank is built from there.",
            folder / ARRAY_FILE,
            good,
            info["rows"],
        )
    return good


def find_damage(folder):
    """Returns the pathlib.Path of a file of a bank that is gone or damaged, or None; every block is
    read.
    """
    info = _read_info(folder)
    if info is None:
        return folder / INFO_FILE
    try:
        return None if count_good(folder, info) == info["rows"] else folder / ARRAY_FILE
    except (KeyError, TypeError, ValueError):  # a description with another's checksum
        return folder / INFO_FILE


def _read_info(folder):
    try:
        return files.read_json(
            folder / INFO_FILE, {"rows": int, "outputs": list, "dtype": str, "teachers": list}
        )
    except (EkgError, OSError):
        return None


def _read_blocks(folder):
    return files.read_json_lines(
        folder / BLOCKS_FILE, until_damage=True, kinds={"stop": int, "sha256": str}
    )


def header(shape, dtype):
    """Returns the bytes that stand before the rows of a bank's array file, the .npy format's
    header.
    """
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer,
        {
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
            "fortran_order": False,
            "shape": shape,
        },
    )
    return buffer.getvalue()


class BankWriter:
    """Appends rows to a bank in blocks of at most BLOCK_ROWS, each with its checksum.

    A block goes to the disk in a thread of its own, while the rows of the next one are computed.
    """

    def __init__(self, folder, info, num_good):
        """
        Args:
            folder: pathlib.Path of the bank.
            info: as describe() gives.
            num_good: rows that are there and undamaged.
        """
        self._folder, self._info, self._stop = folder, info, num_good
        self._file, self._rows = None, []
        self._disk, self._pending = (
            futures.ThreadPoolExecutor(1),
            None,
        )  # the block that is being written

    def open(self):
        """Opens the files behind the last good row; a new bank's description is written first.

        Raises:
            EkgError: the folder cannot be written, or the disk has no room for the bank.
        """
        shape, dtype = shape_of(self._info), np.dtype(self._info["dtype"])
        head, row_bytes = header(shape, dtype), math.prod(shape[1:]) * dtype.itemsize
        with files.writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            array, blocks = self._folder / ARRAY_FILE, self._folder / BLOCKS_FILE
            size = len(head) + self._stop * row_bytes
            needed = (shape[0] - self._stop) * row_bytes
            free = shutil.disk_usage(self._folder).free + (
                array.stat().st_size - size if array.exists() else 0
            )
            if needed > free:
                raise EkgError(
                    f"{self._folder}: the memory bank needs {needed:,} bytes and {free:,} are "
                    "free; make room, or lower `num_teacher`."
                )
            kept = _read_blocks(self._folder) if self._stop else []
            kept = [block for block in kept if block["stop"] <= self._stop]
            files.write_json_lines(blocks, kept)
            files.write_json(self._folder / INFO_FILE, self._info)
            self._file = open(array, "r+b" if self._stop else "wb")
            if not self._stop:
                self._file.write(head)
            self._file.truncate(size)
            self._file.seek(size)

    def write(self, rows):
        """Takes the next rows, [number, K, ...].

        Raises:
            EkgError: the block before them could not be written.
        """
        if sum(map(len, self._rows)) + len(rows) > BLOCK_ROWS:
            self._write_block()
        self._rows.append(rows)

    def close(self):
        """Writes what is left and closes the file; returns when all is on disk.

        Raises:
            EkgError: a block could not be written.
        """
        try:
            if self._file is not None:
                self._write_block()
                self._wait()
        finally:
            self._disk.shutdown()
            if self._file is not None:
                with files.writing(self._folder / ARRAY_FILE):
                    self._file.close()

    def _write_block(self):
        self._wait()
        if self._rows:
            self._stop += sum(map(len, self._rows))
            rows, self._rows = self._rows, []
            self._pending = self._disk.submit(self._store, rows, self._stop)

    def _wait(self):
        pending, self._pending = self._pending, None
        try:
            if pending is not None:
                pending.result()
        except BaseException:
            self._rows = []  # nothing may follow a block that is not whole
            raise

    def _store(self, rows, stop):
        data = b"".join(part.tobytes() for part in rows)
        with files.writing(self._folder / ARRAY_FILE):
            self._file.write(data)
            files.sync(self._file)
            files.append_json_line(
                self._folder / BLOCKS_FILE,
                {"stop": stop, "sha256": hashlib.sha256(data).hexdigest()},
            )
