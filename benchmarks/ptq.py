"""What each method of post-training quantization is worth on MNIST: the tables of docs/ptq.md.

    python benchmarks/ptq.py [--seeds 0 1 2] [--part per-tensor|low-bits] [--json PATH] [--markdown PATH]

Cells that the JSON file holds already are not computed again, so that the tables can be finished in several runs; `--markdown`
alone writes the tables of what is there. Float models get the epochs that QAT gets. All figures are top-1 of the last epoch on
the 10,000 test images, evaluated on codes; PTQ sees 512 training images and no label.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

import truequant as tq
from tests.quantization.qat.test_end_to_end_qat import EPOCHS, EXTRA, Separable, answers, top1, train
from truequant.demo import MODELS, Mnist, load_mnist
from truequant.files import atomic_write
from truequant.reports import cpu, versions

IMAGES, ITERATIONS = 512, 1000
NETS: dict[str, Callable[[], nn.Module]] = {"separable": Separable, "lenet": MODELS["lenet"], "mlp": MODELS["mlp"]}
BLOCKS = {"separable": ("features",), "lenet": ("",), "mlp": ("",)}
WIDTHS = {
    "w4a8": (tq.types.int4, tq.types.uint8),
    "w4a4": (tq.types.int4, tq.types.uint4),
    "w3a8": (tq.types.int3, tq.types.uint8),
}
Steps = Sequence[Any]
KEEPING = tq.methods.CrossLayerEqualization(absorb_bias=False, keep_sizes=True)
TRAINED = [f"{a}{b}{c}" for c in ("", ", rate 0.05") for a in ("CLE, ", "CLE that keeps sizes, ") for b in ("float", "QAT")]


def per_tensor_methods() -> dict[str, Steps]:
    equalize, rounded = tq.methods.CrossLayerEqualization(), tq.methods.AdaRound(iterations=ITERATIONS)
    return {
        "min-max": [tq.ranges.MinMax()],
        "MSE": [tq.ranges.MSE()],
        "CLE": [equalize, tq.ranges.MinMax()],
        "CLE, AdaRound": [equalize, tq.ranges.MinMax(), rounded],
        "bias correction": [tq.ranges.MinMax(), tq.methods.BiasCorrection()],
        "AdaRound": [tq.ranges.MinMax(), rounded],
    }


def low_bit_methods(net: str) -> dict[str, Steps]:
    rounded = tq.methods.AdaRound(iterations=ITERATIONS)

    def block(drop: float) -> tq.methods.BlockReconstruction:
        return tq.methods.BlockReconstruction(BLOCKS[net], iterations=ITERATIONS, drop=drop)

    return {
        "nearest": [],
        "bias correction": [tq.methods.BiasCorrection()],
        "CLE": [tq.methods.CrossLayerEqualization()],
        "GPTQ": [tq.methods.GPTQ()],
        "AdaRound": [rounded],
        "block (BRECQ)": [block(0.0)],
        "block (QDrop)": [block(0.5)],
        "CLE, AdaRound, bias correction": [tq.methods.CrossLayerEqualization(), rounded, tq.methods.BiasCorrection()],
    }


class Results:
    """Cells by name, in a file that is written behind each of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = json.loads(path.read_text()) if path.exists() else {}
        self.cells: dict[str, dict[str, Any]] = found.get("cells", {})

    def cell(self, name: str, compute: Callable[[], float]) -> None:
        if name in self.cells:
            return
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # layers that a method leaves alone
            figure = compute()
        self.cells[name] = {"top1": round(figure, 2), "seconds": round(time.perf_counter() - started, 1)}
        print(f"{name}: {figure:.2f} %, {self.cells[name]['seconds']} s", flush=True)
        facts = {"versions": versions(), "cpu": asdict(cpu()), "images": IMAGES, "iterations": ITERATIONS}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, (json.dumps(facts | {"cells": self.cells}, indent=1) + "\n").encode())


class Bench:
    """Float models of one seed, trained when first asked for and kept in `out/`."""

    def __init__(self, data: Mnist, results: Results, seed: int) -> None:
        self.data, self.results, self.seed = data, results, seed

    def model(self, net: str, continued: bool, spread: bool = True) -> nn.Module:
        """With the extra epochs or without; the separable net's channels are spread behind training, which sees none of it."""
        path = Path("out/ptq") / f"{net}-{self.seed}-{'continued' if continued else 'common'}.pt"
        torch.manual_seed(self.seed)
        model = NETS[net]().eval()
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
        else:
            model = self._trained(net, model, continued)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), path)
        if spread and isinstance(model, Separable):
            model.spread()
        return model

    def _trained(self, net: str, fresh: nn.Module, continued: bool) -> nn.Module:
        if not continued:
            return train(fresh, self.data, EPOCHS, 0.05, self.seed)
        self.model(net, False)  # trains it where that has not been done
        fresh.load_state_dict(torch.load(Path("out/ptq") / f"{net}-{self.seed}-common.pt", weights_only=True))
        return train(fresh, self.data, EXTRA, 0.01, self.seed + 1)

    def top1(self, model: nn.Module) -> float:
        return top1(answers(model.eval(), self.data.test_images), self.data.test_labels)

    def calibration(self) -> tuple[Tensor, ...]:
        return self.data.train_images[:IMAGES].split(128)

    def ptq(self, net: str, config: tq.QConfig, steps: Steps) -> float:
        qat = tq.prepare(self.model(net, True), self.data.train_images[:8], config)
        return self.top1(tq.calibrate(qat, self.calibration(), list(steps)))

    def qat(self, net: str, config: tq.QConfig, steps: Steps, rate: float = 0.01) -> float:
        qat = tq.prepare(self.model(net, False), self.data.train_images[:8], config)
        tq.calibrate(qat, self.calibration(), list(steps))
        return self.top1(train(qat, self.data, EXTRA, rate, self.seed + 1))

    def float_from_there(self, steps: Steps, rate: float, spread: bool = True) -> float:
        """The float model trained on from where QAT starts: with its channels spread, equalized or not; or from before that."""
        model = self.model("separable", False, spread)
        if steps:
            qat = tq.prepare(model, self.data.train_images[:8], tq.QConfig.preset("w8a8-per-tensor"))
            model = tq.restore_float(tq.calibrate(qat, self.calibration(), list(steps)))
        return self.top1(train(model, self.data, EXTRA, rate, self.seed + 1))

    def per_tensor(self) -> None:
        """The depthwise-separable net with channels of very different ranges, one scale for each weight, 8 bits."""
        config = tq.QConfig.preset("w8a8-per-tensor")
        name = f"per-tensor/{self.seed}"
        self.results.cell(f"{name}/float", lambda: self.top1(self.model("separable", True)))
        self.results.cell(f"{name}/CLE, QAT", lambda: self.qat("separable", config, [tq.methods.CrossLayerEqualization()]))
        self.results.cell(f"{name}/QAT", lambda: self.qat("separable", config, []))
        for cell, steps in {"CLE, ": [tq.methods.CrossLayerEqualization()], "CLE that keeps sizes, ": [KEEPING]}.items():
            for rate in (0.01, 0.05):
                at = "" if rate == 0.01 else f", rate {rate}"
                if (cell, rate) != ("CLE, ", 0.01):
                    self.results.cell(f"{name}/{cell}QAT{at}", lambda s=steps, r=rate: self.qat("separable", config, s, r))  # type: ignore[misc]
                self.results.cell(f"{name}/{cell}float{at}", lambda s=steps, r=rate: self.float_from_there(s, r))  # type: ignore[misc]
        self.results.cell(f"{name}/float, rate 0.05", lambda: self.float_from_there([], 0.05, spread=False))
        for method, steps in per_tensor_methods().items():
            self.results.cell(f"{name}/{method}", lambda steps=steps: self.ptq("separable", config, steps))  # type: ignore[misc]

    def low_bits(self) -> None:
        """Plain PTQ schemes in all layers: one scale a channel, ranges by least squared error; inputs and outputs 8 bits."""
        for net in NETS:
            self.results.cell(f"low-bits/{self.seed}/{net}/float", lambda net=net: self.top1(self.model(net, True)))  # type: ignore[misc]
        for method in low_bit_methods("mlp"):
            for net, (width, (weight, activation)) in itertools.product(NETS, WIDTHS.items()):
                config = tq.QConfig(
                    weight=tq.QuantScheme(weight, tq.PerChannel(0), observer=tq.ranges.MSE()),
                    activation=tq.QuantScheme(activation, observer=tq.ranges.MSE()),
                )
                self.results.cell(
                    f"low-bits/{self.seed}/{net}/{width}/{method}",
                    lambda net=net, config=config, method=method: self.ptq(net, config, low_bit_methods(net)[method]),  # type: ignore[misc]
                )


# -- tables --------------------------------------------------------------------------------------------------------------
def figures(cells: dict[str, dict[str, Any]], *parts: str) -> list[float]:
    """The figures of all seeds of a cell."""
    first, rest = parts[0], "/".join(parts[1:])
    return [c["top1"] for name, c in sorted(cells.items()) if name.split("/")[0] == first and name.split("/", 2)[2] == rest]


def shown(values: Sequence[float]) -> str:
    """Mean, and of how many seeds the worst; one seed is marked so."""
    if not values:
        return "–"
    mean, seeds = f"{statistics.mean(values):.2f}", len(values)
    return f"{mean} (1 seed)" if seeds == 1 else f"{mean} ({seeds} seeds, worst {min(values):.2f})"


def tables(cells: dict[str, dict[str, Any]]) -> str:
    names = ["float", *per_tensor_methods(), "QAT", *TRAINED[:4], "float, rate 0.05", *TRAINED[4:]]
    first = ["| method | top-1 |", "|---|---|", *(f"| {n} | {shown(figures(cells, 'per-tensor', n))} |" for n in names)]
    heads = [f"{net} {width}" for net in NETS for width in WIDTHS]
    second = [f"| method | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    row = [shown(figures(cells, "low-bits", net, "float")) for net in NETS for _ in WIDTHS]
    second.append(f"| float | {' | '.join(row)} |")
    for method in low_bit_methods("mlp"):
        row = [shown(figures(cells, "low-bits", net, width, method)) for net in NETS for width in WIDTHS]
        second.append(f"| {method} | {' | '.join(row)} |")
    return "\n".join([BEGIN, *first, "", *second, END])


BEGIN, END = "<!-- figures: benchmarks/ptq.py -->", "<!-- end of figures -->"


def write_tables(path: Path, text: str) -> None:
    """Put the tables between their marks."""
    page = path.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    atomic_write(path, f"{before}{text}{after}".encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--part", choices=["per-tensor", "low-bits"], action="append")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/ptq.json"))
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.json)
    if options.seeds:
        data = load_mnist()
        for part in options.part or ["per-tensor", "low-bits"]:
            for seed in options.seeds:
                bench = Bench(data, results, seed)
                bench.per_tensor() if part == "per-tensor" else bench.low_bits()
    if options.markdown is not None:
        write_tables(options.markdown, tables(results.cells))


if __name__ == "__main__":
    main()
