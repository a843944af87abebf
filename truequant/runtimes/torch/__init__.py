"""torch.export: a program as float ops of torch between quantizing ops."""

from truequant.runtimes.torch.program import ExportedEdges, ExportedModel

__all__ = ["ExportedEdges", "ExportedModel"]
