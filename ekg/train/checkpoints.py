"""Checkpoints of a training: the last two, each with its checksums, so that a damaged one is
noticed and not used.
"""

import json
import logging
import re

import tensorflow as tf

from ekg.errors import EkgError
from ekg.io import files

logger = logging.getLogger(__name__)

MAX_TO_KEEP = 2
NAME = re.compile(r"ckpt-(\d+)\.index")


class Checkpoints:
    """Saves and restores what a training needs to go on from any step."""

    def __init__(self, folder, **items):
        """
        Args:
            folder: pathlib.Path where they lie.
            items: what is kept, as tf.train.Checkpoint takes it.
        """
        self._folder = folder
        self._position = tf.Variable("", dtype=tf.string)
        self._checkpoint = tf.train.Checkpoint(position=self._position, **items)
        # checkpoints that are known to be undamaged, newest first; None before any was looked at
        self._good = None

    def restore(self):
        """Restores the last good checkpoint and returns the position it was saved with, or None if
        there is none.

        Raises:
            EkgError: all checkpoints there are damaged.
        """
        prefixes = self._find()
        good = self._good = [prefix for prefix in prefixes if self._is_good(prefix)]
        for prefix in prefixes:
            if prefix not in good:
                following = f"{good[0].name} is used instead" if good else "there is no other"
                logger.warning("%s: this checkpoint is damaged; %s.", prefix, following)
        if not good:
            if prefixes:
                raise EkgError(
                    f"{self._folder}: every checkpoint there is damaged; put them back, or start "
                    f"this phase anew with `restart` {self._folder.name}."
                )
            return None
        self._checkpoint.read(str(good[0])).assert_existing_objects_matched()
        return json.loads(self._position.numpy())

    def save(self, position):
        """Writes a checkpoint and removes those before the last two.

        Args:
            position: dict that goes to JSON; restore() returns it.

        Raises:
            EkgError: it cannot be written.
        """
        self._position.assign(json.dumps(position))
        prefix = (
            self._folder / f"ckpt-{max(map(_number, self._find(finished=False)), default=0) + 1}"
        )
        with files.writing(prefix):
            self._folder.mkdir(parents=True, exist_ok=True)
            sums = self._write(prefix)
        files.write_json(_sums_file(prefix), sums)  # without it the checkpoint does not count
        if self._good is None:
            self._good = [old for old in self._find() if old != prefix and self._is_good(old)]
        self._good = [prefix, *self._good][:MAX_TO_KEEP]
        for old in self._find(finished=False):
            if old not in self._good:
                for path in [
                    _sums_file(old),
                    *self._files(old),
                ]:  # without its checksums it does not count
                    path.unlink(missing_ok=True)

    def _write(self, prefix):
        """Writes the files of a checkpoint and returns {name: checksum}; raises OSError where they
        cannot be written.
        """
        try:
            self._checkpoint.write(str(prefix))
        except tf.errors.OpError as error:  # a full disk is ResourceExhaustedError there
            raise OSError(files.reason_of(error)) from None
        sums = {}
        for path in self._files(prefix):
            with open(path, "rb+") as file:
                files.sync(file)
            sums[path.name] = files.sha256(path)
        return sums

    def _find(self, finished=True):
        """Returns the checkpoints, newest first: those whose checksums were written, or all."""
        prefixes = [
            path.with_suffix("")
            for path in self._folder.glob("ckpt-*.index")
            if NAME.fullmatch(path.name)
        ]
        prefixes += [path.with_suffix("") for path in self._folder.glob("ckpt-*.json")]
        prefixes = sorted(
            {prefix for prefix in prefixes if not finished or _sums_file(prefix).exists()},
            key=_number,
        )
        return prefixes[::-1]

    def _files(self, prefix):
        return sorted(
            path for path in self._folder.glob(f"{prefix.name}.*") if path.suffix != ".json"
        )

    def _is_good(self, prefix):
        try:
            sums = files.read_json(_sums_file(prefix))
        except EkgError:
            return False
        return bool(sums) and all(
            (self._folder / name).is_file() and files.sha256(self._folder / name) == value
            for name, value in sums.items()
        )


def _sums_file(prefix):
    return prefix.with_suffix(".json")


def _number(prefix):
    return int(prefix.name.rpartition("-")[2])
