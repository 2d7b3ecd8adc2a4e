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

    def __init__(self, what):
        self.shape = ()
        self.count = 0
        self._what = what
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
                f"`{self._what}` has examples of several shapes or types: {self.shape} of "
                f"{self._dtype}, and {rows.shape[1:]} of {rows.dtype}; resize them to one."
            )
        try:
            self._file.write(np.ascontiguousarray(rows).data)
            self.count += len(rows)
        except OSError as error:
            raise EkgError(
                f"`{self._what}` is written to a file to be read in any order, and that failed "
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
                    f"`{self._what}`: the file of its examples can no longer be read; start again."
                )
        return rows
