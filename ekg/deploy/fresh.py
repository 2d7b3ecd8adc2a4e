"""Runs an exported network in a new Python process, with TensorFlow and without this program."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from ekg.deploy.format import Reader
from ekg.errors import EkgError
from ekg.process import stopping

# The program of the new process; its arguments are format, path, file of inputs, file for outputs.
PROGRAM = """
import sys
import numpy as np
import tensorflow as tf
form, path, given, result = sys.argv[1:]
with np.load(given) as file:
    arrays = [tf.constant(file[name]) for name in sorted(file.files, key=int)]
if form == "keras":
    model = tf.keras.models.load_model(path, compile=False)
    structure = getattr(model, "_functional", None) or model
    inputs = tf.keras.tree.pack_sequence_as(structure._inputs_struct, arrays)
    outputs = model(inputs, training=False)
else:
    loaded = tf.saved_model.load(path)
    entry = loaded.serve
    if hasattr(entry, "concrete_functions"):
        entry = entry.concrete_functions[0]
    outputs = loaded.serve(tf.nest.pack_sequence_as(entry.structured_input_signature[0][0], arrays))
values = enumerate(tf.nest.flatten(outputs))
np.savez(result, **{str(place): np.asarray(value) for place, value in values})
"""


def _plain(array):
    """Returns an array as a file without pickles can hold it: texts of one length."""
    return array.astype("S") if array.dtype == object else array


class FreshReader(Reader):
    """A .keras file or a SavedModel in a new process; each run() starts one."""

    def __init__(self, form, path, source):
        self._form, self._path = form, Path(path)
        self.inputs, self.outputs = source.input_names, source.output_names

    def run(self, arrays):
        with tempfile.TemporaryDirectory(prefix="ekg-") as folder:
            given, result = Path(folder) / "given.npz", Path(folder) / "result.npz"
            np.savez(given, **{str(place): _plain(array) for place, array in enumerate(arrays)})
            command = [
                sys.executable,
                "-I",
                "-c",
                PROGRAM,
                self._form,
                str(self._path.absolute()),
                str(given),
                str(result),
            ]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
            stopping.check()  # a signal to the group ends the process, too
            if done.returncode:
                reason = [line for line in done.stderr.strip().splitlines() if line.strip()][
                    -1:
                ] or ["no message"]
                if done.returncode < 0:
                    reason = [f"it was ended by signal {-done.returncode}"]
                raise EkgError(
                    f"{self._path}: a Python process with TensorFlow only cannot read it "
                    f"({reason[0].strip()[:300]})."
                )
            with np.load(result) as file:
                return [file[str(place)] for place in range(len(file.files))]
