"""What of a plan no program or no ONNX file holds, and what its owner can do about it."""

from __future__ import annotations

from collections.abc import Sequence

from truequant.planning import Plan, Site, is_loss

_NAMED = 5
"""Sites that a sentence names."""
_PACKED = ("_pack_padded_sequence", "_pad_packed_sequence")


def left_behind(decided: Plan) -> str | None:
    """What `convert` or `export_onnx` will refuse, said before anybody trains."""
    refused = decided.refused()
    losses = tuple(site for site in refused if is_loss(site.op))
    others = tuple(site for site in refused if site not in losses)
    lines = []
    for sites, what, fix in (
        (losses, "tq.convert will refuse this model: no program computes a loss",
         "prepare with example inputs without labels; training may have them"),
        (others, "tq.convert will refuse this model: no program holds", fix_of(others)),
        (decided.without_onnx(), "tq.export_onnx will refuse this model: no ONNX form is known of",
         "int8(x) and int8.save(path) hold them"),
    ):  # fmt: skip
        if sites:
            lines.append(f"{what} {named(sites)}\n  fix:      {fix}")
    return "\n".join(lines) or None


def named(sites: Sequence[Site]) -> str:
    """Sites with torch's names of what is refused of them."""
    found = [f"'{s.name}' ({', '.join(s.refused or s.without_onnx)})" for s in sites]
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more


def fix_of(refused: Sequence[Site]) -> str:
    """What to write instead of ops that no program holds."""
    if any(site.op in _PACKED for site in refused):
        return (
            "give the recurrent layer padded sequences, and take the last step of each by its length: "
            "y[torch.arange(len(y)), lengths - 1] (in one direction these are the numbers of a packed sequence)"
        )
    return "write them as ops that truequant.planning.float_ops lists, or tq.register_op a function of your own"
