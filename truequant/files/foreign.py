"""What kind of file begins with these bytes, where it is none of ours: who took the wrong one is told which it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Foreign:
    """Another format, and what reads it."""

    what: str
    fix: str


_ONNX = Foreign(
    "an ONNX model",
    "onnxruntime.InferenceSession runs it, tq.verify(None, path, batches) compares it; tq.load reads the .tq file beside it",
)
_TORCH = Foreign(
    "a file of torch.save or torch.export",
    "weights: model.load_state_dict(torch.load(path, weights_only=True)) before tq.prepare; a program: torch.export.load(path)",
)
_GGUF = Foreign("a GGUF file", "llama.cpp reads it")
_TFLITE = Foreign("a LiteRT (TensorFlow Lite) model", "an interpreter of LiteRT reads it")
_HDF5 = Foreign("an HDF5 file", "h5py reads it")


def foreign(start: bytes) -> Foreign | None:
    """The format of a file whose first eight bytes are `start`; None where they may be a container's.

    A container begins with the length of its table, at most a few MB: its last bytes are zeros.

    >>> foreign(b"PK\\x03\\x04\\x00\\x00\\x08\\x08").what
    'a file of torch.save or torch.export'
    >>> foreign((1000).to_bytes(8, "little")) is None
    True
    """
    if len(start) < 8 or not any(start[4:]):
        return None
    if start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
        return _TORCH
    if start.startswith(b"\x08") and start[1] < 32:  # protobuf's first field, the version of the IR
        return _ONNX
    if start.startswith(b"GGUF"):
        return _GGUF
    if start[4:] == b"TFL3":
        return _TFLITE
    if start.startswith(b"\x89HDF"):
        return _HDF5
    return None
