"""Files that outlive the process: a safetensors container, canonical JSON, atomic writes. Reading trusts nothing."""

from truequant.files.atomic import atomic_write
from truequant.files.canonical_json import Json, dumps, loads
from truequant.files.container import (
    bytes_of,
    container_bytes,
    parse_container,
    read_container,
    read_header,
    write_container,
)
from truequant.files.folder import lock_folder, remove_temporary

__all__ = [
    "Json", "atomic_write", "bytes_of", "container_bytes", "dumps", "loads", "lock_folder", "parse_container",
    "read_container", "read_header", "remove_temporary", "write_container",
]  # fmt: skip
