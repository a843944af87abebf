"""`Plan`: every decision about a model, as a value."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from truequant.files import dumps, loads
from truequant.schemes import ArithmeticRule, QConfig, QuantScheme, Target

Action = Literal[
    "layer", "norm", "affine", "product", "add", "sub", "mul", "table", "lookup", "average", "pool", "clamp", "concat",
    "movement", "resize", "identity", "float", "weighted", "weight_only", "dynamic",
]  # fmt: skip
FLOAT: frozenset[str] = frozenset(("float", "weight_only", "dynamic"))
"""Actions whose result is a float that a quantizer may follow."""
Kind = Literal["input", "activation", "output", "weight"]


@dataclass(frozen=True, slots=True)
class QuantizerPlan:
    """A quantizer: submodule `slot` of the quantizers of module `owner`. `name` is `owner.slot`.

    follows: the site whose grid it shares in name; one_sided: its values are never negative.
    channels: how many scales a per-channel scheme has, or the shape of per-group ones; None for one.
    tied: a weight's scale belongs to the weight with its BatchNorm folded in.
    """

    name: str
    owner: str
    slot: str
    kind: Kind
    scheme: QuantScheme
    channels: int | tuple[int, ...] | None = None
    tied: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """A call site: the `ordinal`-th call of `op` among `owner`'s own calls, in the frame of calls `frame`.

    reads: the quantizers of the activations that it reads, in order, None for a float.
    emits: the quantizer on whose grid its integer result lies in evaluation.
    quantizer: the quantizer that runs on what this site returns.
    fused: names of the sites that are computed with this one; norm: the one of them that is a BatchNorm.
    fused_into: the site that this one is computed with.
    minimum, maximum: the clamp of the result, in values.
    train_ordinal: the ordinal in training; None where the site lives in evaluation only.
    rank, train_rank: the same, counted as where a forward runs, without calls that read constants alone (see
    `truequant.planning.constants`); None in plans that were made before calls were counted so.
    part: which of several tensors that it returns passes through the quantizer.
    weights: of a float layer, its parameters that are quantized: `(name, quantizer)`.
    dynamic: of a linear layer whose input is quantized token by token at run time, the scheme of the tokens.
    carries: where the quantizer sits that runs in one training pass with this op: here, or at a clamp right behind it.
    writes_back: an in-place op whose result is read through the tensor that it overwrote.
    """

    name: str
    owner: str
    op: str
    ordinal: int
    frame: tuple[int, ...]
    leaf: bool
    action: Action
    reason: str
    train_ordinal: int | None = None
    reads: tuple[str | None, ...] = ()
    weight: str | None = None
    emits: str | None = None
    quantizer: str | None = None
    fused: tuple[str, ...] = ()
    norm: str | None = None
    fused_into: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    writes_back: bool = False
    part: int | None = None
    carries: str | None = None
    rule: str | None = None
    weights: tuple[tuple[str, str], ...] = ()
    dynamic: QuantScheme | None = None
    rank: int | None = None
    train_rank: int | None = None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input tensor: where it stands (position or keyword), its quantizer, dtype, shape with None where dynamic, and the
    sizes of the example.
    """

    where: int | str
    name: str
    dtype: str
    shape: tuple[int | None, ...]
    quantizer: str | None
    example: tuple[int, ...] = ()

    def made_up(self, batch: int | None = 2) -> list[int]:
        """Sizes to try: those of the example, with a batch of `batch` where any goes; None keeps the example's."""
        sizes = list(self.example) or [2 if n is None else n for n in self.shape]
        if batch is not None and self.shape[:1] == (None,):
            sizes[0] = batch
        return sizes


@dataclass(frozen=True, slots=True)
class OwnerPlan:
    """What a module is swapped for: `multiple` where one forward calls it more than once."""

    name: str
    leaf: bool
    multiple: bool
    counts: tuple[tuple[str, int, int], ...] = ()
    """Calls of each op in one call of the owner: `(op, in evaluation, in training)`."""
    calls: tuple[tuple[str, int, int], ...] | None = None
    """The same without calls that read constants alone: one more is a call that was not planned.

    None where nobody looks: a module whose one call is its own, a container of torch's, and every owner of a plan that was made
    before calls were counted so.
    """


@dataclass(frozen=True, slots=True)
class Plan:
    """Frozen, printable, comparable. `prepare` executes it and decides nothing."""

    config: QConfig
    sites: tuple[Site, ...]
    quantizers: tuple[QuantizerPlan, ...]
    inputs: tuple[TensorSpec, ...]
    owners: tuple[OwnerPlan, ...]
    uncalled: tuple[str, ...] = ()
    """Layers that no example input called."""
    notes: tuple[str, ...] = ()
    constants: tuple[tuple[int | str, str], ...] = ()
    """Arguments of the example that are no tensors: where, and the JSON text of a number, string, bool or None."""

    @property
    def target(self) -> Target:
        return self.config.target

    def site(self, name: str) -> Site:
        """The site of a name."""
        return next(s for s in self.sites if s.name == name)

    def quantizer(self, name: str) -> QuantizerPlan:
        """The quantizer of a name."""
        return next(q for q in self.quantizers if q.name == name)

    def arithmetic(self, site: Site) -> ArithmeticRule:
        """The named rule of a site: its target's, and "portable" over codes of more than 8 bits, which no target adds."""
        if site.action not in ("add", "mul", "pool"):
            return self.target.arithmetic
        wide = any(self.quantizer(name).scheme.dtype.bits > 8 for name in (*site.reads, site.emits) if name is not None)
        return "portable" if wide else self.target.arithmetic

    def in_float(self) -> tuple[Site, ...]:
        """Sites left in float."""
        return tuple(s for s in self.sites if s.action == "float")

    def with_scheme(self, quantizer: str, scheme: QuantScheme) -> Plan:
        """A copy in which one quantizer has another scheme of the same granularity: a decision edited by hand.

        `prepare(model, example_inputs, edited)` executes it. Raises `PlanError` for a name that is not there and `SchemeError`
        for a scheme that the quantizer cannot have.
        """
        from truequant.planning.consistency import with_scheme

        return with_scheme(self, quantizer, scheme)

    def to_json(self) -> str:
        """The plan as text, its config included. `SchemeError` for a rule whose selector has no importable name."""
        from truequant.planning.codec import plan_to_json

        return dumps(plan_to_json(self))

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan of a text that anybody may have written. `FileError` says what is wrong, and where."""
        from truequant.planning.codec import plan_from_json
        from truequant.planning.consistency import check_plan

        found = plan_from_json(loads(text, "plan"))
        check_plan(found, "plan")
        return found

    def diff(self, other: Plan) -> tuple[str, ...]:
        """What `other` decides differently, a line each: sites, quantizers and inputs by name; () where both are equal."""
        lines = []
        for kind, ours, theirs in (
            ("quantizer", self.quantizers, other.quantizers),
            ("site", self.sites, other.sites),
            ("input", self.inputs, other.inputs),
        ):
            a: dict[str, Any] = {item.name: item for item in ours}
            b: dict[str, Any] = {item.name: item for item in theirs}
            lines += [f"{kind} '{name}' is gone" for name in a if name not in b]
            lines += [f"{kind} '{name}' is new" for name in b if name not in a]
            for name in (n for n in a if n in b):
                changed = [f.name for f in fields(a[name]) if getattr(a[name], f.name) != getattr(b[name], f.name)]
                lines += [f"{kind} '{name}': {f} {getattr(a[name], f)} -> {getattr(b[name], f)}" for f in changed]
        return tuple(lines)

    def __str__(self) -> str:
        schemes = {q.name: str(q.scheme) for q in self.quantizers}
        rows = [("site", "op", "weight", "reads", "result", "why")]
        for spec in self.inputs:
            rows.append((spec.name, "input", "", "", schemes.get(spec.quantizer or "", "float"), "model input"))
        for s in self.sites:
            result = schemes.get(s.emits or s.quantizer or "", "float" if s.action in FLOAT or s.action == "layer" else "")
            if s.fused_into:
                result = f"in {s.fused_into}"
            reads = ", ".join("float" if r is None else r for r in s.reads) if s.dynamic is None else str(s.dynamic)
            why = s.reason if s.rule is None or s.rule in s.reason else f"{s.reason}; {s.rule}"
            rows.append((s.name, s.op, schemes.get(s.weight or "".join(q for _, q in s.weights[:1]), ""), reads, result, why))
        return "\n".join([*_aligned(rows), *(f"note: {n}" for n in self.notes)])


def _aligned(rows: list[tuple[Any, ...]]) -> list[str]:
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(str(cell).ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * min(120, sum(widths) + 2 * len(widths)), *lines[1:]]
