"""What differs from rank to rank of one training, and state that is spread over ranks.

With DDP every rank holds the whole state but its own random generators and its own position in the data; with FSDP2 the
parameters and the optimizer's state are DTensors, of which a rank holds a part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from truequant.checkpoints.fields import typed
from truequant.checkpoints.randomness import RandomStates, random_from_json, random_to_json
from truequant.checkpoints.stateful import StatefulRecord, stateful_from_json, stateful_to_json
from truequant.checkpoints.tree import TreeReader, TreeWriter
from truequant.errors import FileError
from truequant.files import Json
from truequant.observers import is_sharded


@dataclass(frozen=True, slots=True, eq=False)
class RankRecord:
    """What one rank held on its own. buffers: by name; BatchNorm's running statistics are those of a rank's own batches."""

    random: RandomStates
    loader: StatefulRecord | None
    buffers: dict[str, Tensor]


def world() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) where no process group is."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


@torch.no_grad()
def like(value: Any, live: Any) -> Any:
    """`value`, a whole tensor, as `live` is: this rank's part of it where `live` is spread over ranks."""
    if not is_sharded(live) or not isinstance(value, Tensor) or value.shape != live.shape or is_sharded(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    # Every rank has read the same file: nothing is sent.
    return distribute_tensor(value.to(live.device), live.device_mesh, live.placements, src_data_rank=None)


def sharded(model: nn.Module) -> bool:
    """Whether a model's parameters are spread over ranks."""
    return any(is_sharded(parameter) for parameter in model.parameters())


def gathered(model: nn.Module, loader: Any, writer: TreeWriter) -> list[Json]:
    """What every rank holds on its own, on rank 0; every rank has to call it. Nothing where there is one rank."""
    rank, count = world()
    if count == 1:
        return []
    own, buffers = TreeWriter(), {name for name, _ in model.named_buffers()}
    own_record: dict[str, Json] = {
        "random": random_to_json(own),
        "loader": None if loader is None else stateful_to_json(loader, "loader", own),
        "buffers": own.encode({n: b for n, b in model.state_dict().items() if n in buffers}, "buffers"),
    }
    everyone: list[Any] | None = [None] * count if rank == 0 else None
    distributed.gather_object((own_record, {name: t.cpu() for name, t in own.tensors.items()}), everyone)
    found: list[Json] = []
    for index, (record, tensors) in enumerate(everyone or ()):
        for name, tensor in tensors.items():
            writer.tensors[f"rank {index}/{name}"] = tensor
        found.append(_renamed(record, f"rank {index}/"))
    return found


def _renamed(value: Json, prefix: str) -> Json:
    """JSON of a tree whose tensors have got other names."""
    if isinstance(value, list):
        return [_renamed(item, prefix) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and (tag := next(iter(value))) in ("$tensor", "$array", "$scalar"):
        return {tag: f"{prefix}{value[tag]}"}
    return {key: _renamed(item, prefix) for key, item in value.items()}


def ranks_from_json(value: Json, reader: TreeReader) -> list[RankRecord]:
    """What a file says of every rank. FileError for what `gathered` cannot have written."""
    if not isinstance(value, list):
        raise FileError(f"{reader.where}: 'ranks' has a wrong type", got=repr(value)[:120], expected="list")
    found: list[RankRecord] = []
    for index, item in enumerate(value):
        where = f"rank {index}"
        if not isinstance(item, dict) or set(item) != {"random", "loader", "buffers"}:
            raise FileError(f"{reader.where}: {where} cannot be", got=repr(item)[:120], expected="random, loader, buffers")
        buffers = typed(reader.decode(item["buffers"], f"{where}: buffers"), dict, f"{reader.where}: {where}: buffers")
        for name, value in buffers.items():
            if not isinstance(value, Tensor):
                raise FileError(f"{reader.where}: {where}: a buffer is no tensor", got=repr(name)[:120])
        loader = None if item["loader"] is None else stateful_from_json(item["loader"], reader, f"{where}: loader")
        found.append(RankRecord(random_from_json(item["random"], reader), loader, buffers))
    return found
