"""Products of two activations: which of them are integer sums, and an einsum as a batched matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from truequant.planning.actions import Action
from truequant.planning.capture import Call, Ref
from truequant.planning.ops import Role
from truequant.planning.values import Values


@dataclass(frozen=True, slots=True)
class Contraction:
    """An einsum of two operands as `(batch, rows, sum) @ (batch, sum, columns)`, each part a string of its letters.

    left, right, output: the letters of the two operands and of the result as written.
    """

    left: str
    right: str
    output: str
    batch: str
    rows: str
    columns: str
    summed: str


def is_product(call: Call) -> bool:
    """Whether a call multiplies two activations."""
    if call.op.role is Role.PRODUCT:
        return True
    return call.op.name == "matmul" and len(call.args) > 1 and all(isinstance(a, Ref) for a in call.args[:2])


def contraction(equation: Any, rank: Sequence[int] | None = None) -> Contraction | None:
    """The batched matrix product that an einsum equation is; None for any other.

    Every letter of an operand stands in it once, and is a batch axis, an axis of one operand, or summed over both.
    """
    if not isinstance(equation, str):
        return None
    operands, arrow, output = equation.replace(" ", "").partition("->")
    left, _, right = operands.partition(",")
    if not arrow:  # then each letter that stands once is kept, in the order of the alphabet
        output = "".join(sorted(c for c in operands if c != "," and operands.count(c) == 1))
    if not all(_is_letters(part) for part in (left, right, output)) or not set(output) <= set(left + right):
        return None
    if rank is not None and (len(left), len(right)) != tuple(rank):
        return None
    batch = "".join(c for c in output if c in left and c in right)
    rows = "".join(c for c in left if c in output and c not in right)
    columns = "".join(c for c in right if c in output and c not in left)
    summed = "".join(c for c in left if c in right and c not in output)
    summed_alone = set(left + right) - set(batch + rows + columns + summed)
    return None if summed_alone or not summed else Contraction(left, right, output, batch, rows, columns, summed)


def _is_letters(part: str) -> bool:
    """Whether a part names axes one by one, each once: no further operand, no dots."""
    return len(set(part)) == len(part) and not set(part) & {",", "."}


def product(call: Call, reads: tuple[int, ...], values: Values, *, floats: bool = False) -> tuple[Action, str]:
    """What quantization makes of a product. floats: of two operands that no integer op computes too."""
    operands = call.args[1:] if call.op.name == "einsum" else call.args
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if len(operands) != 2 or call.kwargs or not all(isinstance(o, Ref) for o in operands) or len(reads) != 2:
        return "float", "not a product of two activations"
    ranks = [values.rank(v) for v in reads]
    if call.op.name == "einsum" and contraction(call.args[0], ranks) is None:
        return "float", "no product of two batches of matrices"
    if min(ranks) < 2:
        return "float", "one operand is a vector"
    if not floats and not any(v in values.on_codes for v in reads) and not all(v in values.input_values for v in reads):
        return "float", "neither operand is computed in integer"
    if any(values.is_far(v) for v in reads):
        return "float", "one operand holds values that leave an 8-bit grid nothing else"
    return "product", "integer sums of products of two activations"
