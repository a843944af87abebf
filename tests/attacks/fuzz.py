"""Hostile input for every reader of files: only our own exceptions come out, in bounded time and memory.

    python -m tests.attacks.fuzz --inputs 1000000 --out benchmarks/results/fuzz.json
    python -m tests.attacks.fuzz --atheris 100000          # guided by coverage, where atheris is installed

Inputs are honest files that are changed: bits flipped, parts cut, doubled, exchanged; numbers, names and levels of their JSON
replaced, under a SHA-256 that fits again, so that what is read behind it is reached too; and bytes at random.
"""

from __future__ import annotations

import argparse
import collections
import copy
import gzip
import hashlib
import json
import random
import resource
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import truequant as tq
from tests.programs import residual_net
from truequant.checkpoints.stored import digest as checkpoint_digest
from truequant.demo.idx import read_idx
from truequant.errors import TruequantError
from truequant.files import dumps, loads, read_container, write_container
from truequant.integer import Int8Model
from truequant.integer.serialize import digest as program_digest
from truequant.planning.codec import config_from_json, config_to_json

SECONDS, MEMORY = 10, 2 * 2**30
"""What one input may cost: seconds, and bytes of memory above what the process had."""


@dataclass(frozen=True)
class Reader:
    """A reader, its honest files, how a file is changed inside its own structure, and its share of the inputs."""

    read: Callable[[Path], object]
    seeds: tuple[bytes, ...]
    structured: Callable[[random.Random, bytes, Path], bytes]
    share: int


class Hang(BaseException):
    """An input that took too long."""


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
        tq.save_checkpoint(folder / str(index), **parts, loader=tq.StatefulSampler(7), step=3)
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

_JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**30, 0.0, -1.5, 1e308, 5e-324, "", "weight", "/dev/zero",
    "../../etc/passwd", "\0", "é" * 300, "os.system", "(a+)+$", [], {}, [[]], [0] * 40, {"type": "Plan"},
    {"$tensor": "model/0.weight"}, {"$dict": [[1, 2]]}, {"$float": "nan"}, {"float": "nan"}, {"float": "inf"},
    {"regex": "(", "flags": 0}, {"class": "os.system"}, {"$bytes": "AA=="}, "float", "int4", "nan",
)  # fmt: skip
_LIES: dict[str, tuple[Any, ...]] = {
    "dtype": ("F64", "F4", 7), "shape": ([-1], [2**62, 2**62], [0], [2**40], 3), "data_offsets": ([8, 0], [0, 2**50], [-1, 7]),
}  # fmt: skip


def change_json(source: random.Random, value: Any) -> Any:
    """A JSON value with one to three places changed."""
    value = copy.deepcopy(value)
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        place = value
        while isinstance(place, (dict, list)) and place:
            key = source.choice(list(place)) if isinstance(place, dict) else source.randrange(len(place))
            inner = place[key]
            if isinstance(inner, (dict, list)) and inner and source.random() < 0.85:
                place = inner
                continue
            what = source.randrange(7)
            if what < 4:
                place[key] = copy.deepcopy(source.choice(_JUNK))
            elif what == 4:
                del place[key]
            elif what == 5 and isinstance(inner, (int, float)) and not isinstance(inner, bool):
                place[key] = source.choice((-inner, inner + 1, inner * 2, inner * 10**9, float(inner), int(inner)))
            elif isinstance(place, list):
                place.append(copy.deepcopy(inner))
            else:
                place[str(source.choice(_JUNK))] = inner
            break
    return value


def change_text(source: random.Random, text: str) -> str:
    """A JSON text that JSON itself does not allow, or that goes deep."""
    depth = source.choice((10, 70, 5000))
    forms = (
        "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, text.replace(":", ":" + "[" * depth, 1), text + text,
        text.replace("1", "NaN", 1), text.replace("0", "1" * 5000, 1), text.replace("{", '{"type":1,"type":2,', 1),
        text.replace("0", "1e999", 1), text[: source.randrange(len(text) + 1)],
    )  # fmt: skip
    return source.choice(forms)


def _table(source: random.Random, data: bytes) -> bytes:
    """A container whose table lies, before the same bytes."""
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    if source.random() < 0.5:
        entry = table[source.choice([n for n in table if n != "__metadata__"])]
        key = source.choice(sorted(entry))
        entry[key] = source.choice(_LIES[key])
        text = json.dumps(table)
    else:
        text = json.dumps(change_json(source, table)) if source.random() < 0.7 else change_text(source, json.dumps(table))
    packed = text.encode()
    return source.choice((len(packed), len(packed), len(packed), 2**40, 0)).to_bytes(8, "little") + packed + data[8 + length :]


def _signed(digest: Callable[[Mapping[str, Any], Mapping[str, Any]], str]) -> Callable[[random.Random, bytes, Path], bytes]:
    """A container with another header or other tensors, and a SHA-256 that fits them."""
    parsed: dict[bytes, Any] = {}

    def change(source: random.Random, data: bytes, scratch: Path) -> bytes:
        if data[:2] == b"PK":
            return flip(source, data, scratch)
        if source.random() < 0.3:
            return _table(source, data)
        if data not in parsed:
            scratch.write_bytes(data)
            parsed[data] = read_container(scratch)
        header, tensors = parsed[data]
        header, tensors = change_json(source, header), dict(tensors)
        if source.random() < 0.3:
            name = source.choice(sorted(tensors))
            old = tensors[name]
            tensors[name] = source.choice(
                (old.reshape(-1)[:1], torch.zeros(0), torch.full_like(old, 1), old.double(), old.reshape(1, *old.shape))
            )
            if old.is_floating_point():
                tensors[name] = torch.full_like(old, source.choice((float("nan"), float("inf"), -1.0, 0.0, 1e-45, 3e38)))
        try:
            header["sha256"] = digest(header, tensors)
            write_container(scratch, header, tensors)
        except TruequantError:  # what our own writer does not write
            return _table(source, data)
        return scratch.read_bytes()

    return change


def _json(source: random.Random, data: bytes, scratch: Path) -> bytes:
    text = data.decode()
    return (json.dumps(change_json(source, json.loads(text))) if source.random() < 0.8 else change_text(source, text)).encode()


def _toml(source: random.Random, data: bytes, scratch: Path) -> bytes:
    lines = data.decode().splitlines()
    at = source.randrange(len(lines))
    key = lines[at].partition("=")[0]
    values = (
        '"nan"', "nan", "inf", "-1", "1e400", "9" * 900, "9" * 5000, "[" * 900, "[" * 3000, '""', "{}", "true", "1979-05-27",
        '{ kind = "mse", bins = 99999999999 }', '{ kind = "percentile", percent = nan }', "{ dtype = 3 }", '"\\u0000"',
        '{ kind = "per-group", size = 0 }', "[[1]]", '{ kind = "moving-average", momentum = inf }', "{ dtype = {} }", "[]",
    )  # fmt: skip
    if source.random() < 0.7:
        lines[at] = f"{key}= {source.choice(values)}"
    else:
        added = (lines[at], "a." * source.choice((5, 400, 2000)) + "b = 1", "[" * 900, "[[rule]]")
        lines.insert(source.randrange(len(lines)), source.choice(added))
    return "\n".join(lines).encode()


def _sizes(source: random.Random, data: bytes, scratch: Path) -> bytes:
    raw = bytearray(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    at = source.randrange(4, 8)
    raw[at : at + 4] = source.choice((0, 1, 2**31, 2**32 - 1, 65536)).to_bytes(4, "big")
    return gzip.compress(bytes(raw), mtime=0) if source.random() < 0.3 else bytes(raw)


# -- changes of bytes --------------------------------------------------------------------------------------------------
def flip(source: random.Random, data: bytes, _: Path) -> bytes:
    """Bits flipped, a part cut out, doubled or exchanged, an end cut off."""
    changed = bytearray(data)
    if not changed:
        return b""
    what = source.randrange(5)
    a, b = sorted((source.randrange(len(changed)), source.randrange(len(changed))))
    if what <= 1:
        for _ in range(source.choice((1, 1, 2, 8))):
            changed[source.randrange(len(changed))] ^= 1 << source.randrange(8)
    elif what == 2:
        return bytes(changed[:a])
    elif what == 3:
        del changed[a : min(b, a + 64)]
    else:
        changed[a:a] = changed[b : b + 64] or source.randbytes(8)
    return bytes(changed)


def readers(folder: Path) -> dict[str, Reader]:
    """All readers by name."""
    plan = tq.plan(_model(), torch.zeros(2, 4), tq.QConfig.preset("w4a4").with_rules(tq.Rule("0", None)))
    config = dumps(config_to_json(tq.QConfig.preset("w4a4").with_rules(tq.Rule("0.*", None)))).encode()
    return {
        "checkpoint": Reader(tq.load_checkpoint, _checkpoints(folder), _signed(checkpoint_digest), 5),
        "restore": Reader(_restore, _checkpoints(folder)[:2], _signed(checkpoint_digest), 2),
        "model.tq": Reader(tq.load, _programs(folder), _signed(program_digest), 6),
        "plan": Reader(lambda p: tq.Plan.from_json(_text(p)), (plan.to_json().encode(),), _json, 12),
        "config JSON": Reader(lambda p: config_from_json(loads(_text(p))), (config,), _json, 15),
        "config TOML": Reader(tq.QConfig.from_file, (_TOML,), _toml, 20),
        "idx": Reader(lambda p: read_idx(p, 3), _idx(), _sizes, 40),
    }


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


# -- the loop ----------------------------------------------------------------------------------------------------------
def made(source: random.Random, reader: Reader, scratch: Path) -> bytes:
    """One input."""
    what, seed = source.random(), source.choice(reader.seeds)
    if what < 0.02:
        return source.randbytes(source.choice((0, 1, 7, 8, 9, 100, 4000)))
    if what < 0.35:
        return flip(source, seed, scratch)
    return reader.structured(source, seed, scratch)


def outcome(reader: Reader, data: bytes, scratch: Path) -> str:
    """What reading does: "read", one of our exceptions, or an escape."""
    scratch.write_bytes(data)
    try:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            reader.read(scratch)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except TruequantError as error:
        said = str(error)
        return type(error).__name__ if len(said) > 10 and len(said) < 4000 else f"escape: {len(said)} characters said"
    except Hang:
        return f"escape: more than {SECONDS} s"
    except Exception as error:
        return f"escape: {type(error).__name__}: {str(error)[:200]}"
    return "read"


def guard() -> None:
    """Bound time and memory of what follows in this process."""

    def late(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, late)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


def fuzz(count: int, seed: int, folder: Path, tell: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """Read `count` inputs; how many ended how, by reader, and the escapes with their inputs."""
    warnings.simplefilter("ignore")
    known, scratch, work = readers(folder), folder / "input", folder / "work"
    guard()
    source, begin = random.Random(seed), time.monotonic()
    names, shares = list(known), [r.share for r in known.values()]
    counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in known}
    escapes: list[dict[str, str]] = []
    slowest = 0.0

    def result(done: int) -> dict[str, Any]:
        return {
            "inputs": done, "escapes": len(escapes), "seed": seed, "seconds": round(time.monotonic() - begin, 1),
            "slowest_seconds": round(slowest, 3), "readers": {n: dict(sorted(c.items())) for n, c in counts.items()},
            "escaped": escapes[:20],
        }  # fmt: skip

    for done in range(1, count + 1):
        (name,) = source.choices(names, shares)
        data = made(source, known[name], work)
        before = time.process_time()
        found = outcome(known[name], data, scratch)
        slowest = max(slowest, time.process_time() - before)
        if found.startswith("escape"):
            escapes.append({"reader": name, "found": found, "input": data[:2000].hex()})
            found = "escape"
        counts[name][found] += 1
        if done % 5000 == 0:
            tell(result(done))
    return result(count)


def guided(count: int, folder: Path) -> None:
    """The same readers under atheris, which looks for inputs that reach new code."""
    import atheris

    known = readers(folder)
    names = list(known)
    for module in ("truequant.files.container", "truequant.files.canonical_json", "truequant.checkpoints.stored",
                   "truequant.planning.codec", "truequant.integer.serialize", "truequant.demo.idx"):  # fmt: skip
        for value in vars(__import__(module, fromlist=["x"])).values():
            if callable(value) and getattr(value, "__module__", None) == module and hasattr(value, "__code__"):
                atheris.instrument_func(value)

    def one(data: bytes) -> None:
        if data:
            found = outcome(known[names[data[0] % len(names)]], data[1:], folder / "input")
            assert not found.startswith("escape"), found

    corpus = folder / "corpus"
    corpus.mkdir()
    for index, reader in enumerate(known.values()):
        for number, seed in enumerate(reader.seeds):
            (corpus / f"{index}-{number}").write_bytes(bytes([index]) + seed)
    atheris.Setup(["fuzz", f"-runs={count}", "-max_len=60000", str(corpus)], one)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--atheris", type=int, metavar="RUNS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)

    def tell(result: dict[str, Any]) -> None:
        print(result["inputs"], "inputs,", result["escapes"], "escapes,", result["seconds"], "s", flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps(result, indent=2) + "\n")

    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        if options.atheris is not None:
            guided(options.atheris, Path(folder))
            return
        result = fuzz(options.inputs, options.seed, Path(folder), tell)
    tell(result)
    raise SystemExit(1 if result["escapes"] else 0)


if __name__ == "__main__":
    main()
