"""Parts of the sentences in which runtimes say where their codes might be others than the program's."""

from __future__ import annotations


def names_of(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def saturated(names: list[str]) -> str:
    """The exception of layers whose pair sums leave int16."""
    pairs = f"pairs saturate in {names_of(names)}"
    return f"x86 with AVX2, without VNNI: other codes, because {pairs}; target 'onnxruntime' is exact"
