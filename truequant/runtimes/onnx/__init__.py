"""ONNX graphs, written and read without a runtime."""
