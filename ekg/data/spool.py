"""Rows of a user's examples in a file, read by their numbers."""

import os
import tempfile

import numpy as np

from ekg.errors import EkgError


class Spool:
    """Rows in a file without a name, read by their numbers, and never in memory together."""

    def __init__(self, what):
        self._what, self._row, self._dtype = what, None, None
        self.shape, self.count = (), 0
        self._file = tempfile.TemporaryFile()

    def append(self, rows):
        """Writes the next rows, array [number, ...]; all must have one shape and one type."""
        if self._row is None:
            self.shape, self._dtype = rows.shape[1:], rows.dtype
            self._row = int(np.prod(self.shape)) * rows.dtype.itemsize
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
        self._file.flush()

    def read(self, indices):
        """Returns the rows with these numbers; several threads may ask at once."""
        rows = np.empty((len(indices), *self.shape), self._dtype)
        views = rows.reshape(len(indices), -1).view(np.uint8) if self._row else rows
        for view, index in zip(views, np.asarray(indices).tolist()):
            if os.preadv(self._file.fileno(), [view], index * self._row) != self._row:
                raise EkgError(
                    f"`{self._what}`: the file of its examples cannot be read any more; start "
                    "again."
                )
        return rows
