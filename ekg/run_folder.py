"""The folder that holds everything a run leaves: arguments.json first, then what each phase makes."""

import shutil
from pathlib import Path

import tensorflow as tf

import utils

ARGUMENTS_FILE = "arguments.json"
# What --overwrite removes; whatever else a user put into the folder stays.
OWN_NAMES = (ARGUMENTS_FILE, "baseline_param.pkl", "supernet_param.pkl", "slimmed_param.pkl", "trained_param.pkl",
             "trained_param.keras", "unfinished.keras", "history.jsonl", "search_state.pkl", "curves.jsonl", "phases.jsonl",
             "summary.json", "report.png", "report.html", "condition.json", "memory_bank", "checkpoints", "events")


class RunFolder:
    """Everything a run leaves.

    Attributes:
        path: pathlib.Path of the folder.
    """

    def __init__(self, path, arguments, overwrite=False, cleans=True):
        """Makes the folder, or opens it for the same arguments.

        Args:
            path: the folder.
            arguments: {name: value that goes to JSON} of everything that changes the result.
            overwrite: whether to remove an earlier run there.
            cleans: whether to remove what a killed run left of files it was writing.

        Raises:
            utils.UserError: the folder cannot be written, holds something else, or belongs to other arguments.
        """
        self.path, self._events = Path(path), None
        file = self.path / ARGUMENTS_FILE
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in OWN_NAMES if cleans else ():
                for unfinished in self.path.glob(f".{name}.*"):
                    unfinished.unlink()
            is_run = file.exists() and f'"{utils.CHECKSUM}"'.encode() in file.read_bytes()
            if not is_run and any(self.path.iterdir()):
                raise utils.UserError(f"{path}: --train_path is not empty and holds no run; name a new folder.")
            if is_run and overwrite:
                self._remove_run()
            elif is_run:
                self._compare(utils.read_json(file), arguments)
            if not is_run or overwrite:
                utils.write_json(file, arguments)
        except OSError as error:
            raise utils.UserError(f"{path}: --train_path cannot be written ({error.strerror}).") from None

    def _remove_run(self):
        for name in OWN_NAMES[1:]:  # all but arguments.json: it says that this is a run, and is written over
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _compare(self, old, new):
        differing = [f"\n  {name}: {old.get(name)!r} there, {new.get(name)!r} here"
                     for name in sorted(set(old) | set(new)) if old.get(name) != new.get(name)]
        if differing:
            raise utils.UserError(f"{self.path}: holds a run with other arguments; repeat those, name a new --train_path, "
                                  f"or start anew with --overwrite:{''.join(differing)}")

    def __truediv__(self, name):
        return self.path / name

    def log_curves(self, phase, step, values):
        """Appends {name: number} of one step or epoch to curves.jsonl and to the TensorBoard event files."""
        utils.append_json_line(self / "curves.jsonl", {"phase": phase, "step": step, **values})
        if self._events is None:
            self._events = tf.summary.create_file_writer(str(self / "events"))
        with self._events.as_default():
            for name, value in values.items():
                tf.summary.scalar(f"{phase}/{name}", value, step=step)
        self._events.flush()
