"""Modules that need a package which is not installed hold no doctest that could run."""

from importlib.util import find_spec

_TRITON = ["truequant/kernels/device.py", "truequant/kernels/cuda.py", "tests/unit/kernels/cuda_laws.py"]
collect_ignore = [] if find_spec("triton") else _TRITON
