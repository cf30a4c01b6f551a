"""ONNX Runtime with its telemetry off.

From version 1.29 it reports each process and model to its makers, and leaves an identifier in the folder for temporary
files, unless an environment variable is set when it is imported first. Nothing of ours may reach the network unasked.
"""

import os
from types import ModuleType

_VARIABLES = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")  # the second is an earlier name


def onnx_runtime() -> ModuleType:
    """The package onnxruntime. The process's environment is as it was afterwards."""
    before = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ.update(dict.fromkeys(_VARIABLES, "1"))
    try:
        import onnxruntime
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    onnxruntime.disable_telemetry_events()
    module: ModuleType = onnxruntime
    return module
