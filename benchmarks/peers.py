"""Other tools for quantization-aware training, each prepared as its documentation does it; only what is installed is measured.

None of them is a requirement of the project. `prepare` takes the plain model in training mode and one batch, and returns a
module whose training step can be timed. Each quantizes to 8 bits with its defaults; where a tool would fold BatchNorm away
before training, that is left out, since the float model trains it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Peer:
    """A tool: its distribution and how it prepares a model."""

    package: str
    prepare: Callable[[nn.Module, Tensor], nn.Module]

    def version(self) -> str | None:
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None


def _fx(model: nn.Module, x: Tensor) -> nn.Module:
    """torch.ao, FX graph mode: its quantizers observe and quantize in training from the start."""
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    prepared: nn.Module = prepare_qat_fx(model, get_default_qat_qconfig_mapping("x86"), (x,))
    return prepared.train()


def _pt2e(model: nn.Module, x: Tensor) -> nn.Module:
    """torchao, export mode (prototype 2)."""
    from torchao.quantization.pt2e import move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    exported = torch.export.export(model, (x,)).module()
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_qat=True))
    prepared: nn.Module = prepare_qat_pt2e(exported, quantizer)
    move_exported_model_to_train(prepared)
    return prepared


def _brevitas(model: nn.Module, x: Tensor) -> nn.Module:
    """Brevitas, its graph flow, ranges collected by one batch; learned afterwards."""
    from brevitas.graph.calibrate import calibration_mode
    from brevitas.graph.quantize import preprocess_for_quantize, quantize

    prepared = quantize(preprocess_for_quantize(model, merge_bn=False, relu6_to_relu=True))
    with torch.no_grad(), calibration_mode(prepared):
        prepared(x)
    return prepared.train()


def _nncf(model: nn.Module, x: Tensor) -> nn.Module:
    """NNCF: quantized after training on one batch, then trained with its fake quantizers."""
    import nncf

    prepared: nn.Module = nncf.quantize(model.eval(), nncf.Dataset([x]), subset_size=1, fast_bias_correction=True)
    return prepared.train()


def _quanto(model: nn.Module, x: Tensor) -> nn.Module:
    """optimum-quanto: weights and activations int8, ranges of activations from one batch."""
    from optimum.quanto import Calibration, qint8, quantize

    quantize(model, weights=qint8, activations=qint8)
    with torch.no_grad(), Calibration():
        model(x)
    return model.train()


PEERS: dict[str, Peer] = {
    "torch.ao FX": Peer("torch", _fx),
    "torchao pt2e": Peer("torchao", _pt2e),
    "Brevitas": Peer("brevitas", _brevitas),
    "NNCF": Peer("nncf", _nncf),
    "quanto": Peer("optimum-quanto", _quanto),
}
