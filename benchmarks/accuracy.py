"""Accuracy of every algorithm at every width on MNIST: the cells of docs/accuracy.md, run one by one.

    python benchmarks/accuracy.py [--only lenet lsq w4a4 …] [--limit N] [--rerun] [--stale] [--confirm] [--table]

A cell is one training run: model, algorithm, widths, seed. Finished cells lie in benchmarks/results/accuracy.json and are not
run again, unless asked: `--stale` repeats those whose code has changed since (each keeps a digest of the code it depends on),
`--confirm` repeats one of them for each model and algorithm and, where every figure comes out as it was, counts the others
as current, `--rerun` all that `--only` names. Float models are trained once a seed and kept outside the repository (`--cache`).
Last epoch, never the best; every algorithm starts from the same float model and gets the same number of epochs.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import safetensors.torch
import torch
from torch import Tensor, nn

import truequant as tq
from benchmarks import accuracy_table, recipes
from truequant.demo.mnist import load_mnist
from truequant.demo.models import MODELS
from truequant.demo.training import accuracy
from truequant.files import atomic_write
from truequant.reports import cpu, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "accuracy.json"
DEPENDS = (
    "schemes/presets.py", "schemes/scheme.py", "numerics", "observers", "kernels/reference.py", "fake/quantizers.py",
    "fake/grid.py", "fake/algorithms", "fake/sites.py", "demo/models.py", "demo/training.py",
)  # fmt: skip
VERIFIED_IMAGES = 500
REFINED = ("lsq+", "ewgs", "batchnorm", "freezing", "binary", "pact", "dampening", "stochastic", "tqt", "distilled", "ternary")
"""Algorithms that the MLP runs with three seeds, as it does LSQ, at the widths of a textbook figure."""


@dataclass(frozen=True, order=True)
class Cell:
    """One run. widths: a preset's name; per_tensor: one scale for each weight tensor."""

    model: str
    algorithm: str
    widths: str
    seed: int
    per_tensor: bool = False

    @property
    def key(self) -> str:
        return "/".join((self.model, self.algorithm, self.widths + ("-per-tensor" * self.per_tensor), str(self.seed)))


def cells() -> Iterator[Cell]:
    """All cells, the most important first."""
    seeds, widths = (0, 1, 2), ("w4a4", "w2a2", "w8a8", "w3a3", "w1a1")
    for seed in seeds:
        yield from (Cell("lenet", "lsq", width, seed) for width in widths)
        yield from (Cell("lenet", a, width, seed) for width in ("w4a4", "w2a2") for a in ("ptq min-max", "ptq best"))
        yield from (Cell("lenet", "straight-through", width, seed) for width in ("w4a4", "w2a2"))
    for width in ("w4a4-all", "w2a2-all", "w3a3-all", "w1a1-all"):
        yield from (Cell("lenet", "lsq", width, seed) for seed in seeds)
    for seed in seeds:
        yield from (Cell("mlp", "lsq", width, seed) for width in widths)
        yield from (Cell("lenet", "distilled", width, seed) for width in ("w8a8", "w3a3"))  # what has a goal of three seeds
    for seed in seeds:
        for width in ("w4a4", "w2a2"):
            yield from (Cell("lenet", a, width, seed) for a in recipes.RECIPES if accuracy_table.defined(a, width))
    for width in widths:
        yield from (Cell("lenet", a, width, 0) for a in recipes.RECIPES if accuracy_table.defined(a, width))
    for seed in range(20):  # stability: no run may fall behind the others
        yield from (Cell("lenet", "lsq", width, seed) for width in ("w4a4", "w2a2"))
    for width in widths:
        yield from (Cell("mlp", a, width, 0) for a in recipes.RECIPES if accuracy_table.defined(a, width))
    for seed in seeds:  # what may beat textbook LSQ where plain LSQ does not
        for width in ("w4a4", "w2a2", "w1a1"):
            yield from (Cell("mlp", a, width, seed) for a in REFINED if accuracy_table.defined(a, width))
        yield from (Cell("mlp", a, width, seed) for width in widths for a in recipes.COMBINATIONS)
    for model in ("mlp", "lenet", "mobilenet"):
        for seed in seeds:
            yield from (Cell(model, a, preset, seed) for preset in accuracy_table.EIGHT for a in recipes.PRESETS)
    yield from (Cell("mobilenet", a, "w8a8", 0, True) for a in ("ptq min-max", "ptq best", "straight-through", "lsq"))
    for width in widths:
        yield from (Cell("mobilenet", a, width, 0) for a in recipes.RECIPES if accuracy_table.defined(a, width))


def recipe(cell: Cell) -> Callable[[recipes.Job], nn.Module]:
    """How a cell is trained."""
    return (recipes.RECIPES | recipes.COMBINATIONS | recipes.PRESETS)[cell.algorithm]


@cache
def library() -> str:
    """A digest of the library's code that every cell depends on, comments and docstrings apart."""
    hashed = hashlib.sha256()
    for place in DEPENDS:
        path = ROOT / "truequant" / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            hashed.update(_meaning(file.read_text(encoding="utf-8")))
    return hashed.hexdigest()


def digest(cell: Cell) -> str:
    """Of all the code that a cell depends on."""
    hashed = hashlib.sha256((library() + repr(recipes.rate(cell.widths))).encode())
    shared = (
        recipes.Job,
        recipes.train,
        recipes.moved,
        recipes.prepared,
        recipes.clipped,
        recipes.fine,
        recipes.mapped,
        recipes.learned,
        recipes.rate,
        recipes.rounded,
    )
    own = [recipe(cell)]
    if cell.algorithm in recipes.COMBINATIONS:
        own.append(recipes.lsq_plus)
    for function in (*shared, *own):
        hashed.update(_meaning(inspect.getsource(function)))
    return hashed.hexdigest()[:16]


def _meaning(source: str) -> bytes:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body.pop(0)
    return ast.dump(tree).encode()


# -- one cell ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Data:
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load() -> Data:
    """All 60,000 training images: nothing here is chosen on held-out ones."""
    mnist = load_mnist()
    images, labels = (
        torch.cat([mnist.train_images, mnist.held_out_images]),
        torch.cat([mnist.train_labels, mnist.held_out_labels]),
    )
    return Data(images, labels, mnist.test_images, mnist.test_labels)


def float_models(model: str, seed: int, data: Data, cache: Path) -> tuple[nn.Module, nn.Module]:
    """The float model that every algorithm starts from, and the one that trained on for as long as they do."""
    torch.manual_seed(seed)
    start = MODELS[model]()
    further = copy.deepcopy(start)
    code = _meaning(inspect.getsource(sys.modules[MODELS[model].__module__])) + _meaning(inspect.getsource(recipes.train))
    recipe = hashlib.sha256(code + repr((recipes.FLOAT, recipes.FINE)).encode())
    paths = [cache / f"{model}-{seed}-{part}-{recipe.hexdigest()[:12]}.safetensors" for part in ("start", "further")]
    if all(p.exists() for p in paths):
        for module, path in zip((start, further), paths, strict=True):
            module.load_state_dict(safetensors.torch.load(path.read_bytes()))
        return start.eval(), further.eval()
    recipes.train(start, data.images, data.labels, replace(recipes.FLOAT, seed=seed))
    further.load_state_dict(start.state_dict())
    recipes.train(further, data.images, data.labels, replace(recipes.FINE, seed=1000 + seed))
    cache.mkdir(parents=True, exist_ok=True)
    for module, path in zip((start, further), paths, strict=True):
        atomic_write(path, safetensors.torch.save(module.state_dict()))
    return start.eval(), further.eval()


def run(cell: Cell, data: Data, cache: Path, code: str) -> dict[str, Any]:
    """Train, evaluate, convert, and answer all test images once more in onnxruntime."""
    started = time.perf_counter()
    start, further = float_models(cell.model, cell.seed, data, cache)
    job = recipes.Job(copy.deepcopy(start), data.images, data.labels, cell.widths, cell.seed, cell.per_tensor)
    trained = recipe(cell)(job)
    seconds = time.perf_counter() - started
    int8 = tq.convert(trained)
    runtime = tq.compile(int8, "onnxruntime")
    compared = tq.verify(trained, int8, data.test_images[:VERIFIED_IMAGES].split(250), runtimes=("reference", "onnxruntime"))

    def top1(model: Any) -> float:
        return accuracy(model, data.test_images, data.test_labels)

    return {
        "top1": top1(trained), "onnxruntime": top1(runtime), "float_start": top1(start), "float_further": top1(further),
        "codes_compared": compared.codes_compared, "codes_different": compared.codes_different,
        "seconds": round(seconds, 1), "code": code, "torch": versions()["torch"], "cpu": str(cpu()),
    }  # fmt: skip


def _results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def _keep(rows: dict[str, Any]) -> None:
    """Read again before writing: another process may have finished a cell meanwhile."""
    found = _results() | rows
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(RESULTS, (json.dumps(dict(sorted(found.items())), indent=1) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="what parts of a cell's key must begin with: lenet lsq w4a4/0")
    parser.add_argument("--limit", type=int, default=10**6, help="stop after so many cells")
    parser.add_argument("--rerun", action="store_true", help="run cells that are there already")
    parser.add_argument("--stale", action="store_true", help="run cells whose code has changed since")
    parser.add_argument("--confirm", action="store_true", help="see whether a change of code changed any figure")
    parser.add_argument("--table", action="store_true", help="write docs/accuracy.md from what is there, and run nothing")
    parser.add_argument("--threads", type=int, default=1)
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "truequant" / "accuracy"
    parser.add_argument("--cache", type=Path, default=default, help="where float models are kept")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    current = {cell.key: digest(cell) for cell in cells()}  # of the code that is running, whatever is edited meanwhile
    if options.table:
        _table(current)
        return
    data = load()
    wanted = [cell for cell in dict.fromkeys(cells()) if all(f"/{word}" in f"/{cell.key}" for word in options.only)]
    if options.confirm:
        confirm(wanted, data, options.cache, current)
        return
    known = _results()
    wanted = [
        cell for cell in wanted
        if options.rerun or cell.key not in known or (options.stale and known[cell.key]["code"] != current[cell.key])
    ]  # fmt: skip
    failed = []
    for cell in wanted[: options.limit]:
        try:
            row = run(cell, data, options.cache, current[cell.key])
        except tq.TruequantError as e:  # the others are worth running all the same
            failed.append(cell.key)
            print(f"{cell.key}: {e}", file=sys.stderr, flush=True)
            _keep({cell.key: {"failed": str(e).splitlines()[0], "code": current[cell.key]}})
            _table(current)
            continue
        _keep({cell.key: row})
        _table(current)
        print(f"{cell.key}: {row['top1']:.2f} (float {row['float_further']:.2f}), {row['seconds']:.0f} s", flush=True)
    if failed:
        sys.exit(f"{len(failed)} cells failed: {', '.join(failed)}")


def confirm(wanted: list[Cell], data: Data, cache: Path, current: dict[str, str]) -> None:
    """Whether stale cells still hold: one of each model and algorithm is repeated, and must give every figure again."""
    known = _results()
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in wanted:
        if cell.key in known and "failed" not in known[cell.key] and known[cell.key]["code"] != current[cell.key]:
            groups.setdefault((cell.model, cell.algorithm), []).append(cell)
    for group in groups.values():
        first = group[0]
        row, before = run(first, data, cache, current[first.key]), known[first.key]
        changed = {name for name in row if name not in ("seconds", "code", "torch", "cpu") and row[name] != before[name]}
        if changed:
            print(f"{first.key}: changed: {', '.join(f'{n} {before[n]} -> {row[n]}' for n in sorted(changed))}", flush=True)
            _keep({first.key: row})
        else:
            print(f"{first.key}: as it was; {len(group)} cells confirmed", flush=True)
            _keep({cell.key: known[cell.key] | {"code": current[cell.key]} for cell in group})
        _table(current)


def _table(current: dict[str, str]) -> None:
    atomic_write(ROOT / "docs" / "accuracy.md", accuracy_table.document(_results(), current).encode())


if __name__ == "__main__":
    main()
