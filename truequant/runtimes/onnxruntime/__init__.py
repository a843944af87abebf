"""onnxruntime on the CPU: its dialect of ONNX, sessions, and proofs of what it computes."""
