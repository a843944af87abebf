"""The main job, in the words of a user: train, quantize, convert, export, verify."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import truequant as tq
from truequant.analysis import median_seconds
from truequant.calibration import progress_bars
from truequant.demo.mnist import Mnist, load_mnist
from truequant.demo.models import MODELS
from truequant.demo.progress import train_visibly
from truequant.demo.result import DemoOptions, DemoResult
from truequant.demo.saving import job_saving
from truequant.demo.training import Recipe, accuracy, logits
from truequant.errors import ArgumentError
from truequant.files import atomic_write
from truequant.reports import Branch, Stage, cpu, plot_curves, versions
from truequant.schemes import MSE, MinMax, Observation, Percentile

_FLOAT_LEARNING_RATE = 0.05
_FINE_LEARNING_RATE = 0.01  # for QAT, and for the extra epochs that the float baseline gets
_ROUNDS = {1: 100, 64: 20}  # calls timed, by batch size
_FREE = 0.75  # of the time measured the calling thread works, where nobody else wants its core
_CALIBRATION_IMAGES = 5000  # of the training images; the held-out ones choose among what was calibrated
_RUNTIMES = ("reference", "onnxruntime")
_OBSERVERS: dict[str, Observation] = {"min-max": MinMax(), "percentile": Percentile(), "MSE": MSE()}


def run_demo(options: DemoOptions, console: Console) -> DemoResult:
    """Run the whole job, write `model.tq`, `model.onnx`, `float.safetensors`, `result.json` and `curves.png`.

    Progress goes to `console`. ArgumentError, SchemeError or DataError before any training where something is missing.
    """
    started = time.perf_counter()
    config = tq.QConfig.preset(options.preset)
    _check(options)
    data = load_mnist(options.data)
    if not data.genuine:
        console.print("these files are not the genuine MNIST: trained and tested as they are", style="yellow")
    trained = _train(options, config, data, console)

    int8 = tq.convert(trained.qat)
    int8_bytes = int8.save(options.out / "model.tq")
    int8 = tq.load(options.out / "model.tq")  # what is verified and measured from here on is the file
    onnx_bytes = tq.export_onnx(int8, options.out / "model.onnx")
    float_bytes = atomic_write(options.out / "float.safetensors", safetensors.torch.save(trained.float_model.state_dict()))

    console.print("measuring …")
    forms = {
        "float": _Form("float", trained.float_model, float_bytes),
        "ptq": _Form(f"PTQ ({trained.ptq_observer})", trained.ptq),
        "qat": _Form("QAT as evaluated", trained.qat),
        "int8": _Form("Int8 program", int8, int8_bytes),
        "onnxruntime": _Form("onnxruntime", tq.compile(int8, "onnxruntime"), onnx_bytes),
    }
    wall, worked = time.perf_counter(), time.thread_time()
    latencies = _latencies(forms, data)
    free = (time.thread_time() - worked) / (time.perf_counter() - wall)
    if free < _FREE:
        console.print(
            f"the machine was busy: this process ran for {100 * free:.0f} % of the time measured; latencies are too long",
            style="yellow",
        )
    stages = {name: _stage(form, data, {b: found[name] for b, found in latencies.items()}) for name, form in forms.items()}
    console.print(f"verifying every code of {len(data.test_images):,} images …")
    verification = tq.verify(trained.qat, int8, _batches(data.test_images), runtimes=_RUNTIMES)
    result = DemoResult(
        options=options,
        stages=stages,
        ptq_observer=trained.ptq_observer,
        verification=verification,
        test_images=len(data.test_images),
        genuine_data=data.genuine,
        seconds=time.perf_counter() - started,
        versions=versions(),
        cpu=cpu(),
        free=free,
    )
    held_out = accuracy(trained.ptq, data.held_out_images, data.held_out_labels)
    title = f"{options.model} on MNIST, {options.preset}"
    plot_curves(options.out / "curves.png", trained.branches, title, {f"PTQ ({trained.ptq_observer})": held_out})
    result.write(options.out / "result.json")
    return result


@dataclass(frozen=True, slots=True)
class _Form:
    """One form of the model: something that answers images with logits, and the size of its file."""

    title: str
    model: Callable[[Tensor], Tensor]
    size: int | None = None


@dataclass(frozen=True, slots=True)
class _Trained:
    float_model: nn.Module
    ptq: nn.Module
    ptq_observer: str
    qat: nn.Module
    branches: tuple[Branch, ...]


def _train(options: DemoOptions, config: tq.QConfig, data: Mnist, console: Console) -> _Trained:
    """A common float model, then two branches of equal length: float, which PTQ starts from, and quantization-aware."""
    torch.manual_seed(options.seed)
    common = MODELS[options.model]()
    first = Recipe(options.float_epochs, _FLOAT_LEARNING_RATE, seed=options.seed)
    extra = Recipe(options.qat_epochs, _FINE_LEARNING_RATE, seed=options.seed + 1)
    start = first.steps(len(data.train_images))
    job = {n: getattr(options, n) for n in ("model", "preset", "float_epochs", "qat_epochs", "seed")}
    job["images"] = len(data.train_images)
    with (
        job_saving(options.checkpoint_dir, options.checkpoint_every, options.resume, job) as saved,
        progress_bars(console) as progress,
    ):
        trunk = train_visibly("float", common, data, first, 0, progress, saved[0])
        float_model = copy.deepcopy(common)
        float_branch = train_visibly("float, continued", float_model, data, extra, start, progress, saved[1])

        qat = tq.prepare(common, data.train_images[:8], config)
        tq.calibrate(qat, _batches(data.train_images[:_CALIBRATION_IMAGES]))
        qat_branch = train_visibly("quantization-aware", qat, data, extra, start, progress, saved[2])
    console.print("quantizing the float model after training, in three ways …")
    ptq, observer = _quantize_after_training(float_model, config, data)
    return _Trained(float_model, ptq, observer, qat, (trunk, float_branch, qat_branch))


def _quantize_after_training(model: nn.Module, config: tq.QConfig, data: Mnist) -> tuple[nn.Module, str]:
    """The best of three ways to find ranges: highest top-1 on the held-out images, then the lowest loss."""
    candidates = []
    for name, observer in _OBSERVERS.items():
        ptq = tq.prepare(model, data.train_images[:8], config.with_observer(observer))
        tq.calibrate(ptq, _batches(data.train_images[:_CALIBRATION_IMAGES]))
        ptq.eval()
        answers = logits(ptq, data.held_out_images)
        correct = int((answers.argmax(1) == data.held_out_labels).sum())
        candidates.append((correct, -float(F.cross_entropy(answers, data.held_out_labels)), name, ptq))
    *_, name, best = max(candidates, key=lambda candidate: candidate[:2])
    return best, name


def _latencies(forms: dict[str, _Form], data: Mnist) -> dict[int, dict[str, float]]:
    """Median seconds by batch size and form."""
    models = {name: form.model for name, form in forms.items()}
    return {
        batch: median_seconds({name: partial(model, data.test_images[:batch]) for name, model in models.items()}, rounds)
        for batch, rounds in _ROUNDS.items()
    }


def _stage(form: _Form, data: Mnist, latency: dict[int, float]) -> Stage:
    return Stage(form.title, accuracy(form.model, data.test_images, data.test_labels), form.size, latency)


def _batches(images: Tensor) -> tuple[Tensor, ...]:
    return torch.split(images, 250)


def _check(options: DemoOptions) -> None:
    """Whatever would fail behind minutes of training fails now."""
    if options.model not in MODELS:
        raise ArgumentError(f"no model '{options.model}'", expected=", ".join(MODELS))
    for package in ("matplotlib", "onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise ArgumentError(f"the demo needs {package}", fix="pip install truequant[all]")
    try:
        Path(options.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"'{options.out}' cannot be the output folder: {error.strerror}", fix="--out DIR") from error
