"""Names of what can compute the encoders; see pipeline.encoders.runtime."""

AUTO, TORCH, ONNXRUNTIME = "auto", "torch", "onnxruntime"
RUNTIMES = (AUTO, TORCH, ONNXRUNTIME)


def name_of(runtime: str) -> str:
    """The name of a recorded runtime, which has its version behind it: `torch` of `torch 2.9.0`."""
    return runtime.split(" ")[0]
