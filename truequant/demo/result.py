"""What a run of the demo found, and its form as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from truequant.analysis import Verification
from truequant.files import atomic_write
from truequant.reports import Cpu, Stage


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to train and where to write. data: folder of idx files, None for the repository's MNIST."""

    data: Path | None = None
    model: str = "lenet"
    preset: str = "int8"
    float_epochs: int = 3
    qat_epochs: int = 2
    seed: int = 0
    out: Path = Path("out")
    checkpoint_dir: Path | None = None
    checkpoint_every: int = 100
    resume: bool = False


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The stages of one model, compared.

    stages: "float" after `float_epochs + qat_epochs`, all in float; "ptq", that model quantized after training with ranges
    as `ptq_observer` found them; "qat", evaluated in training's own module; "int8", the program, loaded from its file;
    "onnxruntime", the exported file. verification: "int8" and "onnxruntime" against "qat", code by code.
    free: the share of the time in which latencies were measured that the calling thread ran; far below 1 on a busy machine.
    """

    options: DemoOptions
    stages: Mapping[str, Stage]
    ptq_observer: str
    verification: Verification
    test_images: int
    genuine_data: bool
    seconds: float
    versions: Mapping[str, str | None]
    cpu: Cpu
    free: float = 1.0

    @property
    def identical(self) -> bool:
        """Whether no code, no bit of an output and no prediction changed on the way."""
        return all(report.grade == "EXACT" and not report.argmax_changed for report in self.verification.runtimes.values())

    def as_json(self) -> dict[str, object]:
        """Plain values. Top-1 in percent, sizes in bytes, latencies in seconds by stage and batch size."""
        options = self.options
        return {
            "model": options.model,
            "preset": options.preset,
            "float_epochs": options.float_epochs,
            "qat_epochs": options.qat_epochs,
            "seed": options.seed,
            **{f"{name}_top1": stage.top1 for name, stage in self.stages.items()},
            "ptq_observer": self.ptq_observer,
            "codes_compared": self.verification.codes_compared,
            "codes_different": self.verification.codes_different,
            "max_difference": self.verification.max_difference,
            "argmax_changed": self.verification.argmax_changed,
            "runtimes": self.verification.to_dict(),
            "float_bytes": self.stages["float"].size,
            "int8_bytes": self.stages["int8"].size,
            "onnx_bytes": self.stages["onnxruntime"].size,
            "latency": {
                name: {str(batch): time for batch, time in stage.latency.items()} for name, stage in self.stages.items()
            },
            "latency_free": round(self.free, 3),
            "test_images": self.test_images,
            "genuine_data": self.genuine_data,
            "seconds": round(self.seconds, 2),
            "versions": dict(self.versions),
            "cpu": dataclasses.asdict(self.cpu),
        }

    def write(self, path: Path) -> None:
        """As indented JSON, atomically."""
        atomic_write(path, (json.dumps(self.as_json(), indent=2, allow_nan=False) + "\n").encode())
