"""ONNX, for ONNX Runtime, TensorRT and others."""

from pathlib import Path

from ekg.deploy.formats import Format, Reader, check_float32
from ekg.deploy.inference import Inference
from ekg.deploy.packages import quiet, require
from ekg.errors import EkgError, first_line


class Onnx(Format):
    """A .onnx file of any batch."""

    name, suffix, packages = "onnx", ".onnx", ("tf2onnx", "onnx", "onnxruntime")

    def write(self, source, path):
        check_float32(source, "ONNX")
        onnx = require("onnx")
        try:
            with quiet():
                Inference(source.model).export(
                    path, format="onnx", verbose=False, input_signature=[source.signature]
                )
            proto = onnx.load(path)
        except OSError:  # a full disk: it is named where the file is
            raise
        except Exception as error:  # whatever Keras and tf2onnx raise
            raise EkgError(
                f"`model` {source.model.name!r}: cannot be written as ONNX "
                f"({first_line(error)[:300]})."
            ) from None
        extra = [entry.name for entry in proto.graph.input][len(source.input_names) :]
        if extra:
            raise EkgError(
                f"`model` {source.model.name!r}: cannot be written as ONNX: a layer keeps "
                f"constants that the "
                f"converter takes for inputs ({', '.join(extra[:3])})."
            )
        _rename(proto.graph, source)
        onnx.save(proto, path)

    def open(self, path, source=None):
        return OnnxReader(path)


def _rename(graph, source):
    """Gives the inputs and outputs of an ONNX graph the names of the network's, and their batch a
    name.
    """
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
    """A .onnx file in ONNX Runtime on the CPU."""

    def __init__(self, path):
        runtime = require("onnxruntime")
        try:
            self._session = runtime.InferenceSession(
                str(Path(path)), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own kinds
            raise EkgError(
                f"{path}: ONNX Runtime cannot read it ({first_line(error)[:300]})."
            ) from None
        self.inputs = [entry.name for entry in self._session.get_inputs()]
        self.outputs = [entry.name for entry in self._session.get_outputs()]

    def make_pass(self, arrays):
        return lambda: self.run(arrays)

    def run(self, arrays):
        return self._session.run(self.outputs, dict(zip(self.inputs, arrays)))
