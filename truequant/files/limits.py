"""Bounds that a file must keep before anything of its size is allocated."""

from __future__ import annotations

MAX_HEADER_BYTES = 64 * 2**20  # names, shapes and the JSON of a container
MAX_TENSORS = 100_000
MAX_RANK = 16
MAX_NAME_LENGTH = 1024
MAX_JSON_CHARACTERS = 64 * 2**20
MAX_JSON_DEPTH = 64
