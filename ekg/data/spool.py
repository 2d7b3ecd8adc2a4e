"""A temporary file of examples that are read by number."""

import os
import tempfile

import numpy as np

from ekg.errors import EkgError


class Spool:
    """Equally shaped rows in an unnamed file, read by number and never all in memory.

    Attributes:
        shape: shape of a row.
        count: number of rows.
    """

    def __init__(self, subject):
        """
        Args:
            subject: what messages call the data.
        """
        self.shape = ()
        self.count = 0
        self._subject = subject
        self._row_bytes = None
        self._dtype = None
        self._file = tempfile.TemporaryFile()

    def append(self, rows):
        """Writes the next rows, array [n, ...]; all rows must have the same shape and dtype."""
        if self._row_bytes is None:
            self.shape = rows.shape[1:]
            self._dtype = rows.dtype
            self._row_bytes = int(np.prod(self.shape)) * rows.dtype.itemsize
        if rows.shape[1:] != self.shape or rows.dtype != self._dtype:
            raise EkgError(
                f"{self._subject} has examples of several shapes or types: {self.shape} of "
                f"{self._dtype}, and {rows.shape[1:]} of {rows.dtype}; resize them to one."
            )
        try:
            self._file.write(np.ascontiguousarray(rows).data)
            self.count += len(rows)
        except OSError as error:
            raise EkgError(
                f"{self._subject} is written to a file to be read in any order, and that failed "
                f"({error.strerror}); make room, or set TMPDIR, or give an ekg.Data."
            ) from None

    def finish(self):
        """Flushes the file; call it after the last append()."""
        self._file.flush()

    def read(self, indices):
        """Returns the rows with these numbers; several threads may read at the same time."""
        rows = np.empty((len(indices), *self.shape), self._dtype)
        buffers = rows.reshape(len(indices), -1).view(np.uint8) if self._row_bytes else rows
        for buffer, index in zip(buffers, np.asarray(indices).tolist()):
            offset = index * self._row_bytes
            if os.preadv(self._file.fileno(), [buffer], offset) != self._row_bytes:
                raise EkgError(
                    f"{self._subject}: the file of its examples can no longer be read; start again."
                )
        return rows


class TextSpool:
    """Equally shaped rows of texts, which stay in memory; see Spool."""

    def __init__(self, subject):
        self.shape = ()
        self.count = 0
        self._subject = subject
        self._parts = []

    def append(self, rows):
        """Adds the next rows, array [n, ...] of bytes objects, all of one shape."""
        if not self._parts:
            self.shape = rows.shape[1:]
        if rows.shape[1:] != self.shape:
            raise EkgError(
                f"{self._subject} has examples of several shapes: {self.shape}, and "
                f"{rows.shape[1:]}; give all of them the same."
            )
        self._parts.append(rows)
        self.count += len(rows)

    def finish(self):
        """Joins the rows; call it after the last append()."""
        self._rows = np.concatenate(self._parts) if self._parts else np.empty(0, object)

    def read(self, indices):
        """Returns the rows with these numbers."""
        return self._rows[indices]
