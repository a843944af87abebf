"""The readers of files that anybody may have written, each with honest files and with the changes that go to its heart."""

from __future__ import annotations

import gzip
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import truequant as tq
from tests.attacks.changes import Change, change_json, change_signed, change_sizes, change_toml, flip
from tests.programs import residual_net
from truequant.checkpoints.stored import digest as checkpoint_digest
from truequant.demo.idx import read_idx
from truequant.errors import TruequantError
from truequant.files import dumps, loads
from truequant.integer import Int8Model
from truequant.integer.serialize import digest as program_digest
from truequant.planning.codec import config_from_json, config_to_json


@dataclass(frozen=True)
class Reader:
    """A reader, its honest files, how a file is changed inside its own structure, and its share of the inputs."""

    read: Callable[[Path], object]
    seeds: tuple[bytes, ...]
    structured: Change
    share: int


def readers(folder: Path) -> dict[str, Reader]:
    """All readers by name."""
    plan = tq.plan(_model(), torch.zeros(2, 4), tq.QConfig.preset("w4a4").with_rules(tq.Rule("0", None)))
    config = dumps(config_to_json(tq.QConfig.preset("w4a4").with_rules(tq.Rule("0.*", None)))).encode()
    return {
        "checkpoint": Reader(tq.load_checkpoint, _checkpoints(folder), change_signed(checkpoint_digest), 5),
        "restore": Reader(_restore, _checkpoints(folder)[:2], change_signed(checkpoint_digest), 2),
        "model.tq": Reader(tq.load, _programs(folder), change_signed(program_digest), 6),
        "plan": Reader(lambda p: tq.Plan.from_json(_text(p)), (plan.to_json().encode(),), change_json, 12),
        "config JSON": Reader(lambda p: config_from_json(loads(_text(p))), (config,), change_json, 15),
        "config TOML": Reader(tq.QConfig.from_file, (_TOML,), change_toml, 20),
        "idx": Reader(lambda p: read_idx(p, 3), _idx(), change_sizes, 40),
    }


# -- honest files ------------------------------------------------------------------------------------------------------
def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def _checkpoints(folder: Path) -> tuple[bytes, ...]:
    qat = tq.prepare(_model(), torch.zeros(2, 4), tq.QConfig.preset("w4a4").with_rules(tq.Rule("0", None)))
    optimizer = torch.optim.Adam(qat.parameters())
    qat(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    found = []
    for index, parts in enumerate(({"model": qat, "optimizer": optimizer, "extra": [1, (2.5, b"x")]}, {"model": _model()})):
        tq.save_checkpoint(folder / str(index), **parts, loader=tq.training.StatefulSampler(7), step=3)
        found.append((folder / str(index)).read_bytes())
    torch.save(_model().state_dict(), folder / "torch")
    return (*found, (folder / "torch").read_bytes())


def _programs(folder: Path) -> tuple[bytes, ...]:
    Int8Model(residual_net()).save(folder / "model.tq")
    return ((folder / "model.tq").read_bytes(),)


def _idx() -> tuple[bytes, ...]:
    images = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 4, *range(32)])
    return images, gzip.compress(images, mtime=0), bytes([0, 0, 8, 1, 0, 0, 0, 3, 1, 2, 3])


_TOML = b"""preset = "w4a4"
target = "onnxruntime"
observer = { kind = "percentile", percent = 99.99 }
[activation]
dtype = "uint8"
scale = "lsq"
[[rule]]
select = "features.0.*"
weight = { dtype = "int4", granularity = { kind = "per-channel", axis = 0 }, symmetric = true }
[[rule]]
select = "classifier"
float = true
"""


# -- reading -----------------------------------------------------------------------------------------------------------
def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace")


def _restore(path: Path) -> None:
    """Into a model, of which nothing may have changed where the file is refused."""
    model = _model()
    before = hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).digest()
    kinds = [type(m) for m in model.modules()]
    try:
        tq.load_checkpoint(path, model=model, restore_random=False)
    except TruequantError:
        after = hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in model.state_dict().values())).digest()
        assert (after, [type(m) for m in model.modules()]) == (before, kinds), "partly loaded"
        raise


def made(source: random.Random, reader: Reader, scratch: Path) -> bytes:
    """One input."""
    what, seed = source.random(), source.choice(reader.seeds)
    if what < 0.02:
        return source.randbytes(source.choice((0, 1, 7, 8, 9, 100, 4000)))
    if what < 0.35:
        return flip(source, seed, scratch)
    return reader.structured(source, seed, scratch)
