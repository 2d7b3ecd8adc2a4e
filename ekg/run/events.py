"""Event files for TensorBoard, which hold the same numbers as the curves of a run."""

import contextlib
import logging
import os
import socket
import time

import tensorflow as tf
from google.protobuf.message import DecodeError

from ekg.errors import first_line
from ekg.io import files

logger = logging.getLogger(__name__)

FORMAT = "brain.Event:2"  # first record of every file
PLUGIN = "scalars"
UNFINISHED = ".events.unfinished"  # not a name that TensorBoard reads


class EventFiles:
    """Writes curves into the event files of a folder.

    A process may be killed between a line of the curves and its event, or while it writes an event.
    So the lines of the curves decide: where earlier event files hold anything else, they are
    written again as one file. Files that cannot be written are given up; the run continues.
    """

    def __init__(self, folder, lines):
        """
        Args:
            folder: pathlib.Path.
            lines: list of the lines of the curves that are there: {"phase", "step", name: number}.
        """
        self._folder = folder
        self._writer = None  # opened with the first event, so that no file is empty
        self._is_given_up = False
        with self._tolerating():
            self._repair(lines)

    def add(self, line):
        """Writes the events of a line of the curves."""
        if self._is_given_up:
            return
        with self._tolerating():
            if self._writer is None:
                self._writer = self._open(_file_name())
            for event in events_of(line, time.time()):
                self._writer.write(event.SerializeToString())
            self._writer.flush()

    @contextlib.contextmanager
    def _tolerating(self):
        """Gives the files up where they cannot be written."""
        try:
            yield
        except (tf.errors.OpError, OSError) as error:
            is_os_error = isinstance(error, OSError)
            logger.warning(
                "%s: cannot be written (%s); the curves are in their own file alone.",
                self._folder,
                error.strerror if is_os_error else files.reason_of(error),
            )
            self._is_given_up = True

    def _open(self, name):
        self._folder.mkdir(exist_ok=True)
        writer = tf.io.TFRecordWriter(str(self._folder / name))
        header = tf.compat.v1.Event(wall_time=time.time(), file_version=FORMAT)
        writer.write(header.SerializeToString())
        return writer

    def _repair(self, lines):
        """Makes the event files hold the lines of the curves and nothing else."""
        present = sorted(self._folder.glob("*tfevents*"))
        found = [number for path in present for number in read(path)]
        expected = [event for line in lines for event in events_of(line, time.time())]
        if [number[:3] for number in found] == [_number_of(event)[:3] for event in expected]:
            return
        times = {(tag, step): wall_time for tag, step, _, wall_time in reversed(found)}
        for event in expected:
            tag, step, _, now = _number_of(event)
            event.wall_time = times.get((tag, step), now)
        if expected:
            with self._open(UNFINISHED) as writer:
                for event in expected:
                    writer.write(event.SerializeToString())
            os.replace(self._folder / UNFINISHED, self._folder / _file_name())
        for path in present:
            path.unlink()


def events_of(line, wall_time):
    """Returns a list with an event per number of a line of the curves.

    Args:
        line: {"phase", "step", name: number}.
        wall_time: seconds since the epoch.
    """
    metadata = tf.compat.v1.SummaryMetadata(
        plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name=PLUGIN)
    )
    events = []
    for name, number in line.items():
        if name in ("phase", "step"):
            continue
        value = tf.compat.v1.Summary.Value(
            tag=f"{line['phase']}/{name}",
            tensor=tf.make_tensor_proto(number, tf.float32),
            metadata=metadata,
        )
        summary = tf.compat.v1.Summary(value=[value])
        events.append(tf.compat.v1.Event(wall_time=wall_time, step=line["step"], summary=summary))
    return events


def read(path):
    """Returns [(tag, step, number as float32 bytes, wall time)] of a file, up to its first damaged
    record.
    """
    numbers = []
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            if event.summary.value:
                numbers.append(_number_of(event))
    except (tf.errors.OpError, DecodeError, TypeError, ValueError) as error:
        logger.debug("%s: %s", path, first_line(error))
    return numbers


def _number_of(event):
    value = event.summary.value[0]
    return value.tag, event.step, tf.make_ndarray(value.tensor).tobytes(), event.wall_time


def _file_name():
    """Returns a new name; TensorBoard reads files in the order of their names."""
    return f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
