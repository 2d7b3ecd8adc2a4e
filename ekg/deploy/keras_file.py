"""Keras' own .keras file."""

import tensorflow as tf

from ekg.deploy import fresh
from ekg.deploy.format import Format, random_inputs
from ekg.deploy.plain import plain
from ekg.devices.compute import compiled
from ekg.errors import EkgError, first_line
from ekg.graph.calls import Graph
from ekg.graph.execute import ExecutionOptions, pure_forward, read_variables

AS_DEPLOYED = ExecutionOptions(tile_norms=False)


class KerasFile(Format):
    """A .keras file: architecture and weights, to load and train again.

    Its network is timed in TensorFlow in this process, with TensorFlow's own threads, and on the
    GPU if there is one.
    """

    name, suffix, folds, runtime = "keras", ".keras", False, "tensorflow"

    def __init__(self, use_xla=False):
        """
        Args:
            use_xla: whether to compile with XLA what is timed.
        """
        self._use_xla = use_xla

    def prepare(self, model, input_shape=None):
        return model, plain(model, input_shape)

    def write(self, source, path):
        try:
            source.model.save(path)
        except OSError:  # a full disk: the caller names the file
            raise
        except Exception as error:  # anything that Keras, or a user's layer, raises
            raise EkgError(
                f"`model` {source.model.name!r}: cannot be written as a .keras file "
                f"({first_line(error)})."
            ) from None

    def open(self, path, source=None):
        return fresh.FreshReader("keras", path, source)

    def timed(self, model, batch, threads=None, input_shape=None):
        if threads is not None:
            raise EkgError(
                "`threads` has no effect here: TensorFlow uses the threads of the process; leave "
                "it out."
            )
        forward = compiled(pure_forward(model, AS_DEPLOYED), "forward pass", self._use_xla)
        variables, graph = read_variables(model), Graph(model, input_shape)
        inputs = graph.structured_inputs(list(map(tf.constant, random_inputs(graph, batch))))

        def run():
            for output in tf.nest.flatten(forward(*variables, inputs, False)[0]):
                output.numpy()

        return run
