"""What int16 saturation costs on a CPU with AVX2 and without VNNI, and what its remedies cost in speed.

    python benchmarks/saturation.py                     accuracy on an emulated CPU (needs qemu-user), speed on this one
    python benchmarks/saturation.py --part speed        only the second

Three files of one network, trained alike: signed 8-bit weights (target "onnxruntime-vnni"), unsigned ones with zero point 128
where a layer can saturate (the default target), and weights of 7 bits (`w7a8`). Accuracy: the first test images of MNIST
through the very file, in onnxruntime on an emulated Haswell, beside the same file here. Speed: medians on this machine, taking
turns.
"""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from torch import nn

import truequant as tq
from truequant.analysis import median_seconds
from truequant.demo import MODELS, load_mnist
from truequant.demo.training import Recipe, fit
from truequant.runtimes import CompiledModel, onnx_bytes, saturating_layers

CHILD = """
import sys, json, numpy as np, onnxruntime
o = onnxruntime.SessionOptions(); o.log_severity_level = 3; o.intra_op_num_threads = 1
s = onnxruntime.InferenceSession(sys.argv[1], o, providers=["CPUExecutionProvider"])
x = np.load(sys.argv[2]); name = s.get_inputs()[0].name
names = [v.name for v in s.get_outputs()]
found = [s.run(names, {name: x[i:i + 50]}) for i in range(0, len(x), 50)]
np.savez(sys.argv[3], **{n: np.concatenate([f[k] for f in found]) for k, n in enumerate(names)})
"""
FORMS = {
    "s8 weights": ("w8a8", "onnxruntime-vnni"),
    "u8 weights": ("w8a8", "onnxruntime"),
    "7-bit weights": ("w7a8", "onnxruntime"),
}
CPU = "Haswell-noTSX"


def trained(model: str, preset: str, images: int) -> tq.Int8Model:
    """One epoch in float over twice as many images, then one of QAT."""
    torch.manual_seed(0)
    data = load_mnist(None)
    net: nn.Module = MODELS[model]()
    fit(net, data.train_images[: 2 * images], data.train_labels[: 2 * images], Recipe(1, 0.05, seed=0))
    qat = tq.prepare(net, data.train_images[:8], preset)
    tq.calibrate(qat, data.train_images[:2000].split(250))
    fit(qat, data.train_images[:images], data.train_labels[:images], Recipe(1, 0.01, seed=1))
    return tq.convert(qat.eval())


def emulated(program: Any, images: torch.Tensor, cpu: str | None) -> dict[str, Any]:
    """Outputs and codes of a file; cpu None runs it here."""
    with tempfile.TemporaryDirectory() as folder:
        model, x, y = (Path(folder) / name for name in ("m.onnx", "x.npy", "y.npz"))
        model.write_bytes(onnx_bytes(program, form="qoperator", show_edges=True))
        np.save(x, images.numpy())
        before = [] if cpu is None else [shutil.which("qemu-x86_64") or "qemu-x86_64", "-cpu", cpu]
        done = subprocess.run(
            [*before, sys.executable, "-c", CHILD, str(model), str(x), str(y)], capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        return dict(np.load(y))


def accuracy_row(model: str, name: str, int8: tq.Int8Model, images: torch.Tensor, labels: torch.Tensor) -> harness.Row:
    program = dataclasses.replace(int8.program, target=FORMS[name][1])
    here, there = emulated(program, images, None), emulated(program, images, CPU)
    codes = [n for n in program.edges if n != program.nodes[0].output]
    different = sum(int((here[n] != there[n]).sum()) for n in codes)
    output = str(program.outputs)
    top1 = [100 * float((torch.from_numpy(r[output]).argmax(1) == labels).double().mean()) for r in (here, there)]
    return {
        "model": model, "weights": name, "layers_that_can": len(saturating_layers(program)), "images": len(images),
        "top1_here": top1[0], "top1_emulated": top1[1], "different": different,
        "inner_codes": sum(int(here[n].size) for n in codes),
        "predictions_changed": int((here[output].argmax(1) != there[output].argmax(1)).sum()), "emulated": CPU,
    }  # fmt: skip


def speed_rows(model: str, made: dict[str, tq.Int8Model], images: torch.Tensor, rounds: dict[int, int]) -> list[harness.Row]:
    compiled = {n: CompiledModel(dataclasses.replace(i.program, target=FORMS[n][1])) for n, i in made.items()}
    rows = []
    for batch, count in rounds.items():
        found = median_seconds({n: (lambda run=run, batch=batch: run(images[:batch])) for n, run in compiled.items()}, count)
        first = found["s8 weights"]
        rows += [{"model": model, "weights": n, "batch": batch, "seconds": s, "ratio": s / first} for n, s in found.items()]
    return rows


ACCURACY: harness.Columns = {
    "model": lambda r: r["model"],
    "weights": lambda r: r["weights"],
    "layers that can saturate": lambda r: str(r["layers_that_can"]),
    "codes different there": lambda r: f"{100 * r['different'] / r['inner_codes']:.2f} %",
    "top-1 here": lambda r: f"{r['top1_here']:.1f} %",
    "top-1 there": lambda r: f"{r['top1_emulated']:.1f} %",
    "predictions changed": lambda r: str(r["predictions_changed"]),
}
SPEED: harness.Columns = {
    "model": lambda r: r["model"],
    "weights": lambda r: r["weights"],
    "batch": lambda r: str(r["batch"]),
    "time": lambda r: harness.milliseconds(r["seconds"]),
    "of s8 weights": lambda r: harness.ratio(r["ratio"]),
}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--part", choices=("all", "train", "accuracy", "speed"), default="all")
    parser.add_argument("--models", nargs="*", default=["lenet", "resnet"])
    parser.add_argument("--images", type=int, default=1000, help="test images on the emulated CPU")
    parser.add_argument("--training", type=int, default=10_000, help="training images of the QAT epoch")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a folder where trained models are found again")
    chosen = harness.options(parser)
    data = load_mnist(None)
    images, labels = data.test_images[: chosen.images], data.test_labels[: chosen.images]
    accuracy: list[harness.Row] = []
    speed: list[harness.Row] = []
    for model in chosen.models:
        by_preset = {p: _kept(model, p, chosen) for p in ("w8a8", "w7a8")}
        made = {name: by_preset[preset] for name, (preset, _) in FORMS.items()}
        if chosen.part in ("all", "accuracy"):
            accuracy += [accuracy_row(model, name, int8, images, labels) for name, int8 in made.items()]
        if chosen.part in ("all", "speed"):
            speed += speed_rows(model, made, data.test_images, {1: 100, 64: 20})
    if accuracy:
        where = f"an emulated CPU with AVX2 and without VNNI ({CPU})"
        title = f"The same QOperator file on {where}, {chosen.images} test images of MNIST"
        harness.publish("saturation", chosen, accuracy, ("model", "weights"), ACCURACY, title)
    if speed:
        title = "What the remedies cost in onnxruntime on this machine"
        harness.publish("saturation_speed", chosen, speed, ("model", "weights", "batch"), SPEED, title)


def _kept(model: str, preset: str, chosen: Any) -> tq.Int8Model:
    path = None if chosen.keep is None else chosen.keep / f"{model}-{preset}.tq"
    if path is not None and path.is_file():
        return tq.load(path)
    int8 = trained(model, preset, chosen.training)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        int8.save(path)
    return int8


if __name__ == "__main__":
    main()
