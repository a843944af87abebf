"""Files that outlive the process: a safetensors container, canonical JSON, atomic writes. Reading trusts nothing."""

from truequant.files.atomic import atomic_write
from truequant.files.canonical_json import Json, dumps, loads
from truequant.files.container import container_bytes, parse_container, read_container, write_container

__all__ = [
    "Json", "atomic_write", "container_bytes", "dumps", "loads", "parse_container", "read_container", "write_container",
]  # fmt: skip
