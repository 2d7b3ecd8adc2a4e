"""The memory bank: what chosen interim sub-networks know of every training image, in one array file
on disk.
"""

import dataclasses
import errno
import functools
import logging
import mmap

import numpy as np
import tensorflow as tf

from ekg.devices.compute import Compute, compiled, in_graph
from ekg.distil import bank_files
from ekg.graph.execute import ExecutionOptions, pure_forward, read_variables
from ekg.process import stopping

logger = logging.getLogger(__name__)

FEW_BATCHES = 32  # of which every teacher sees fewer than it takes to trace a network of its own
GATHERED_ROWS = 64  # read at a time: a file system may map up to 2 MiB around each of them


def select_teachers(losses, num_teacher):
    """Returns the history steps of the teachers, the one with the lowest loss first.

    Aims at lowest + k·(highest − lowest)/K, k = 0 … K−1; for each the not yet taken sub-network
    whose loss is nearest. The last sub-network, Θ*, is no candidate, and its loss counts for
    neither end of the range; where the search took no step, Θ* is Θ₀ and teaches.

    Args:
        losses: cross-entropy of every history entry, Θ₀ to Θ*.
        num_teacher: K.
    """
    candidates = losses[:-1] or losses
    lowest, highest = min(candidates), max(candidates)
    free, taken = list(range(len(candidates))), []
    for k in range(min(num_teacher, len(free))):
        aim = lowest + k * (highest - lowest) / num_teacher
        nearest = min(free, key=lambda step: abs(losses[step] - aim))
        free.remove(nearest)
        taken.append(nearest)
    if len(taken) < num_teacher:
        logger.warning(
            "the search found %d interim sub-networks, so the bank holds %d teachers instead of "
            "%d.",
            len(losses) - 1,
            len(taken),
            num_teacher,
        )
    return sorted(taken, key=lambda step: losses[step])


@dataclasses.dataclass(frozen=True, eq=False)
class MemoryBank:
    """Logits, or other outputs, of K teachers for N images, read from disk row by row.

    Attributes:
        logits: memory map [N, K, ...], of a classification [N, K, classes], float16 or float32;
            teacher 0 is the one with the lowest loss.
        positions: for every image the number of its row, int array [N]; None where row n is image
            n's.
    """

    logits: np.ndarray = dataclasses.field(repr=False)
    positions: np.ndarray | None = dataclasses.field(default=None, repr=False)

    def rows(self, index):
        """Returns the logits of the images with these indices, [len(index), K, ...], float16 or
        float32.
        """
        index = index if self.positions is None else self.positions[index]
        rows = np.empty((len(index), *self.logits.shape[1:]), self.logits.dtype)
        for start in range(0, len(index), GATHERED_ROWS):
            part = slice(start, start + GATHERED_ROWS)
            self.logits.take(index[part], axis=0, out=rows[part])
            if isinstance(self.logits, np.memmap):
                # What was read counts as memory of this process until it is given back; the
                # system's cache keeps it.
                self.logits.base.madvise(mmap.MADV_DONTNEED)
        return rows


def open_bank(folder, batches=None):
    """Returns the MemoryBank in a folder, as a memory map, or in memory where its file system has
    no maps.

    Args:
        folder: pathlib.Path of the bank.
        batches: data.Batches that it was built of; None stands for images in their own order.
    """
    path = folder / bank_files.ARRAY_FILE
    try:
        logits = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ENOTSUP, errno.EINVAL):
            raise
        logger.warning(
            "%s: its file system maps no files (%s); the bank stays in memory.",
            path,
            error.strerror,
        )
        logits = np.load(path, allow_pickle=False)
    return MemoryBank(
        logits, None if batches is None else np.argsort(np.concatenate(batches.indices))
    )


def build_bank(folder, supernet, teachers, batches, compute=None, progress=None):
    """Writes the bank front to back in the order of the batches; what an earlier call left
    undamaged is kept.

    Images are not augmented, and batch norms use the statistics of batches of even size. Each
    member of the team takes other whole batches, so the bank does not depend on how many members
    there are.

    Args:
        folder: pathlib.Path of the bank.
        supernet: the Supernet.
        teachers: list of history entries, the one with the lowest loss first.
        batches: data.Batches of the training split, all classes mixed.
        compute: Compute, whose team's chief writes; None stands for float32 on the default device.
        progress: progress bar that gets update(number of images), or None.

    Raises:
        EkgError: the folder cannot be written, the disk has no room, or another bank is there.
        FloatingPointError: logits are not finite.
        Stopped: a signal asked the run to end.
    """
    compute = compute or Compute()
    team, info, num_good = compute.team, bank_files.describe(supernet, batches, teachers), [0]
    team.on_chief(lambda: num_good.append(bank_files.count_good(folder, info)))
    num_good = int(team.gather_texts(str(num_good[-1]))[0])
    if num_good == info["rows"]:
        logger.info("the memory bank is complete")
        return
    writer = bank_files.BankWriter(folder, info, num_good) if team.is_chief else None
    team.on_chief(writer.open if writer else None)
    if progress is not None:
        progress.update(num_good * len(teachers))
    try:
        for indices, rows in _teach(supernet, teachers, batches, compute, num_good):
            if not np.isfinite(rows).all():
                raise FloatingPointError(
                    f"logits of the images {indices[0]} to {indices[-1]} are not finite as "
                    f"{info['dtype']}; are the weights those of a trained network?"
                )
            if writer is not None:
                writer.write(rows)
            if progress is not None:
                progress.update(len(teachers) * len(indices))
            stopping.check()
    finally:
        if writer is not None:
            writer.close()
    team.wait()  # all rows are on disk before anybody reads them


def _teach(supernet, teachers, batches, compute, num_good):
    """Yields (indices, what all teachers say of these images [len(indices), K, ...]) of the batches
    from there on.
    """
    starts = np.cumsum([0, *map(len, batches.indices)]).tolist()
    team, todo = compute.team, range(starts.index(num_good), len(batches))
    largest = max(len(batches.indices[number]) for number in todo)
    output_shape = batches.task.shape(supernet.graph)
    shape, dtype = (
        (largest, len(teachers), *output_shape),
        np.dtype(bank_files.dtype_for(output_shape)),
    )
    subnetworks, options = (
        [entry.subnetwork for entry in teachers],
        ExecutionOptions(compute.dtype, norms_alone=True),
    )
    if (
        compute.use_xla or len(batches) < FEW_BATCHES
    ):  # a graph for each network would cost more than it saves
        make_teachers = functools.partial(
            _masked_teachers, supernet.with_options(options), subnetworks, batches, compute.use_xla
        )
    else:
        make_teachers = functools.partial(
            _cut_teachers, list(map(supernet.cut, subnetworks)), batches, options
        )

    def make_teach(member):
        """Returns a function that gives the rows of the next batch of this member, who takes every
        team.size-th one.
        """
        members_teachers, stream = make_teachers(), batches.images(todo[member :: team.size])

        def teach():
            rows, images = np.zeros(shape, dtype), next(stream, None)
            if images is None:
                return rows
            images = tf.constant(images)
            for k, teacher in enumerate(members_teachers):
                with np.errstate(
                    over="ignore"
                ):  # numbers that are not finite are said where the rows are taken
                    rows[: len(images), k] = teacher(images).numpy()
            return rows

        return teach

    teach = team.map_members(make_teach)
    for first in range(0, len(todo), team.size):
        table = np.zeros((team.size, *shape), dtype)
        for member, rows in team.map_members(lambda member: teach[member]()).items():
            table[member] = rows
        table = team.sum_over_workers(table)
        for number, rows in zip(todo[first : first + team.size], table):
            yield batches.indices[number], rows[: len(batches.indices[number])]


def _masked_teachers(supernet, subnetworks, batches, use_xla):
    """Returns for each teacher a function from stored images to outputs on this device: one network
    with its mask.
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
    """Returns for each teacher a function from stored images to outputs on this device: of its own
    cut network.
    """

    def teacher(model):
        forward = pure_forward(model, options)
        function = in_graph(
            lambda trainable, non_trainable, images: batches.task.of(
                forward(trainable, non_trainable, batches.normalise(images), True)[0]
            )
        )
        return functools.partial(
            function, *tf.nest.map_structure(tf.identity, read_variables(model))
        )

    return [teacher(model) for model in models]
