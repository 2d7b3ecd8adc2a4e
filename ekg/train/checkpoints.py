"""Training checkpoints: keeps the last two, with checksums, so that damaged ones are not used."""

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
    """Saves and restores all that a training needs to resume from any step."""

    def __init__(self, folder, **items):
        """
        Args:
            folder: pathlib.Path of the folder with the checkpoints.
            items: objects to save, as tf.train.Checkpoint takes them.
        """
        self._folder = folder
        self._position = tf.Variable("", dtype=tf.string)
        self._checkpoint = tf.train.Checkpoint(position=self._position, **items)
        # Checkpoints that are known to be intact, newest first; None before the first look
        self._good = None

    def restore(self):
        """Restores the newest intact checkpoint; returns the position saved with it, or None.

        Raises:
            EkgError: there are checkpoints, and all of them are damaged.
        """
        prefixes = self._find()
        good = [prefix for prefix in prefixes if self._is_good(prefix)]
        self._good = good
        for prefix in prefixes:
            if prefix not in good:
                remedy = f"{good[0].name} is used instead" if good else "there is no other"
                logger.warning("%s: this checkpoint is damaged; %s.", prefix, remedy)
        if not good:
            if prefixes:
                raise EkgError(
                    f"{self._folder}: every checkpoint there is damaged; put them back, or start "
                    f"this phase again with `restart` {self._folder.name}."
                )
            return None
        self._checkpoint.read(str(good[0])).assert_existing_objects_matched()
        return json.loads(self._position.numpy())

    def save(self, position):
        """Writes a checkpoint and removes all but the last two.

        Args:
            position: JSON dict that restore() returns.

        Raises:
            EkgError: the checkpoint cannot be written.
        """
        self._position.assign(json.dumps(position))
        last_number = max(map(_number, self._find(finished=False)), default=0)
        prefix = self._folder / f"ckpt-{last_number + 1}"
        with files.writing(prefix):
            self._folder.mkdir(parents=True, exist_ok=True)
            sums = self._write(prefix)
        files.write_json(_sums_file(prefix), sums)  # last: it makes the checkpoint valid
        if self._good is None:
            self._good = [old for old in self._find() if old != prefix and self._is_good(old)]
        self._good = [prefix, *self._good][:MAX_TO_KEEP]
        for old in self._find(finished=False):
            if old not in self._good:
                # The checksums go first, so that no incomplete checkpoint looks valid.
                for path in (_sums_file(old), *self._files(old)):
                    path.unlink(missing_ok=True)

    def _write(self, prefix):
        """Writes the files of a checkpoint and returns {name: checksum}.

        Raises:
            OSError: the files cannot be written.
        """
        try:
            self._checkpoint.write(str(prefix))
        except tf.errors.OpError as error:  # TensorFlow raises its own errors for a full disk
            raise OSError(files.reason_of(error)) from None
        sums = {}
        for path in self._files(prefix):
            with open(path, "rb+") as file:
                files.sync(file)
            sums[path.name] = files.sha256(path)
        return sums

    def _find(self, finished=True):
        """Returns the prefixes of all checkpoints, newest first.

        Args:
            finished: whether to leave out those whose checksums were not written.
        """
        paths = [path for path in self._folder.glob("ckpt-*.index") if NAME.fullmatch(path.name)]
        paths += self._folder.glob("ckpt-*.json")
        prefixes = {path.with_suffix("") for path in paths}
        if finished:
            prefixes = {prefix for prefix in prefixes if _sums_file(prefix).exists()}
        return sorted(prefixes, key=_number, reverse=True)

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
