"""OpenVINO on the CPU: its dialect of ONNX, and its compiled models."""
