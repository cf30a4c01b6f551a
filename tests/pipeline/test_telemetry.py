"""ONNX Runtime reports nothing: no upload is prepared, and no identifier of the machine is written."""

import os
import subprocess
import sys

CODE = """
import os
from pipeline.encoders.onnx_runtime import onnx_runtime
import onnx
from onnx import helper, TensorProto

value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [value("x")], [value("y")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
session = onnx_runtime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
import numpy as np
assert session.run(None, {"x": np.float32([2])})[0].tolist() == [-2]
print(sorted(name for name in os.environ if "TELEMETRY" in name))
"""


def test_no_identifier_is_written_and_the_environment_stays_as_it_is(tmp_path):
    places = {name: str(tmp_path) for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    found = subprocess.run(
        [sys.executable, "-c", CODE], env=environment | places, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
    assert list(tmp_path.rglob("*")) == []
