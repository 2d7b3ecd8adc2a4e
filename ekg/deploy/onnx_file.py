"""ONNX, for ONNX Runtime, TensorRT and others."""

from pathlib import Path

from ekg.deploy.format import Format, Reader, check_float32
from ekg.deploy.inference import Inference
from ekg.deploy.packages import quiet, require
from ekg.errors import EkgError, first_line


class Onnx(Format):
    """A .onnx file of any batch."""

    name, suffix, packages = "onnx", ".onnx", ("tf2onnx", "onnx", "onnxruntime")
    runtime, timed_with = "onnxruntime", ("onnxruntime", "tf2onnx")

    def write(self, source, path):
        check_float32(source, "ONNX")
        onnx = require("onnx")
        try:
            with quiet():
                Inference(source.model).export(
                    path, format="onnx", verbose=False, input_signature=[source.signature]
                )
            proto = onnx.load(path)
        except OSError:  # a full disk: the caller names the file
            raise
        except Exception as error:  # anything that Keras and tf2onnx raise
            raise EkgError(
                f"`model` {source.model.name!r}: cannot be written as ONNX "
                f"({first_line(error)[:300]})."
            ) from None
        extra = [entry.name for entry in proto.graph.input][len(source.input_names) :]
        if extra:
            raise EkgError(
                f"`model` {source.model.name!r}: cannot be written as ONNX: a layer keeps "
                f"constants that the converter takes for inputs ({', '.join(extra[:3])})."
            )
        _rename(proto.graph, source)
        onnx.save(proto, path)

    def open(self, path, source=None):
        return OnnxReader(path)


def _rename(graph, source):
    """Renames the inputs and outputs of an ONNX graph as in the network, and names their batch."""
    renamed = dict(zip([entry.name for entry in graph.input], source.input_names))
    outputs = dict(zip([entry.name for entry in graph.output], source.output_names))
    taken = (
        {name for node in graph.node for name in (*node.input, *node.output)}
        - set(renamed)
        - set(outputs)
    )
    renamed = {old: new for old, new in (renamed | outputs).items() if new not in taken}
    for entry in (*graph.input, *graph.output):
        entry.name = renamed.get(entry.name, entry.name)
        if entry.type.tensor_type.shape.dim:
            entry.type.tensor_type.shape.dim[0].dim_param = "batch"
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = renamed.get(name, name)


class OnnxReader(Reader):
    """A .onnx file in ONNX Runtime: results from the CPU, times from the GPU if its package and the
    machine have one.
    """

    def __init__(self, path):
        self._path = Path(path)
        self._session = self._load(["CPUExecutionProvider"])
        self.inputs = [entry.name for entry in self._session.get_inputs()]
        self.outputs = [entry.name for entry in self._session.get_outputs()]

    def _load(self, providers, threads=None):
        runtime = require("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            return runtime.InferenceSession(str(self._path), options, providers)
        except Exception as error:  # ONNX Runtime's own types
            raise EkgError(
                f"{self._path}: ONNX Runtime cannot read it ({first_line(error)[:300]})."
            ) from None

    def make_pass(self, arrays, threads=None):
        session = self._load(require("onnxruntime").get_available_providers(), threads)
        given = dict(zip(self.inputs, arrays))
        return lambda: session.run(None, given)

    def run(self, arrays):
        return self._session.run(self.outputs, dict(zip(self.inputs, arrays)))
