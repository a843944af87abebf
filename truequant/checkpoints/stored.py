"""What a checkpoint file holds, as typed values: read, verified against its SHA-256, and not yet applied to anything."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from truequant.checkpoints import fields
from truequant.checkpoints.foreign import format_of, read_safetensors, read_torch
from truequant.checkpoints.migrations import MIGRATIONS, migrated
from truequant.checkpoints.modules import ModuleRecord, module_from_json
from truequant.checkpoints.optimizers import OptimizerRecord, optimizer_from_json
from truequant.checkpoints.randomness import RandomStates, random_from_json
from truequant.checkpoints.ranks import RankRecord, ranks_from_json
from truequant.checkpoints.stateful import StatefulRecord, stateful_from_json
from truequant.checkpoints.tree import TreeReader
from truequant.errors import FileError
from truequant.files import Json, bytes_of, dumps, read_container
from truequant.integer import Int8Model
from truequant.integer.serialize import FORMAT as PROGRAM_FORMAT
from truequant.integer.serialize import from_container

FORMAT, VERSION = "truequant checkpoint", 2
Kind = Literal["float", "qat", "int8"]
STATEFUL = ("scheduler", "scaler", "loader")
_SECTIONS = frozenset(
    ("format", "version", "sha256", "kind", "step", "metric", "extra", "libraries", "model", "ema", "optimizer", "random",
     "ranks", *STATEFUL)
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """All parts of a file; None or empty for those that it does not hold. others: names of parts that are not for us.

    metric: what was said of this state's quality. ranks: what every rank of a distributed training held on its own.
    """

    kind: Kind
    step: int = 0
    extra: Any = None
    libraries: Mapping[str, str] = field(default_factory=dict)
    model: ModuleRecord | None = None
    ema: ModuleRecord | StatefulRecord | None = None
    optimizer: OptimizerRecord | None = None
    stateful: Mapping[str, StatefulRecord] = field(default_factory=dict)
    random: RandomStates | None = None
    int8: Int8Model | None = None
    others: tuple[str, ...] = ()
    metric: float | None = None
    ranks: tuple[RankRecord, ...] = ()


def digest(header: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a header (without its own "sha256") and of every tensor's name, dtype, shape and bytes."""
    found = hashlib.sha256(dumps({k: v for k, v in header.items() if k != "sha256"}).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"\n{len(name)} {name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(bytes_of(tensor).numpy().data)
    return found.hexdigest()


def read_stored(path: str | os.PathLike[str]) -> Stored:
    """The contents of a float checkpoint, a QAT checkpoint or an Int8 model. FileError for anything else."""
    form = format_of(path)
    if form != "truequant":
        state, others = (read_torch if form == "torch" else read_safetensors)(path)
        quantized = any(".quantizers." in f".{name}" for name in state)
        record = ModuleRecord(dict(state), {}, {}, [], {})
        return Stored("qat" if quantized else "float", model=record, others=others)
    header, tensors = read_container(path)
    where = f"'{path}'"
    if header.get("format") == PROGRAM_FORMAT:
        return Stored("int8", int8=Int8Model(from_container(header, tensors, where)))
    _check_header(header, tensors, where)
    return _read(*migrated(header, tensors, VERSION), where)


def _check_header(header: Mapping[str, Json], tensors: Mapping[str, Tensor], where: str) -> None:
    if header.get("format") != FORMAT:
        raise FileError(
            f"{where}: neither a checkpoint nor an Int8 model", got=repr(header.get("format"))[:80], expected=repr(FORMAT)
        )
    version = fields.field(header, "version", int, where)
    if version not in (*MIGRATIONS, VERSION):
        raise FileError(
            f"{where}: a version of checkpoints that this truequant does not read", got=version, expected=VERSION,
            fix="load it with the truequant that wrote it" if version > VERSION else None,
        )  # fmt: skip
    promised, found = fields.field(header, "sha256", str, where), digest(header, tensors)
    if promised != found:
        raise FileError(
            f"{where}: the contents are not those that were written", got=f"SHA-256 {found}", expected=promised[:80],
            fix="copy the file again, or take an earlier checkpoint",
        )  # fmt: skip
    if unknown := sorted(set(header) - _SECTIONS):
        raise FileError(f"{where}: parts that no checkpoint has", got=", ".join(unknown[:4])[:200])


def _read(header: dict[str, Json], tensors: dict[str, Tensor], where: str) -> Stored:
    reader = TreeReader(tensors, where)
    kind, step = fields.field(header, "kind", str, where), fields.field(header, "step", int, where)
    if step < 0:
        raise FileError(f"{where}: 'step' is negative", got=step)
    libraries = fields.field(header, "libraries", dict, where)
    for name in libraries:
        fields.field(libraries, name, str, f"{where}: libraries")
    model = module_from_json(header.get("model"), reader, "model")
    if kind != kind_of(model):
        raise FileError(f"{where}: it says of itself what it is not", got=kind[:80], expected=kind_of(model))
    stored = Stored(
        kind_of(model), step, reader.decode(header.get("extra"), "extra"), libraries, model,
        _ema(header.get("ema"), reader),
        None if header.get("optimizer") is None else optimizer_from_json(header["optimizer"], reader),
        {part: stateful_from_json(header[part], reader, part) for part in STATEFUL if header.get(part) is not None},
        random_from_json(header.get("random"), reader),
        metric=metric_of(header, where),
        ranks=tuple(ranks_from_json(header.get("ranks", []), reader)),
    )  # fmt: skip
    if unused := sorted(set(tensors) - reader.used):
        raise FileError(f"{where}: tensors that nothing names", got=", ".join(unused[:4])[:200])
    return stored


def metric_of(header: Mapping[str, Json], where: str) -> float | None:
    """The metric that a header tells, which may be infinite or NaN."""
    value = TreeReader({}, where).decode(header.get("metric"), "metric")
    return None if value is None else fields.typed(value, float, f"{where}: 'metric'")


def kind_of(model: ModuleRecord) -> Literal["float", "qat"]:
    """A model is one of QAT when it has quantizers."""
    return "qat" if model.plans or model.quantizers else "float"


def _ema(value: Json, reader: TreeReader) -> ModuleRecord | StatefulRecord | None:
    if value is None:
        return None
    read = stateful_from_json if isinstance(value, dict) and "class" in value else module_from_json
    return read(value, reader, "ema")
