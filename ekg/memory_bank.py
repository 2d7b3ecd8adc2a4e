"""The memory bank: what chosen interim sub-networks know of every training image, in one array file on disk."""

import contextlib
import dataclasses
import hashlib
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

ARRAY_FILE, INFO_FILE = "logits.npy", "bank.json"
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
    """Returns a hash that tells one training split from another: of all labels and of evenly spread images."""
    digest = hashlib.sha256(np.ascontiguousarray(split.labels).tobytes())
    digest.update(split.read(np.linspace(0, len(split) - 1, FINGERPRINT_IMAGES).astype(int)).tobytes())
    return digest.hexdigest()


def describe(supernet, split, teachers):
    """Returns what tells one bank from another, as it stands in bank.json: shape, teachers, network and data.

    Args:
        supernet: the Supernet that the teachers are sub-networks of.
        split: training split.
        teachers: list of history entries.
    """
    network = hashlib.sha256()
    for array in supernet.model.get_weights():
        network.update(np.ascontiguousarray(array).tobytes())
    return {"rows": len(split), "classes": supernet.graph.shapes[supernet.graph.output][-1],
            "teachers": [{"step": entry.step, "loss": entry.loss} for entry in teachers],
            "network": network.hexdigest(), "data": fingerprint(split)}


def is_finished(folder, info):
    """Returns whether the folder holds the whole bank that describe() gave this description of.

    Raises:
        utils.UserError: it holds a bank of other data, another network or other teachers.
    """
    if not (folder / INFO_FILE).is_file():
        return False
    found = utils.read_json(folder / INFO_FILE)
    differing = [name for name in info if found.get(name) != info[name]]
    if differing:
        raise utils.UserError(f"{folder}: this memory bank belongs to another run, its {' and '.join(differing)} differ; "
                              "move it away, and a new one is built.")
    try:
        shape = open_bank(folder).logits.shape
    except (OSError, ValueError):
        shape = None
    if shape != (info["rows"], len(info["teachers"]), info["classes"]):
        logger.warning("%s: missing or cut short; the memory bank is built again", folder / ARRAY_FILE)
        return False
    return True


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
    """Writes the bank front to back in index order.

    Images are not augmented, and batch norms use the statistics of batches of even size. Each member of the team takes other
    whole batches, so the bank does not depend on how many members there are.

    Args:
        folder: pathlib.Path of the bank; what an earlier bank left there is overwritten.
        supernet: the Supernet.
        teachers: list of history entries, the one with the lowest loss first.
        split: training split; row n is its image n.
        normalise: uint8 images -> float32 images.
        batch_size: images that share batch statistics, at most.
        jit: whether to compile with XLA.
        progress: progress bar that gets update(number of images), or None.
        team: devices.Team; None stands for the default device. Its chief writes.

    Raises:
        utils.UserError: the folder cannot be written, or the disk has no room for the bank.
        FloatingPointError: logits are not finite.
    """
    team, info = team or Team(), describe(supernet, split, teachers)
    shape = (info["rows"], len(teachers), info["classes"])
    dtype = np.dtype(np.float16 if info["classes"] >= HALF_PRECISION_CLASSES else np.float32)
    with contextlib.ExitStack() as stack:
        file = None
        if team.is_chief:
            stack.enter_context(_named_errors(folder))

        def start():
            nonlocal file
            file = stack.enter_context(_open_new(folder, shape, dtype))

        team.on_chief(start)
        for indices, rows in _rows(supernet, teachers, split, normalise, batch_size, jit, dtype, team):
            if not np.isfinite(rows).all():
                raise FloatingPointError(f"logits of the images {indices[0]} to {indices[-1]} are not finite as "
                                         f"{dtype}; are the weights those of a trained network?")
            if file is not None:
                file.write(rows.tobytes())
            if progress is not None:
                progress.update(len(teachers) * len(indices))
        if file is not None:
            file.flush()
            os.fsync(file.fileno())
    team.on_chief(lambda: utils.write_json(folder / INFO_FILE, info))


@contextlib.contextmanager
def _named_errors(folder):
    try:
        yield
    except OSError as error:
        raise utils.UserError(f"{folder}: the memory bank cannot be written ({error.strerror}).") from None


def _open_new(folder, shape, dtype):
    """Returns the file that the rows of a bank of this shape go to."""
    with _named_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        needed, free = math.prod(shape) * dtype.itemsize, shutil.disk_usage(folder).free
        if needed > free:
            raise utils.UserError(f"{folder}: the memory bank needs {needed:,} bytes and {free:,} are free; make room, or "
                                  "lower --num_teacher.")
        (folder / INFO_FILE).unlink(missing_ok=True)  # it stands for a finished bank
        file = open(folder / ARRAY_FILE, "wb")
        write_header(file, shape, dtype)
        return file


def _rows(supernet, teachers, split, normalise, batch_size, jit, dtype, team):
    """Yields (indices, what all teachers say of these images [len(indices), K, classes]) in index order."""
    batches = [np.arange(start, stop) for start, stop in op_utils.even_batches(len(split), batch_size)]
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
    np.lib.format.write_array_header_1_0(file, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
                                                "fortran_order": False, "shape": shape})


def open_bank(folder):
    """Returns the MemoryBank in a folder, as a memory map."""
    return MemoryBank(np.load(folder / ARRAY_FILE, mmap_mode="r", allow_pickle=False))
