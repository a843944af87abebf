"""`Plan`: every decision about a model, as a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from truequant.errors import FileError, PlanError
from truequant.files import Json, dumps, loads
from truequant.planning.actions import NAMED_RULE, Action
from truequant.planning.codec import from_json, stored, to_json
from truequant.planning.consistency import check_records, edited
from truequant.planning.records import OwnerPlan, QuantizerPlan, Site, TensorSpec
from truequant.planning.table import table_of
from truequant.planning.widths import chosen, of_width
from truequant.schemes import ArithmeticRule, QConfig, QuantScheme, Target


@stored
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
    """In plans that have no `call`: arguments of the example that are no tensors, and the JSON text of each."""
    call: str = ""
    """How the example calls the model, as JSON (see `truequant.planning.calls`); "" in plans from before it was kept."""

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
        bits = [self.quantizer(name).scheme.dtype.bits for name in (*site.reads, site.emits) if name is not None]
        return rule_of(site.action, bits, self.target.arithmetic)

    def in_float(self) -> tuple[Site, ...]:
        """Sites left in float."""
        return tuple(s for s in self.sites if s.action == "float")

    def refused(self) -> tuple[Site, ...]:
        """Float sites that no program can hold: `convert` refuses the model while they are in it."""
        return tuple(s for s in self.sites if s.refused)

    def without_onnx(self) -> tuple[Site, ...]:
        """Float sites that a program can hold and an ONNX file cannot: `export_onnx` refuses the model."""
        return tuple(s for s in self.sites if s.without_onnx and not s.refused)

    def with_scheme(self, quantizer: str, scheme: QuantScheme) -> Plan:
        """A copy in which one quantizer has another scheme of the same granularity: a decision edited by hand.

        `prepare(model, example_inputs, edited)` executes it. Raises `PlanError` for a name that is not there and `SchemeError`
        for a scheme that the quantizer cannot have.
        """
        return replace(self, quantizers=edited(self.quantizers, quantizer, scheme))

    def with_chosen(self, wide: Mapping[str, bool]) -> Plan:
        """A copy in which the quantizers of residual streams, by name, have 16 bits or 8: what calibration chose."""
        return replace(self, quantizers=chosen(self.quantizers, wide))

    def to_json(self) -> str:
        """The plan as text, its config included. `SchemeError` for a rule whose selector has no importable name."""
        return dumps(plan_to_json(self))

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan of a text that anybody may have written. `FileError` says what is wrong, and where."""
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
        return table_of(self.sites, self.inputs, {q.name: _shown(q) for q in self.quantizers}, self.notes)


def rule_of(action: Action, bits: Sequence[int], named: ArithmeticRule) -> ArithmeticRule:
    """The rule of a site that reads and writes codes of `bits` bits. named: its target's."""
    return "portable" if action in NAMED_RULE and any(n > 8 for n in bits) else named


def _shown(q: QuantizerPlan) -> str:
    return f"{q.scheme} or {of_width(q.scheme, wide=True).dtype}, as its range says" if q.undecided else str(q.scheme)


def plan_to_json(plan: Plan) -> Json:
    """JSON of a plan, its config included. SchemeError for a rule whose selector has no importable name."""
    return to_json(plan, "plan")


def plan_from_json(value: Json, where: str = "plan") -> Plan:
    """The plan of a JSON that anybody may have written. FileError says what is wrong, and where."""
    return from_json(Plan, value, where)


def check_plan(plan: Plan, where: str, error: type[FileError] | type[PlanError] = FileError) -> None:
    """`error` for a plan whose parts do not fit each other: what `prepare` executes, it does not question."""
    check_records(plan.quantizers, plan.sites, plan.owners, plan.inputs, where, error)
