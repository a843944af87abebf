"""Float islands in ONNX."""
