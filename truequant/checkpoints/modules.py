"""A module's whole state: tensors, plans, clocks, switches, modes; stored, checked against a module, and written back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from truequant.checkpoints.fields import field, strings, typed
from truequant.checkpoints.plans import check_same, check_scales
from truequant.checkpoints.ranks import like
from truequant.checkpoints.states import check_dtypes, check_quantizers, check_shapes, check_state
from truequant.checkpoints.tree import TreeReader, TreeWriter
from truequant.errors import ArgumentTypeError, FileError, PlanError, StateError, TruequantError
from truequant.fake import Clock, FakeQuantize, QATModuleWrapper, WeightQuantizer, forget
from truequant.files import Json
from truequant.planning import Plan, check_modules, check_plan, plan_from_json, plan_to_json
from truequant.transform.prepare import prepare


@dataclass(frozen=True, slots=True)
class Switches:
    """Of one quantizer: what it does in training, and which clock it follows."""

    observing: bool
    quantizing: bool
    clock: int


@dataclass(frozen=True, slots=True, eq=False)
class ModuleRecord:
    """What a file holds of a module.

    plans: of each outermost prepared module, by its path ("" is the module itself), with the number of its clock.
    others: names of the modules whose mode is not that of the module itself (`training`).
    held: names of the parameters that need no gradient. None where the file tells nothing but tensors.
    """

    state: dict[str, Any]
    versions: dict[str, Any]
    plans: dict[str, tuple[Plan, int]]
    clocks: list[dict[str, Any]]
    quantizers: dict[str, Switches]
    training: bool | None = None
    others: frozenset[str] = frozenset()
    held: frozenset[str] | None = None

    @property
    def plan(self) -> Plan | None:
        """The plan, where there is one."""
        return next(iter(self.plans.values()))[0] if len(self.plans) == 1 else None


def plain(module: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel or `torch.compile`'s wrapper, whose names it adds nothing to."""
    while True:
        if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            module = module.module
        elif type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules:  # importing its class takes seconds
            module = module.get_submodule("_orig_mod")
        else:
            return module


def _prepared(module: nn.Module) -> dict[str, QATModuleWrapper]:
    """The outermost prepared modules in `module`, by path."""
    found = {n: m for n, m in module.named_modules() if isinstance(m, QATModuleWrapper) and m.binding.plan is not None}
    by_hand = getattr(getattr(module, "binding", None), "outermost", False)  # wrapped by hand: whole, and without a plan
    if not found and isinstance(module, QATModuleWrapper) and not by_hand:
        raise StateError(
            f"'{module.binding.name}' is a part of a prepared model, and its plan is the model's",
            fix="pass the model that tq.prepare returned",
        )
    return found


def _grids(module: nn.Module) -> dict[str, FakeQuantize | WeightQuantizer]:
    return {n: m for n, m in module.named_modules() if isinstance(m, (FakeQuantize, WeightQuantizer))}


# -- writing -----------------------------------------------------------------------------------------------------------
_plans: WeakKeyDictionary[object, tuple[Plan, Json]] = WeakKeyDictionary()
"""JSON of the plans of living models: a plan never changes, and to write it down takes longer than to copy a small model."""


def _plan_json(wrapper: QATModuleWrapper) -> Json:
    """JSON of a prepared module's plan."""
    binding, plan = wrapper.binding, wrapper.binding.plan
    assert plan is not None
    known, written = _plans.get(binding, (None, None))
    if known is not plan:
        written = plan_to_json(plan)
        _plans[binding] = plan, written
    return written


def module_to_json(module: nn.Module, writer: TreeWriter, where: str) -> dict[str, Json]:
    """JSON of a module's whole state; its tensors go to `writer`, named `where/NAME`."""
    clocks: list[Clock] = []

    def number(clock: Clock) -> int:
        if clock.calibrating:
            raise StateError("save_checkpoint: the model is being calibrated", fix="save when tq.calibrate has returned")
        if not any(clock is known for known in clocks):
            clocks.append(clock)
        return next(i for i, known in enumerate(clocks) if known is clock)

    state: Any = module.state_dict()
    plans: list[Json] = []
    for path, wrapper in _prepared(module).items():
        record: dict[str, Json] = {"path": path, "clock": number(wrapper.binding.clock)}
        plans.append(record | {"plan": _plan_json(wrapper)})
    quantizers: dict[str, Json] = {}
    for name, grid in _grids(module).items():
        observing = grid.observing if isinstance(grid, FakeQuantize) else True
        quantizers[name] = {"observing": observing, "quantizing": grid.quantizing, "clock": number(grid.clock)}
    return {
        "state": writer.encode(dict(state), where),
        "versions": writer.encode(dict(getattr(state, "_metadata", {})), f"{where} versions"),
        "plans": plans,
        "quantizers": quantizers,
        "clocks": [writer.encode(clock.__getstate__(), "clock") for clock in clocks],
        "training": module.training,
        "others": [name for name, m in module.named_modules() if m.training != module.training],
        "held": [name for name, p in module.named_parameters() if not p.requires_grad],
    }


# -- reading -----------------------------------------------------------------------------------------------------------
def module_from_json(value: Json, reader: TreeReader, part: str) -> ModuleRecord:
    """What a file says of a module. FileError for what `module_to_json` cannot have written."""
    where = f"{reader.where}: {part}"
    record = typed(value, dict, where)
    state = typed(reader.decode(record.get("state"), part), dict, f"{where}: 'state'")
    for name in state:
        typed(name, str, f"{where}: a name")
    versions = _versions(reader.decode(record.get("versions"), part), where)
    clocks = [_clock(reader.decode(item, part), f"{where}: a clock") for item in field(record, "clocks", list, where)]
    plans: dict[str, tuple[Plan, int]] = {}
    for item in field(record, "plans", list, where):
        entry = typed(item, dict, f"{where}: a plan")
        path = field(entry, "path", str, where)
        plan = plan_from_json(entry.get("plan"), f"{where}: plan")
        check_plan(plan, where)
        check_scales(plan, state, f"{path}." if path else "", where)
        plans[path] = plan, _number(entry, len(clocks), where)
    quantizers = {}
    for name, item in field(record, "quantizers", dict, where).items():
        entry, at = typed(item, dict, f"{where}: '{name[:200]}'"), f"{where}: '{name[:200]}'"
        on = field(entry, "observing", bool, at), field(entry, "quantizing", bool, at)
        quantizers[name] = Switches(*on, _number(entry, len(clocks), at))
    return ModuleRecord(
        state, versions, plans, clocks, quantizers, field(record, "training", bool, where),
        frozenset(strings(record.get("others"), f"{where}: 'others'")),
        frozenset(strings(record.get("held"), f"{where}: 'held'")),
    )  # fmt: skip


def _versions(value: Any, where: str) -> dict[str, Any]:
    """The metadata of a state dict, which modules read while they are written to: a number or None by module."""
    versions = typed(value, dict, f"{where}: 'versions'")
    for name, metadata in versions.items():
        at = f"{where}: 'versions' of '{str(name)[:200]}'"
        version = typed(metadata, dict, at).get("version")
        if version is not None and type(version) is not str:
            typed(version, int, f"{at}: 'version'")
    return versions


def _check_versions(module: nn.Module, versions: dict[str, Any], where: str) -> None:
    """Text is the version of a module whose class says its own in text; torch's compare numbers."""
    for name, live in module.named_modules(remove_duplicate=False):
        version = versions.get(name, {}).get("version")
        if type(version) is str and type(getattr(live, "_version", None)) is not str:
            typed(version, int, f"{where}: 'versions' of '{name[:200]}': 'version'")


def _clock(value: Any, where: str) -> dict[str, Any]:
    example = Clock().__getstate__()
    clock = example | typed(value, dict, where)
    if set(clock) != set(example) or clock["state"] not in ("training", "frozen"):
        raise FileError(f"{where} cannot be", got=repr(clock)[:200], expected=repr(example))
    for name, item in example.items():
        field(clock, name, type(item), where)
    return clock


def _number(entry: dict[str, Any], count: int, where: str) -> int:
    number = field(entry, "clock", int, where)
    if not 0 <= number < count:
        raise FileError(f"{where}: there is no such clock", got=number, expected=f"0 … {count - 1}")
    return number


# -- restoring ---------------------------------------------------------------------------------------------------------
def fit(module: nn.Module, record: ModuleRecord, where: str, undo: ExitStack) -> tuple[str, ...]:
    """Prepare what the record's plans say, then check every name, shape and range; the names that the file lacks.

    No tensor is written. `undo` takes back what was prepared. PlanError, StateError, ArgumentError, FileError where the
    module and the file do not fit.
    """
    prepared = _prepared(module)
    _check_versions(module, record.versions, where)
    check_shapes(module, record.state, where)  # before a plan meets layers of other sizes
    for path, (plan, _) in record.plans.items():
        if path in prepared:
            done = prepared[path].binding.plan
            assert done is not None
            check_same(plan, done, where)
            continue
        target = _submodule(module, path, where)
        check_modules(plan, target, where)
        undo.callback(_put_back(target))
        try:
            prepare(target, None, plan, inplace=True)
        except TruequantError:
            raise
        except Exception as error:
            raise PlanError(
                f"{where}: its plan does not fit the model", got=f"{type(error).__name__}: {error}"[:300],
                fix="build the model with the class and the arguments that it was saved with",
            ) from error  # fmt: skip
    grids = _grids(module)
    tells_ranges = bool(record.plans or record.quantizers) or any(f"{g}.scale" in record.state for g in grids)
    missing = check_state(module, record.state, () if tells_ranges else tuple(f"{g}." for g in grids), where)
    if tells_ranges:
        check_quantizers(grids, record.state, where)
    if tells_ranges and record.training is not None:
        check_dtypes(module, record.state, where)
        if set(record.quantizers) != set(grids):
            raise FileError(
                f"{where}: it tells the switches of other quantizers than the model has",
                got=", ".join(sorted(set(record.quantizers) ^ set(grids))[:4])[:300],
            )
    return missing


def write(module: nn.Module, record: ModuleRecord, missing: tuple[str, ...]) -> None:
    """Write what `fit` has checked."""
    live = module.state_dict()
    state: Any = OrderedDict((name, like(value, live.get(name))) for name, value in record.state.items())
    if record.versions:
        state._metadata = OrderedDict(record.versions)
    module.load_state_dict(state, strict=not missing)
    grids = _grids(module)
    if grids and not record.quantizers and missing:
        forget(module)  # ranges that were found for other weights
    for name, switches in record.quantizers.items():
        grid = grids[name]
        grid.quantizing = switches.quantizing
        if isinstance(grid, FakeQuantize):
            grid.observing = switches.observing
        grid.clock.__setstate__(record.clocks[switches.clock])
    for path, wrapper in _prepared(module).items():
        if path in record.plans:
            wrapper.binding.clock.__setstate__(record.clocks[record.plans[path][1]])
    if record.training is not None:
        for name, m in module.named_modules():
            m.training = record.training != (name in record.others)  # not .eval(), which commits what is pending
    if record.held is not None:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in record.held)


def _submodule(module: nn.Module, path: str, where: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise PlanError(
            f"{where}: it was saved with a prepared module at '{path[:200]}', where the model has none",
            got=type(module).__name__,
            fix="build the model with the class and the arguments that it was saved with",
        ) from None


def _put_back(module: nn.Module) -> Callable[[], None]:
    """What makes `module` again what it is now, short of tensors' values."""
    before = [(m, type(m), dict(m.__dict__), dict(m._modules)) for m in module.modules()]

    def put_back() -> None:
        for m, kind, attributes, children in before:
            m.__class__ = kind
            m.__dict__.clear()
            m.__dict__.update(attributes)
            m._modules.clear()
            m._modules.update(children)

    return put_back


def check_module(value: object, called: str) -> nn.Module:
    """`value` as a module. ArgumentTypeError where it is none."""
    if not isinstance(value, nn.Module):
        raise ArgumentTypeError(f"{called} is not an nn.Module", got=type(value).__name__, expected="nn.Module")
    return plain(value)
