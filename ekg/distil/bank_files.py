"""The files of a memory bank: one array, written in blocks with a checksum each."""

import hashlib
import io
import logging
import math
import shutil
from concurrent import futures
from pathlib import Path

import keras
import numpy as np

from ekg.data.inputs import content_of, one_or_list, shapes_of
from ekg.errors import EkgError
from ekg.io import files

logger = logging.getLogger(__name__)

ARRAY_FILE = "logits.npy"
INFO_FILE = "bank.json"
BLOCKS_FILE = "blocks.jsonl"
BLOCK_ROWS = 10_000  # largest number of rows per checksum, which is lost if a run is killed
HALF_PRECISION_NUMBERS = 1000  # outputs of at least this many numbers are stored as float16
FINGERPRINT_IMAGES = 64  # images that are hashed, at even distances


def fingerprint(split, task=None):
    """Returns a dict that identifies a split: count, shape, and hashes of labels and some images.

    Of several inputs the shapes are a list, and the hash is of all of them.

    Args:
        split: Split.
        task: Task of the labels; labels that the unpruned network computed are not hashed. None
            hashes all labels.
    """
    labels = split.labels if task is None else task.given(split.labels)
    sample = split.read(np.linspace(0, len(split) - 1, FINGERPRINT_IMAGES).astype(int))
    shapes, digest = [list(shape) for shape in shapes_of(sample)], hashlib.sha256()
    for array in keras.tree.flatten(sample):
        digest.update(content_of(array))
    return {
        "images": len(split),
        "shape": one_or_list(shapes),
        "labels": hashlib.sha256(np.ascontiguousarray(labels).tobytes()).hexdigest(),
        "sample": digest.hexdigest(),
    }


def describe(supernet, batches, teachers):
    """Returns the dict that identifies a bank: shape, teachers, network, data, order of batches.

    Args:
        supernet: Supernet whose sub-networks are the teachers.
        batches: data.Batches of the training split.
        teachers: list of history entries.
    """
    split = batches.split
    shape = batches.task.shape(supernet.graph)
    network = hashlib.sha256()
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
    """Returns the name of the number format in which outputs of this shape are stored."""
    return "float16" if math.prod(shape) >= HALF_PRECISION_NUMBERS else "float32"


def shape_of(info):
    """Returns the shape of the array of a bank, (images, teachers, ...), given its describe()."""
    return info["rows"], len(info["teachers"]), *info["outputs"]


def count_good(folder, info):
    """Returns the number of intact rows of a bank, counted from the front.

    Every block is read and compared with its checksum.

    Args:
        folder: pathlib.Path of the bank.
        info: description of the bank, from describe().

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
    if not (folder / ARRAY_FILE).is_file() or not (folder / BLOCKS_FILE).is_file():
        return 0
    num_good = _count_intact(folder, shape_of(info), np.dtype(info["dtype"]))
    if num_good < info["rows"]:
        logger.warning(
            "%s: %d of %d rows are intact; the memory bank is built from there.",
            folder / ARRAY_FILE,
            num_good,
            info["rows"],
        )
    return num_good


def find_known(info, teachers, sources):
    """Returns a list of (number of a teacher, path of another bank that has it, its number there).

    A bank counts if it is complete, intact, and of the same network, data and batches.

    Args:
        info: description of the bank that is built, from describe().
        teachers: its teachers, list of history entries.
        sources: see bank.build_bank().
    """
    todo, known = dict(enumerate(entry.subnetwork for entry in teachers)), []
    for folder, history in sources:
        stored = _read_info(Path(folder))
        if stored is None or not _is_alike(stored, info):
            continue
        theirs = [_subnetwork_of(entry, history) for entry in stored["teachers"]]
        found = {number: theirs.index(own) for number, own in todo.items() if own in theirs}
        if not found or not _is_complete(Path(folder), stored):
            continue
        logger.info("%d of %d teachers are known from %s", len(found), len(teachers), folder)
        for number, column in found.items():
            known.append((number, str(folder), column))
            del todo[number]
    return known


def _subnetwork_of(teacher, history):
    """Returns the Subnetwork of a teacher in the description of a bank, or None without one."""
    step = teacher.get("step") if isinstance(teacher, dict) else None
    return history[step].subnetwork if step in range(len(history)) else None


def _is_alike(stored, info):
    """Returns whether two banks differ in nothing but their teachers."""
    return all(stored.get(name) == info[name] for name in info if name != "teachers")


def _is_complete(folder, info):
    """Returns whether all rows of a bank are there and intact; reads every block."""
    if not (folder / ARRAY_FILE).is_file() or not (folder / BLOCKS_FILE).is_file():
        return False
    return _count_intact(folder, shape_of(info), np.dtype(info["dtype"])) == info["rows"]


def _count_intact(folder, shape, dtype):
    """Returns the number of rows, from the front, whose blocks match their checksums."""
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    head = header(shape, dtype)
    num_good = 0
    with open(folder / ARRAY_FILE, "rb") as file:
        if file.read(len(head)) != head:
            return 0
        for block in _read_blocks(folder):
            if not num_good < block["stop"] <= shape[0]:
                break
            data = file.read((block["stop"] - num_good) * row_bytes)
            if hashlib.sha256(data).hexdigest() != block["sha256"]:
                break
            num_good = block["stop"]
    return num_good


def find_damage(folder):
    """Returns the path of a missing or damaged file of a bank, or None; reads every block."""
    info = _read_info(folder)
    if info is None:
        return folder / INFO_FILE
    try:
        return None if count_good(folder, info) == info["rows"] else folder / ARRAY_FILE
    except (KeyError, TypeError, ValueError):  # entries of the description have wrong contents
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
    """Returns the header of the .npy format, which precedes the rows of a bank's array file."""
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
    """Appends rows to a bank in blocks of at most BLOCK_ROWS, with a checksum each.

    A thread writes each block to disk while the rows of the next one are computed.
    """

    def __init__(self, folder, info, num_good):
        """
        Args:
            folder: pathlib.Path of the bank.
            info: description of the bank, from describe().
            num_good: number of intact rows that exist already.
        """
        self._folder = folder
        self._info = info
        self._stop = num_good
        self._file = None
        self._rows = []  # of the next block
        self._disk = futures.ThreadPoolExecutor(1)
        self._pending = None  # future of the block that is being written

    def open(self):
        """Writes the description of the bank, and opens its array file after the last intact row.

        Raises:
            EkgError: the folder cannot be written, or the disk has no room for the bank.
        """
        shape = shape_of(self._info)
        dtype = np.dtype(self._info["dtype"])
        head = header(shape, dtype)
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        array = self._folder / ARRAY_FILE
        blocks = self._folder / BLOCKS_FILE
        with files.writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            size = len(head) + self._stop * row_bytes
            needed = (shape[0] - self._stop) * row_bytes
            free = shutil.disk_usage(self._folder).free
            if array.exists():
                free += array.stat().st_size - size
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
        """Appends the next rows, [n, K, ...].

        Raises:
            EkgError: the previous block could not be written.
        """
        if sum(map(len, self._rows)) + len(rows) > BLOCK_ROWS:
            self._write_block()
        self._rows.append(rows)

    def close(self):
        """Writes the remaining rows and closes the file; returns when all rows are on disk.

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
            self._rows = []  # no row may follow an incomplete block
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
