"""The deployment formats by name, and the runtimes in which they are timed."""

from pathlib import Path

from ekg.deploy.keras_file import KerasFile
from ekg.deploy.litert import LiteRT
from ekg.deploy.onnx_file import Onnx
from ekg.deploy.saved_model import SavedModel
from ekg.errors import EkgError

FORMATS = {form.name: form for form in (KerasFile(), SavedModel(), LiteRT(), Onnx())}
# A network is timed in a runtime as the format of that runtime writes it; TensorFlow runs it as a
# .keras file holds it.
RUNTIMES = {form.runtime: form for form in FORMATS.values() if form.runtime}

LITERT = LiteRT.name
AUTO_RUNTIMES = "auto"  # TensorFlow, and LiteRT where it is installed and takes the network
INT8 = "int8"  # LiteRT with everything in 8 bits, among the formats of a run


def format_of(path, name=None):
    """Returns the Format of this name, or the one that belongs to the ending of a path.

    Raises:
        EkgError: there is none, or the ending is another format's.
    """
    suffix = Path(path).suffix
    if name is None:
        form = next((form for form in FORMATS.values() if form.suffix == suffix), None)
        if form is None:
            endings = ", ".join(
                f"{form.suffix or 'no ending'} ({form.name})" for form in FORMATS.values()
            )
            raise EkgError(
                f"`path` {path}: unknown ending; known are {endings}, or name the `format`."
            )
        return form
    if name not in FORMATS:
        raise EkgError(f"`format` must be one of {list(FORMATS)}; received {name!r}.")
    form = FORMATS[name]
    if form.suffix and form.suffix != suffix:
        raise EkgError(f"`path` {path}: a file of the format {name} ends with {form.suffix}.")
    return form


def runtime_named(name):
    """Returns the Format that is timed in the runtime of this name.

    Raises:
        EkgError: there is none.
    """
    if name not in RUNTIMES:
        raise EkgError(f"`runtime` must be one of {sorted(RUNTIMES)}; received {name!r}.")
    return RUNTIMES[name]
