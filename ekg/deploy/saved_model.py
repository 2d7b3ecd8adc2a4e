"""TensorFlow's SavedModel, for TensorFlow Serving and other converters."""

import tensorflow as tf

from ekg.deploy import fresh
from ekg.deploy.format import Format
from ekg.deploy.inference import Inference
from ekg.deploy.packages import quiet
from ekg.errors import EkgError, first_line
from ekg.io import files


class SavedModel(Format):
    """A folder with the graph and the weights; its endpoint is serve()."""

    name = "saved_model"

    def write(self, source, path):
        try:
            with quiet():
                network = Inference(source.model)
                network.export(
                    path, format="tf_saved_model", verbose=False, input_signature=[source.signature]
                )
        except tf.errors.ResourceExhaustedError as error:  # a full disk: the caller names the file
            raise OSError(files.reason_of(error)) from None
        except OSError:
            raise
        except Exception as error:  # anything that Keras and TensorFlow raise
            raise EkgError(
                f"`model` {source.model.name!r}: cannot be written as a SavedModel "
                f"({first_line(error)})."
            ) from None

    def open(self, path, source=None):
        return fresh.FreshReader("saved_model", path, source)
