"""Names of what can compute the encoders; see pipeline.encoders.runtime."""

AUTO, TORCH, ONNXRUNTIME = "auto", "torch", "onnxruntime"
RUNTIMES = (AUTO, TORCH, ONNXRUNTIME)
