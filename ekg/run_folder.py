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
SEARCH_PHASES = ("subset", "search", "slim")
SEARCH_FILES = ("supernet_param.pkl", "history.jsonl", "curves.jsonl", "phases.jsonl", "slimmed_param.pkl")
SEARCHED = SEARCH_FILES[-1]  # written last
# What a search of a given network does not depend on.
TRAINING_ARGUMENTS = ("finetune_teacher", "num_teacher", "temperature", "learning_rate", "decay_points", "decay_rate",
                      "warmup_epoch", "label_smoothing", "batch_size", "train_epoch", "baseline_epoch", "precision",
                      "sync_bn")


class RunFolder:
    """Everything a run leaves.

    Attributes:
        path: pathlib.Path of the folder.
    """

    def __init__(self, path, arguments, overwrite=False, cleans=True, flag="--train_path"):
        """Makes the folder, or opens it for the same arguments.

        Args:
            path: the folder.
            arguments: {name: value that goes to JSON} of everything that changes the result.
            overwrite: whether to remove an earlier run there.
            cleans: whether to remove what a killed run left of files it was writing.
            flag: by which the user named the folder.

        Raises:
            utils.UserError: the folder cannot be written, holds something else, or belongs to other arguments.
        """
        self.path, self._flag, self._events, self._logged = Path(path), flag, None, None
        file = self.path / ARGUMENTS_FILE
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in OWN_NAMES if cleans else ():
                for unfinished in self.path.glob(f".{name}.*"):
                    unfinished.unlink()
            is_run = file.exists() and f'"{utils.CHECKSUM}"'.encode() in file.read_bytes()
            if not is_run and any(self.path.iterdir()):
                raise utils.UserError(f"{path}: {flag} is not empty and holds no run; name a new folder.")
            if is_run and overwrite:
                self._remove_run()
            elif is_run:
                self._compare(utils.read_json(file), arguments)
            if not is_run or overwrite:
                utils.write_json(file, arguments)
        except OSError as error:
            raise utils.UserError(f"{path}: {flag} cannot be written ({error.strerror}).") from None

    def _remove_run(self):
        for name in OWN_NAMES[1:]:  # all but arguments.json: it says that this is a run, and is written over
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _compare(self, old, new):
        differing = _differences(old, new)
        if differing:
            overwriting = ", or start anew with --overwrite" if self._flag == "--train_path" else ""
            raise utils.UserError(f"{self.path}: holds a run with other arguments; repeat those, or name a new {self._flag}"
                                  f"{overwriting}:{differing}")

    def take_search(self, source):
        """Copies what the search of another run left, so that this run goes on behind it; see check_search.

        Its seconds and curves come along, so that the summary and the report are those of a whole run.
        """
        for name in SEARCH_FILES:
            if name in ("curves.jsonl", "phases.jsonl"):
                self._take_lines(source, name)
            else:
                data = (source / name).read_bytes()
                utils.write_whole(self / name, lambda file, data=data: file.write(data))

    def _take_lines(self, source, name):
        (self / name).unlink(missing_ok=True)
        for line in utils.read_json_lines(source / name):
            if line["phase"] in SEARCH_PHASES and name == "curves.jsonl":
                self.log_curves(line.pop("phase"), line.pop("step"), line)
            elif line["phase"] in SEARCH_PHASES:
                utils.append_json_line(self / name, line)

    def __truediv__(self, name):
        return self.path / name

    def log_curves(self, phase, step, values):
        """Appends {name: number} of one step or epoch to curves.jsonl and to the TensorBoard event files, once.

        A run that goes on calls it again for the last thing it finished: it may have been killed before its line was there.
        """
        file = self / "curves.jsonl"
        if self._logged is None:
            lines = utils.read_json_lines(file) if file.exists() else []
            self._logged = {(line["phase"], line["step"]) for line in lines}
            self._events = tf.summary.create_file_writer(str(self / "events"))
        if (phase, step) in self._logged:
            return
        utils.append_json_line(file, {"phase": phase, "step": step, **values})
        self._logged.add((phase, step))
        with self._events.as_default():
            for name, value in values.items():
                tf.summary.scalar(f"{phase}/{name}", value, step=step)
        self._events.flush()


def is_searched(path):
    """Returns whether a run in a folder is behind its search."""
    return any((path / name).exists() for name in (SEARCHED, "trained_param.pkl", "summary.json", "checkpoints/fine-tune"))


def check_search(source, arguments):
    """Checks that a run with these arguments would search as the run in another folder did.

    Args:
        source: the other folder, pathlib.Path.
        arguments: of this run, as RunFolder takes them.

    Raises:
        utils.UserError: it would not, or the folder holds no finished search, or a damaged one.
    """
    if not (source / ARGUMENTS_FILE).is_file():
        raise utils.UserError(f"--search_from {source}: is no run folder: there is no {ARGUMENTS_FILE} in it.")
    if not all((source / name).is_file() for name in SEARCH_FILES):
        raise utils.UserError(f"--search_from {source}: its search is not finished; start it again with the same command.")
    old = utils.read_json(source / ARGUMENTS_FILE)
    if old.get("trained_param") is None:  # that run trained the network itself
        old["trained_param"] = utils.sha256(source / "baseline_param.pkl")
    differing = _differences(*({name: value for name, value in each.items() if name not in TRAINING_ARGUMENTS}
                               for each in (old, arguments)))
    if differing:
        raise utils.UserError(f"--search_from {source}: was searched with other arguments; repeat those, or leave "
                              f"--search_from out:{differing}")
    read = {name: (utils.load_params if name.endswith(".pkl") else utils.read_json_lines)(source / name)
            for name in SEARCH_FILES}
    if not read["history.jsonl"] or read["history.jsonl"][-1]["rate"] > arguments["target_rate"]:
        raise utils.UserError(f"--search_from {source}: its history.jsonl is cut short; put the file back.")


def _differences(old, new):
    """Returns a line for every entry in which two dicts differ, or an empty text."""
    return "".join(f"\n  {name}: {old.get(name)!r} there, {new.get(name)!r} here"
                   for name in sorted(set(old) | set(new)) if old.get(name) != new.get(name))
