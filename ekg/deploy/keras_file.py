"""Keras' own .keras file."""

from ekg.deploy import fresh
from ekg.deploy.formats import Format
from ekg.errors import EkgError, first_line


class KerasFile(Format):
    """A .keras file: architecture and weights, to load and train again."""

    name, suffix, folds = "keras", ".keras", False

    def write(self, source, path):
        try:
            source.model.save(path)
        except OSError:  # a full disk: it is named where the file is
            raise
        except Exception as error:  # whatever Keras, or a layer of the user's own, raises
            raise EkgError(
                f"`model` {source.model.name!r}: cannot be written as a .keras file "
                f"({first_line(error)})."
            ) from None

    def open(self, path, source=None):
        return fresh.FreshReader("keras", path, source)
