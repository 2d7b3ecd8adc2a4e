"""The memory bank: what chosen interim sub-networks know of every training image, in one array file on disk."""

import contextlib
import dataclasses
import hashlib
import io
import logging
import math
import mmap
import os
import shutil

import numpy as np
import tensorflow as tf

import op_utils
import utils
from ekg.devices import Team

logger = logging.getLogger(__name__)

ARRAY_FILE, INFO_FILE, BLOCKS_FILE = "logits.npy", "bank.json", "blocks.jsonl"
BLOCK_ROWS = 10_000  # images whose rows get one checksum, at most: so many are lost where a run is killed
HALF_PRECISION_CLASSES = 1000  # from so many classes up logits are kept as float16
FINGERPRINT_IMAGES = 64
GATHERED_ROWS = 64  # read at a time: a file system may map up to 2 MiB around each of them


def select_teachers(losses, num_teacher):
    """Returns the history steps of the teachers, the one with the lowest loss first.

    Aims at num_teacher losses spaced evenly from the lowest one on; for each the not yet taken sub-network whose loss is
    nearest. The last sub-network, Θ*, is no candidate.

    Args:
        losses: cross-entropy of every history entry, Θ₀ to Θ*.
        num_teacher: K.
    """
    lowest, highest = min(losses), max(losses)
    free, taken = list(range(max(len(losses) - 1, 1))), []
    for k in range(min(num_teacher, len(free))):
        aim = lowest + k * (highest - lowest) / num_teacher
        nearest = min(free, key=lambda step: abs(losses[step] - aim))
        free.remove(nearest)
        taken.append(nearest)
    if len(taken) < num_teacher:
        logger.warning("the search found %d interim sub-networks, so the bank holds %d teachers instead of %d.",
                       len(losses) - 1, len(taken), num_teacher)
    return sorted(taken, key=lambda step: losses[step])


def fingerprint(split):
    """Returns what tells one training split from another: {count, shape and hashes of all labels and of spread images}."""
    sample = split.read(np.linspace(0, len(split) - 1, FINGERPRINT_IMAGES).astype(int))
    return {"images": len(split), "shape": list(sample.shape[1:]),
            "labels": hashlib.sha256(np.ascontiguousarray(split.labels).tobytes()).hexdigest(),
            "sample": hashlib.sha256(sample.tobytes()).hexdigest()}


def describe(supernet, split, teachers):
    """Returns what tells one bank from another, as it stands in bank.json: shape, teachers, network and data.

    Args:
        supernet: the Supernet that the teachers are sub-networks of.
        split: training split.
        teachers: list of history entries.
    """
    network, classes = hashlib.sha256(), supernet.graph.shapes[supernet.graph.output][-1]
    for array in supernet.model.get_weights():
        network.update(np.ascontiguousarray(array).tobytes())
    return {"rows": len(split), "classes": classes,
            "dtype": dtype_for(classes),
            "teachers": [{"step": entry.step, "loss": entry.loss} for entry in teachers],
            "network": network.hexdigest(), "data": fingerprint(split)}


def dtype_for(num_classes):
    """Returns the name of the format that logits of so many classes are kept in."""
    return "float16" if num_classes >= HALF_PRECISION_CLASSES else "float32"


def count_good(folder, info):
    """Returns how many rows of a bank are there and undamaged, from the front on.

    Every block that was written is read and compared with its checksum.

    Args:
        folder: pathlib.Path of the bank.
        info: as describe() gives.

    Raises:
        utils.UserError: the folder holds a bank of other data, another network or other teachers.
    """
    if not (folder / INFO_FILE).is_file():
        return 0
    try:
        found = utils.read_json(folder / INFO_FILE)
    except utils.UserError:
        logger.warning("%s: damaged; the memory bank is built again.", folder / INFO_FILE)
        return 0
    differing = [name for name in info if found.get(name) != info[name]]
    if differing:
        raise utils.UserError(f"{folder}: this memory bank belongs to another run, its {' and '.join(differing)} differ; "
                              "move it away, and a new one is built.")
    good, shape, dtype = 0, _shape(info), np.dtype(info["dtype"])
    if not (folder / ARRAY_FILE).is_file() or not (folder / BLOCKS_FILE).is_file():
        return 0
    with open(folder / ARRAY_FILE, "rb") as file:
        is_good = file.read(len(_header(shape, dtype))) == _header(shape, dtype)
        for block in utils.read_json_lines(folder / BLOCKS_FILE, until_damage=True) if is_good else []:
            data = file.read((block["stop"] - good) * math.prod(shape[1:]) * dtype.itemsize)
            is_good = hashlib.sha256(data).hexdigest() == block["sha256"]
            if not is_good:
                break
            good = block["stop"]
    if good < info["rows"]:
        logger.warning("%s: %d of %d rows are good; the memory bank is built from there.", folder / ARRAY_FILE, good,
                       info["rows"])
    return good


def _shape(info):
    return info["rows"], len(info["teachers"]), info["classes"]


@dataclasses.dataclass(frozen=True, eq=False)
class MemoryBank:
    """Logits of K teachers for N images, read from disk row by row.

    Attributes:
        logits: memory map [N, K, classes], float16 or float32; teacher 0 is the one with the lowest loss.
    """
    logits: np.ndarray

    def rows(self, index):
        """Returns the logits of the images with these indices, [len(index), K, classes], float16 or float32."""
        rows = np.empty((len(index), *self.logits.shape[1:]), self.logits.dtype)
        for start in range(0, len(index), GATHERED_ROWS):
            part = slice(start, start + GATHERED_ROWS)
            self.logits.take(index[part], axis=0, out=rows[part])
            # What was read counts as memory of this process until it is given back; the system's cache keeps it.
            self.logits.base.madvise(mmap.MADV_DONTNEED)
        return rows


def build(folder, supernet, teachers, split, normalise, *, batch_size, jit=False, progress=None, team=None):
    """Writes the bank front to back in index order, block by block; what an earlier call left undamaged is kept.

    Images are not augmented, and batch norms use the statistics of batches of even size. Each member of the team takes other
    whole batches, so the bank does not depend on how many members there are.

    Args:
        folder: pathlib.Path of the bank.
        supernet: the Supernet.
        teachers: list of history entries, the one with the lowest loss first.
        split: training split; row n is its image n.
        normalise: uint8 images -> float32 images.
        batch_size: images that share batch statistics, at most.
        jit: whether to compile with XLA.
        progress: progress bar that gets update(number of images), or None.
        team: devices.Team; None stands for the default device. Its chief writes.

    Raises:
        utils.UserError: the folder cannot be written, the disk has no room, or another bank is there.
        FloatingPointError: logits are not finite.
        utils.Stopped: a signal asked the run to end.
    """
    team, info = team or Team(), describe(supernet, split, teachers)
    counted = [0]
    team.on_chief(lambda: counted.append(count_good(folder, info)))
    done = int(team.exchange(str(counted[-1]))[0])
    if done == info["rows"]:
        logger.info("the memory bank is complete")
        return
    writer = _Writer(folder, info, done) if team.is_chief else None
    team.on_chief(writer.open if writer else None)
    if progress is not None:
        progress.update(done * len(teachers))
    dtype = np.dtype(info["dtype"])
    try:
        for indices, rows in _rows(supernet, teachers, split, normalise, batch_size, jit, dtype, team, done):
            if not np.isfinite(rows).all():
                raise FloatingPointError(f"logits of the images {indices[0]} to {indices[-1]} are not finite as "
                                         f"{info['dtype']}; are the weights those of a trained network?")
            if writer is not None:
                writer.write(rows)
            if progress is not None:
                progress.update(len(teachers) * len(indices))
            utils.check_stopped()
    finally:
        if writer is not None:
            writer.close()
    team.exchange("")  # all rows are on disk before anybody reads them


class _Writer:
    """Appends rows to a bank in blocks of at most BLOCK_ROWS, each with its checksum."""

    def __init__(self, folder, info, done):
        """
        Args:
            folder: pathlib.Path of the bank.
            info: as describe() gives.
            done: rows that are there and undamaged.
        """
        self._folder, self._info, self._stop = folder, info, done
        self._file, self._rows = None, []

    def open(self):
        """Opens the files behind the last good row; a new bank's description is written first.

        Raises:
            utils.UserError: the folder cannot be written, or the disk has no room for the bank.
        """
        shape, dtype = _shape(self._info), np.dtype(self._info["dtype"])
        header, row_bytes = _header(shape, dtype), math.prod(shape[1:]) * dtype.itemsize
        with _named_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            array, blocks = self._folder / ARRAY_FILE, self._folder / BLOCKS_FILE
            size = len(header) + self._stop * row_bytes
            needed = (shape[0] - self._stop) * row_bytes
            free = shutil.disk_usage(self._folder).free + (array.stat().st_size - size if array.exists() else 0)
            if needed > free:
                raise utils.UserError(f"{self._folder}: the memory bank needs {needed:,} bytes and {free:,} are free; make "
                                      "room, or lower --num_teacher.")
            kept = utils.read_json_lines(blocks, until_damage=True) if self._stop else []
            kept = [block for block in kept if block["stop"] <= self._stop]
            blocks.unlink(missing_ok=True)  # without it no row counts
            for block in kept:
                utils.append_json_line(blocks, block)
            utils.write_json(self._folder / INFO_FILE, self._info)
            self._file = open(array, "r+b" if self._stop else "wb")
            if not self._stop:
                self._file.write(header)
            self._file.truncate(size)
            self._file.seek(size)

    def write(self, rows):
        """Takes the next rows, [number, K, classes]."""
        if sum(map(len, self._rows)) + len(rows) > BLOCK_ROWS:
            self._write_block()
        self._rows.append(rows)

    def close(self):
        """Writes what is left and closes the file."""
        if self._file is not None:
            self._write_block()
            self._file.close()

    def _write_block(self):
        if not self._rows:
            return
        data = b"".join(rows.tobytes() for rows in self._rows)
        self._stop += sum(map(len, self._rows))
        self._rows = []
        with _named_errors(self._folder):
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
            utils.append_json_line(self._folder / BLOCKS_FILE, {"stop": self._stop,
                                                               "sha256": hashlib.sha256(data).hexdigest()})


@contextlib.contextmanager
def _named_errors(folder):
    try:
        yield
    except OSError as error:
        raise utils.UserError(f"{folder}: the memory bank cannot be written ({error.strerror}).") from None


def _rows(supernet, teachers, split, normalise, batch_size, jit, dtype, team, done):
    """Yields (indices, what all teachers say of these images [len(indices), K, classes]) in index order from `done` on."""
    batches = [np.arange(start, stop) for start, stop in op_utils.even_batches(len(split), batch_size) if start >= done]
    classes, largest = supernet.graph.shapes[supernet.graph.output][-1], max(map(len, batches))

    def make_teach(number):
        """Returns a function that gives the next batch of this member, of batches number, number + count, ..."""
        forward = op_utils.compiled(lambda weights, mask, images: supernet.forward(weights, mask, normalise(images)),
                                    "forward pass of the memory bank", jit)
        weights = tf.nest.map_structure(tf.identity, supernet.weights())  # on this device
        masks = [tf.constant(supernet.mask(entry.subnetwork)) for entry in teachers]
        images = split.stream(batches[number::team.count]) if batches[number::team.count] else iter(())

        def teach():
            rows = np.zeros((largest, len(masks), classes), dtype)
            own = next(images, None)
            for k, mask in enumerate(masks if own is not None else []):
                with np.errstate(over="ignore"):  # numbers that are not finite are said where the rows are taken
                    rows[:len(own), k] = forward(weights, mask, tf.constant(own)).numpy()
            return rows
        return teach

    teach = team.run(make_teach)
    for first in range(0, len(batches), team.count):
        table = np.zeros((team.count, largest, len(teachers), classes), dtype)
        for number, rows in team.run(lambda number: teach[number]()).items():
            table[number] = rows
        table = team.total(table)
        for indices, rows in zip(batches[first:first + team.count], table):
            yield indices, rows[:len(indices)]


def write_header(file, shape, dtype):
    """Writes what stands before the rows of a bank's array file, the .npy format's header."""
    file.write(_header(shape, np.dtype(dtype)))


def _header(shape, dtype):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False,
                                                  "shape": shape})
    return buffer.getvalue()


def open_bank(folder):
    """Returns the MemoryBank in a folder, as a memory map."""
    return MemoryBank(np.load(folder / ARRAY_FILE, mmap_mode="r", allow_pickle=False))
