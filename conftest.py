"""Modules that need a package which is not installed hold no doctest that could run."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["truequant/kernels/device.py", "truequant/kernels/cuda.py"]
