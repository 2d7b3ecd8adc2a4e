"""The memory bank: the logits of chosen interim sub-networks for every training image, on disk."""

import dataclasses
import errno
import functools
import logging
import mmap
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ekg.data.inputs import count_of
from ekg.devices.compute import Compute, compiled, in_graph
from ekg.distil import bank_files
from ekg.graph.execute import ExecutionOptions, pure_forward, read_variables
from ekg.process import stopping

logger = logging.getLogger(__name__)

FEW_BATCHES = 32  # for fewer batches, tracing a network per teacher costs more than it saves
GATHERED_ROWS = 64  # rows that are read at a time; a file system may map up to 2 MiB around each


def select_teachers(losses, num_teacher):
    """Returns the history steps of the teachers, in ascending order of their losses.

    For each of the losses lowest + k·(highest − lowest)/K, k = 0 … K−1, it takes the sub-network
    with the nearest loss among those not taken yet. The last sub-network, Θ*, is no candidate and
    does not count for the range; but if the search took no step, Θ* is Θ₀ and is the teacher.

    Args:
        losses: cross-entropy of every history entry, from Θ₀ to Θ*.
        num_teacher: number of teachers K.
    """
    candidates = losses[:-1] or losses
    lowest = min(candidates)
    highest = max(candidates)
    remaining = list(range(len(candidates)))
    teachers = []
    for k in range(min(num_teacher, len(remaining))):
        aim = lowest + k * (highest - lowest) / num_teacher
        nearest = min(remaining, key=lambda step: abs(losses[step] - aim))
        remaining.remove(nearest)
        teachers.append(nearest)
    if len(teachers) < num_teacher:
        logger.warning(
            "the search found %d interim sub-networks, so the bank holds %d teachers instead of "
            "%d.",
            len(losses) - 1,
            len(teachers),
            num_teacher,
        )
    return sorted(teachers, key=lambda step: losses[step])


@dataclasses.dataclass(frozen=True, eq=False)
class MemoryBank:
    """Logits, or other outputs, of K teachers for N images, read from disk row by row.

    Attributes:
        logits: memory map [N, K, ...], [N, K, classes] for classification, float16 or float32;
            teacher 0 has the lowest loss.
        positions: row number of each image, int array [N]; None if row n belongs to image n.
    """

    logits: np.ndarray = dataclasses.field(repr=False)
    positions: np.ndarray | None = dataclasses.field(default=None, repr=False)

    def rows(self, index):
        """Returns the teachers' logits of the images with these indices, [len(index), K, ...]."""
        index = index if self.positions is None else self.positions[index]
        rows = np.empty((len(index), *self.logits.shape[1:]), self.logits.dtype)
        for start in range(0, len(index), GATHERED_ROWS):
            part = slice(start, start + GATHERED_ROWS)
            self.logits.take(index[part], axis=0, out=rows[part])
            if isinstance(self.logits, np.memmap):
                # Pages that were read count as memory of this process until they are released;
                # they stay in the system's cache.
                self.logits.base.madvise(mmap.MADV_DONTNEED)
        return rows


def open_bank(folder, batches=None):
    """Opens the MemoryBank in a folder as a memory map, or loads it if files cannot be mapped.

    Args:
        folder: pathlib.Path of the bank.
        batches: data.Batches that the bank was built from; None if the images kept their order.
    """
    path = folder / bank_files.ARRAY_FILE
    try:
        logits = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ENOTSUP, errno.EINVAL):
            raise
        logger.warning(
            "%s: its file system cannot map files (%s); the whole bank is read into memory.",
            path,
            error.strerror,
        )
        logits = np.load(path, allow_pickle=False)
    positions = None
    if batches is not None:
        positions = np.argsort(np.concatenate(batches.indices))
    return MemoryBank(logits, positions)


def build_bank(folder, supernet, teachers, batches, compute=None, progress=None, sources=()):
    """Writes the bank in the order of the batches; intact rows of an earlier call are kept.

    Images are not augmented, and batch norms use batch statistics. Every batch is computed by one
    member of the team, so the bank does not depend on the number of members. Every teacher is
    computed alone, so its logits in another bank are the same to the bit.

    Args:
        folder: pathlib.Path of the bank.
        supernet: Supernet of the teachers.
        teachers: list of history entries, in ascending order of their losses.
        batches: data.Batches of the training split, with all classes mixed.
        compute: Compute, whose team's chief writes; None for float32 on the default device.
        progress: progress bar whose update() gets the number of images, or None.
        sources: list of (folder of a bank, history of its search), computed in the same number
            format; the logits of teachers that are in them are copied. The chief reads them.

    Raises:
        EkgError: the folder cannot be written, the disk is too full, or the folder has another
            bank.
        FloatingPointError: logits are not finite.
        Stopped: a signal requested a stop.
    """
    compute = compute or Compute()
    team = compute.team
    info = bank_files.describe(supernet, batches, teachers)
    num_good = team.from_chief(lambda: bank_files.count_good(folder, info))
    if num_good == info["rows"]:
        logger.info("the memory bank is complete")
        return
    known = team.from_chief(lambda: bank_files.find_known(info, teachers, sources))
    taken = {number for number, _, _ in known}
    todo = [number for number in range(len(teachers)) if number not in taken]
    writer = bank_files.BankWriter(folder, info, num_good) if team.is_chief else None
    team.on_chief(writer.open if writer else None)
    copied = _KnownColumns(known, num_good) if team.is_chief else None
    if progress is not None:
        progress.update(num_good * len(teachers))
    try:
        missing = [teachers[number] for number in todo]
        for indices, rows in _teach(supernet, missing, batches, compute, num_good):
            if not np.isfinite(rows).all():
                raise FloatingPointError(
                    f"logits of the images {indices[0]} to {indices[-1]} are not finite as "
                    f"{info['dtype']}; is the network trained?"
                )
            if writer is not None:
                writer.write(copied.complete(rows, todo))
            if progress is not None:
                progress.update(len(teachers) * len(indices))
            stopping.check()
    finally:
        if writer is not None:
            writer.close()
    team.wait()  # until all rows are on disk, before any process reads them


class _KnownColumns:
    """Logits of teachers that other banks hold, for one batch after the other."""

    def __init__(self, known, start):
        """
        Args:
            known: list of (number of a teacher, path of a bank that has it, its number there).
            start: first row that is asked for.
        """
        self._row = start
        self._columns = {}  # path of a bank: list of (number of a teacher, its number there)
        for number, path, column in known:
            self._columns.setdefault(path, []).append((number, column))
        self._banks = {path: open_bank(Path(path)) for path in self._columns}

    def complete(self, rows, numbers):
        """Returns the logits of all teachers for the next examples, [n, K, ...].

        Args:
            rows: logits of the teachers that were computed, [n, len(numbers), ...].
            numbers: their numbers.
        """
        if not self._columns:
            return rows
        index = np.arange(self._row, self._row + len(rows))
        self._row += len(rows)
        num_known = sum(map(len, self._columns.values()))
        whole = np.empty((len(rows), len(numbers) + num_known, *rows.shape[2:]), rows.dtype)
        whole[:, numbers] = rows
        for path, columns in self._columns.items():
            stored = self._banks[path].rows(index)
            for number, column in columns:
                whole[:, number] = stored[:, column]
        return whole


def _teach(supernet, teachers, batches, compute, num_good):
    """Yields (indices, outputs of all teachers, [len(indices), K, ...]) for each missing batch.

    Args:
        num_good: number of images at the front whose rows exist already, in whole batches.
    """
    team = compute.team
    starts = np.cumsum([0, *map(len, batches.indices)]).tolist()
    todo = range(starts.index(num_good), len(batches))
    largest = max(len(batches.indices[number]) for number in todo)
    output_shape = batches.task.shape(supernet.graph)
    shape = (largest, len(teachers), *output_shape)
    dtype = np.dtype(bank_files.dtype_for(output_shape))
    if not teachers:
        for number in todo:
            count = len(batches.indices[number])
            yield batches.indices[number], np.zeros((count, *shape[1:]), dtype)
        return

    subnetworks = [entry.subnetwork for entry in teachers]
    options = ExecutionOptions(compute.dtype, norms_alone=True)
    if compute.use_xla or len(batches) < FEW_BATCHES:
        # One graph with masks: a graph per teacher would cost more time than it saves.
        masked_supernet = supernet.with_options(options)
        make_teachers = functools.partial(
            _masked_teachers, masked_supernet, subnetworks, batches, compute.use_xla
        )
    else:
        models = [supernet.cut(subnetwork) for subnetwork in subnetworks]
        make_teachers = functools.partial(_cut_teachers, models, batches, options)

    def rows_of_member(member):
        """Yields the rows of every batch of a member, which takes every team.size-th batch."""
        member_teachers = make_teachers()
        for images in batches.images(todo[member :: team.size]):
            rows = np.zeros(shape, dtype)
            images = keras.tree.map_structure(tf.constant, images)
            count = count_of(images)
            for k, teacher in enumerate(member_teachers):
                with np.errstate(over="ignore"):  # build_bank() reports numbers that overflow
                    rows[:count, k] = teacher(images).numpy()
            yield rows

    rows_of = {member: rows_of_member(member) for member in team.local_members}
    no_rows = np.zeros(shape, dtype)
    for first in range(0, len(todo), team.size):
        table = np.zeros((team.size, *shape), dtype)
        new_rows = team.map_members(lambda member: next(rows_of[member], no_rows))
        for member, rows in new_rows.items():
            table[member] = rows
        table = team.sum_over_workers(table)
        for number, rows in zip(todo[first : first + team.size], table):
            yield batches.indices[number], rows[: len(batches.indices[number])]


def _masked_teachers(supernet, subnetworks, batches, use_xla):
    """Returns a list of functions from stored images to outputs, one per teacher, on this device.

    All of them run the same masked supernet.
    """

    def forward(weights, mask, images):
        return batches.task.of(supernet.forward(weights, mask, batches.normalise(images)))

    function = compiled(forward, "forward pass of the memory bank", use_xla)
    weights = tf.nest.map_structure(tf.identity, supernet.weights())
    return [
        functools.partial(function, weights, tf.constant(supernet.mask(subnetwork)))
        for subnetwork in subnetworks
    ]


def _cut_teachers(models, batches, options):
    """Returns a list of functions from stored images to outputs, one per teacher, on this device.

    Each runs a network of its own that was cut out.
    """

    def teacher(model):
        forward = pure_forward(model, options)

        def outputs_of(trainable, non_trainable, images):
            outputs, _ = forward(trainable, non_trainable, batches.normalise(images), True)
            return batches.task.of(outputs)

        variables = tf.nest.map_structure(tf.identity, read_variables(model))
        return functools.partial(in_graph(outputs_of), *variables)

    return [teacher(model) for model in models]
