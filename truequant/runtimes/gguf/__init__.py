"""GGUF, the files of llama.cpp: codes and scales are copied, and read back. The only folder that imports gguf."""

from truequant.runtimes.gguf.export import export_gguf

__all__ = ["export_gguf"]
