"""The memory bank: what chosen interim sub-networks know of every training image, in one array file on disk."""

import dataclasses
import hashlib
import logging
import shutil

import numpy as np
import tensorflow as tf

import op_utils
import utils

logger = logging.getLogger(__name__)

ARRAY_FILE, INFO_FILE = "logits.npy", "bank.json"
HALF_PRECISION_CLASSES = 1000  # from so many classes up logits are kept as float16
FINGERPRINT_IMAGES = 64


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


def describe(split, teachers):
    """Returns what tells one bank from another, as it stands in bank.json: rows, teachers and data.

    Args:
        split: training Split.
        teachers: list of history entries.
    """
    return {"rows": len(split), "teachers": [{"step": entry.step, "loss": entry.loss} for entry in teachers],
            "data": fingerprint(split)}


def is_finished(folder, info):
    """Returns whether the folder holds the whole bank that describe() gave this description of."""
    if not (folder / INFO_FILE).is_file() or utils.read_json(folder / INFO_FILE) != info:
        return False
    try:
        shape = open_bank(folder).logits.shape
    except (OSError, ValueError):  # missing or cut short: it is built anew
        return False
    return shape[:2] == (info["rows"], len(info["teachers"]))


@dataclasses.dataclass(frozen=True, eq=False)
class MemoryBank:
    """Logits of K teachers for N images, read from disk row by row.

    Attributes:
        logits: memory map [N, K, classes], float16 or float32; teacher 0 is the one with the lowest loss.
    """
    logits: np.ndarray

    def rows(self, index):
        """Returns the logits of the images with these indices, float32 [len(index), K, classes]."""
        return self.logits[index].astype(np.float32)


def build(folder, supernet, teachers, split, normalise, *, batch_size, jit=False, progress=None):
    """Writes the bank front to back in index order.

    Images are not augmented, and batch norms use the statistics of batches of even size.

    Args:
        folder: pathlib.Path of the bank; what an earlier bank left there is overwritten.
        supernet: the Supernet.
        teachers: list of history entries, the one with the lowest loss first.
        split: training Split; row n is its image n.
        normalise: uint8 images -> float32 images.
        batch_size: images that share batch statistics, at most.
        jit: whether to compile with XLA.
        progress: progress bar that gets update(number of images), or None.

    Raises:
        utils.UserError: the folder cannot be written, or the disk has no room for the bank.
    """
    classes = supernet.graph.shapes[supernet.graph.output][-1]
    dtype = np.float16 if classes >= HALF_PRECISION_CLASSES else np.float32
    forward = tf.function(lambda weights, mask, images: supernet.forward(weights, mask, normalise(images)),
                          jit_compile=jit)
    weights = supernet.weights()
    masks = [tf.constant(supernet.mask(entry.subnetwork)) for entry in teachers]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        needed = len(split) * len(teachers) * classes * np.dtype(dtype).itemsize
        free = shutil.disk_usage(folder).free
        if needed > free:  # a memory map that the disk has no room for ends the process
            raise utils.UserError(f"{folder}: the memory bank needs {needed:,} bytes and {free:,} are free; make room, or "
                                  "lower --num_teacher.")
        (folder / INFO_FILE).unlink(missing_ok=True)  # it stands for a finished bank
        logits = np.lib.format.open_memmap(folder / ARRAY_FILE, "w+", dtype, (len(split), len(teachers), classes))
        for start, stop in op_utils.even_batches(len(split), batch_size):
            images = tf.constant(split.read(np.arange(start, stop)))
            for k, mask in enumerate(masks):
                logits[start:stop, k] = forward(weights, mask, images).numpy()
                if progress is not None:
                    progress.update(stop - start)
        logits.flush()
        utils.write_json(folder / INFO_FILE, describe(split, teachers))
    except OSError as error:
        raise utils.UserError(f"{folder}: the memory bank cannot be written ({error.strerror}).") from None


def open_bank(folder):
    """Returns the MemoryBank in a folder, as a memory map."""
    return MemoryBank(np.load(folder / ARRAY_FILE, mmap_mode="r", allow_pickle=False))
