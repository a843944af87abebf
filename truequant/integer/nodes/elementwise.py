"""Nodes that compute each code from codes at the same place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from truequant import numerics
from truequant.errors import ConversionError
from truequant.integer.edge import Edge
from truequant.integer.nodes.base import Binary, Node, Shape, Unary, broadcast
from truequant.integer.nodes.checks import check_clamp, check_entries, check_meaning, check_ratio, check_rule, check_tensor
from truequant.integer.storage import elementwise, scale_of, storage, table_dtype, zero_point_of
from truequant.kernels import sum_of_codes
from truequant.schemes import ArithmeticRule

_Qparams = tuple[Tensor, Tensor]
_Params = tuple[_Qparams, _Qparams, _Qparams]


@dataclass(frozen=True, slots=True, eq=False)
class _InPlace(Unary):
    """A node whose result has the shape of its input."""

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return shapes[0]


@dataclass(frozen=True, slots=True)
class Quantize(_InPlace):
    """`q = clamp(rint(x / s) + z, qmin, qmax)` of the value `input`; NaN gives code 0."""

    reading = "values"

    def check(self, edges: Mapping[str, Edge]) -> None:
        """It has nothing but names."""

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        (x,), edge = inputs, edges[self.output]
        scale, zero_point = scale_of(edge, x), zero_point_of(edge, x)
        return elementwise(lambda v: numerics.quantize(v, scale, zero_point, edge.qmin, edge.qmax), storage(edge), x)


@dataclass(frozen=True, slots=True)
class Dequantize(_InPlace):
    """The value `(q - z) * s` of the edge `input`."""

    writing = "values"

    def check(self, edges: Mapping[str, Edge]) -> None:
        """It has nothing but names."""

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        (x,), edge = inputs, edges[self.input]
        return numerics.dequantize(x, scale_of(edge, x), zero_point_of(edge, x))


@dataclass(frozen=True, slots=True, eq=False)
class _Pointwise(Binary):
    """Two edges, broadcast, of whose codes each pair gives one code."""

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return broadcast(self, *shapes)

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        a, b, y = (edges[name] for name in (self.left, self.right, self.output))
        like = inputs[0]
        params = _params(a, like), _params(b, like), _params(y, like)
        return elementwise(lambda q, r: self._codes(q.float(), r.float(), params), storage(y), *inputs)

    def _codes(self, a: Tensor, b: Tensor, params: _Params) -> Tensor:
        """Codes as floats, from codes as floats and the scale and zero point of left, right and output."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, eq=False)
class _ByRule(_Pointwise):
    """Two edges joined by a named rule."""

    rule: ArithmeticRule
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Add(_ByRule):
    """The sum of two edges by a named rule; `left` is the operand that the rule calls a."""

    def check(self, edges: Mapping[str, Edge]) -> None:
        check_clamp(self, self.low, self.high, edges[self.output])
        check_ratio(self, edges)
        check_rule(self, self.rule)

    def _codes(self, a: Tensor, b: Tensor, params: _Params) -> Tensor:
        if self.rule == "onnxruntime":
            codes = sum_of_codes(a, b, *params, self.low, self.high, reads_codes=True, writes_codes=True)
            if codes is not None:
                return codes
        return numerics.add(a, b, *params, self.low, self.high, self.rule)


@dataclass(frozen=True, slots=True)
class Mul(_ByRule):
    """The product of two edges by a named rule."""

    def check(self, edges: Mapping[str, Edge]) -> None:
        check_clamp(self, self.low, self.high, edges[self.output])
        check_ratio(self, edges, of_product=True)
        check_rule(self, self.rule)

    def _codes(self, a: Tensor, b: Tensor, params: _Params) -> Tensor:
        return numerics.mul(a, b, *params, self.low, self.high, self.rule)


@dataclass(frozen=True, slots=True)
class Sub(_Pointwise):
    """The difference `left - right` of two edges by a named rule: but for "xnnpack" dequantized, subtracted, quantized."""

    low: int
    high: int
    rule: ArithmeticRule = "portable"

    def check(self, edges: Mapping[str, Edge]) -> None:
        check_clamp(self, self.low, self.high, edges[self.output])
        check_rule(self, self.rule)

    def _codes(self, a: Tensor, b: Tensor, params: _Params) -> Tensor:
        return numerics.sub(a, b, *params, self.low, self.high, self.rule)


@dataclass(frozen=True, slots=True, eq=False)
class Lookup(Unary):
    """`entries[input]`: rows of codes `(rows, *row)`, in the storage of the output, by the integers of the value `input`."""

    entries: Tensor
    reading = "values"

    def check(self, edges: Mapping[str, Edge]) -> None:
        target = edges[self.output]
        check_tensor(self, "entries", self.entries, storage(target), None)
        check_entries(self, self.entries, target)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return (*shapes[0], *self.entries.shape[1:])

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        """Rows by number. ConversionError for a number that no row has."""
        (x,), rows = inputs, len(self.entries)
        if x.numel() and not (int(x.min()) >= 0 and int(x.max()) < rows):
            raise ConversionError(
                f"{self.label}: no such row", got=f"{int(x.min())} … {int(x.max())}", expected=f"0 … {rows - 1}"
            )
        return self.entries.to(x.device)[x.long()]


@dataclass(frozen=True, slots=True, eq=False)
class Constant(Node):
    """Codes that are stored, in the storage of the edge; float32 values where its output is none. like: a name of the same
    kind, whose axis 0 says how often they are repeated along theirs, which is 1.
    """

    output: str
    codes: Tensor
    like: str | None = None
    reading = "either"
    writing = "either"

    @property
    def reads(self) -> tuple[str, ...]:
        return () if self.like is None else (self.like,)

    def check(self, edges: Mapping[str, Edge]) -> None:
        target = edges.get(self.output)
        check_tensor(self, "codes", self.codes, torch.float32 if target is None else storage(target), None)
        if target is not None:
            check_entries(self, self.codes, target)
        elif not bool(torch.isfinite(self.codes).all()):
            raise ConversionError(f"{self.label}: values that are not finite")
        if self.like is not None and self.codes.shape[:1] != (1,):
            raise ConversionError(f"{self.label}: it is repeated", got=f"shape {tuple(self.codes.shape)}", expected="(1, …)")

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        if self.like is None:
            return tuple(self.codes.shape)
        if not shapes[0]:
            raise self.misfit(shapes[0], "an axis 0")
        return (shapes[0][0], *self.codes.shape[1:])

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        if self.like is None:
            return self.codes
        (like,) = inputs
        return self.codes.to(like.device).expand(like.shape[0], *self.codes.shape[1:])


@dataclass(frozen=True, slots=True, eq=False)
class Table(_InPlace):
    """`entries[q - qmin]` for each code of `input`: `(levels,)`, int16, or int32 where codes of the output do not fit it.
    `function` names what was tabulated.
    """

    entries: Tensor
    function: str

    def check(self, edges: Mapping[str, Edge]) -> None:
        source, target = edges[self.input], edges[self.output]
        check_tensor(self, "entries", self.entries, table_dtype(target), ((source.qmax - source.qmin + 1,),))
        check_entries(self, self.entries, target)

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        (x,), first, dtype = inputs, edges[self.input].qmin, storage(edges[self.output])
        entries = self.entries.to(x.device, dtype)
        return elementwise(lambda q: entries[q.int() - first], dtype, x)


@dataclass(frozen=True, slots=True)
class Clamp(_InPlace):
    """`clamp(q, low, high)`; scale and zero point are kept."""

    low: int
    high: int

    def check(self, edges: Mapping[str, Edge]) -> None:
        check_meaning(self, edges, clamped=True)
        check_clamp(self, self.low, self.high, edges[self.output])

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        # In int32: a bound of the output need not exist in the input's storage.
        return elementwise(lambda q: q.int().clamp(self.low, self.high), storage(edges[self.output]), *inputs)


def _params(edge: Edge, like: Tensor) -> _Qparams:
    return scale_of(edge, like), zero_point_of(edge, like)
