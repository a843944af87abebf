"""The delta of EWGS from the Hessian: closed forms on quadratic losses, and state that survives a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.errors import ArgumentError
from truequant.fake import quantizers

CURVATURE = torch.tensor([0.5, 1.0, 2.0, 4.0])


def weights_only(granularity: Any = None, out: int = 1) -> Any:
    torch.manual_seed(0)
    scheme = tq.QuantScheme(
        tq.types.int4, granularity or tq.PerTensor(), scale=tq.scales.LSQ(), rounding=tq.rounding.EWGS(0.01)
    )
    model = nn.Sequential(nn.Linear(4, out, bias=False))
    return tq.prepare(model, torch.eye(4), tq.QConfig(scheme, None, None, None))


def quadratic(outputs: Tensor, item: Any) -> Tensor:
    """Of a layer that reads the unit matrix: 0.5 sum a_i w_i^2, whose Hessian is diag(a)."""
    return 0.5 * (CURVATURE * outputs.squeeze(-1).square()).sum()


def quantized(qat: Any) -> tuple[Tensor, Tensor]:
    quantizer: Any = dict(quantizers(qat))["0.weight"]
    return quantizer.on_grid(qat[0].weight.detach()).detach(), quantizer.effective_scale().detach()


def test_a_quadratic_in_closed_form() -> None:
    qat = weights_only()
    found = tq.methods.update_ewgs(qat, [torch.eye(4)], quadratic, samples=1)  # v' diag(a) v is the trace for every v
    w, scale = quantized(qat)
    reach = float(scale) * 14  # codes -7 ... 7
    gradient = reach * CURVATURE * w.flatten()
    wanted = reach**2 * float(CURVATURE.mean()) / (3 * float(gradient.std()))
    assert found == {"0.weight": pytest.approx(wanted, rel=1e-5)}
    assert dict(quantizers(qat))["0.weight"].scheme.rounding == tq.rounding.EWGS(found["0.weight"])


def test_units_of_each_channel() -> None:
    qat = weights_only(tq.PerChannel(0), out=3)

    def loss(outputs: Tensor, item: Any) -> Tensor:
        return 0.5 * (CURVATURE[:, None] * outputs.square()).sum()

    found = tq.methods.update_ewgs(qat, [torch.eye(4)] * 2, loss, samples=1)
    w, scale = quantized(qat)
    reach = (scale * 14).reshape(3, 1)
    gradient = reach * CURVATURE * w
    wanted = float((reach**2 * CURVATURE).mean()) / (3 * float(gradient.std()))
    assert found["0.weight"] == pytest.approx(wanted, rel=1e-5)


def test_hutchinson_converges_to_a_full_trace() -> None:
    qat = weights_only()
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))

    def loss(outputs: Tensor, item: Any) -> Tensor:
        return outputs.square().mean()

    found = tq.methods.update_ewgs(qat, [x], loss, samples=4000)
    w, scale = quantized(qat)
    reach = float(scale) * 14
    hessian = 2 * x.t() @ x / 16
    wanted = reach**2 * float(hessian.trace()) / 4 / (3 * float((reach * hessian @ w.flatten()).std()))
    assert found["0.weight"] == pytest.approx(wanted, rel=0.03)


def test_negative_curvature_gives_straight_through_and_linear_losses_too() -> None:
    for loss in (lambda o, i: -quadratic(o, i), lambda o, i: o.sum()):
        qat = weights_only()
        assert tq.methods.update_ewgs(qat, [torch.eye(4)], loss) == {"0.weight": 0.0}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


def prepared(granularity: Any) -> Any:
    torch.manual_seed(0)
    weight = tq.QuantScheme(tq.types.int4, granularity, scale=tq.scales.LSQ(), rounding=tq.rounding.EWGS())
    activation = tq.QuantScheme(tq.types.uint4, scale=tq.scales.LSQ(), rounding=tq.rounding.EWGS())
    x = torch.randn(8, 1, 8, 8)
    return tq.calibrate(tq.prepare(Net(), x, tq.QConfig(weight, activation)), [x])


def cross_entropy(outputs: Tensor, item: Any) -> Tensor:
    return F.cross_entropy(outputs, item[1])


@pytest.mark.parametrize("granularity", [tq.PerChannel(0), tq.PerTensor()])
def test_weights_and_activations_of_a_net_in_training_and_in_a_checkpoint(granularity: Any, tmp_path: Path) -> None:
    qat = prepared(granularity).train()
    before = {k: v.clone() for k, v in qat.state_dict().items() if "delta" not in k}
    generator = torch.Generator().manual_seed(2)
    batches = [(torch.randn(8, 1, 8, 8, generator=generator), torch.randint(0, 3, (8,), generator=generator)) for _ in range(3)]
    found = tq.methods.update_ewgs(qat, batches, cross_entropy)
    assert set(found) == {"conv.weight", "fc.weight", "relu_0", "mean_0"}
    assert all(0 < delta < 1e4 for delta in found.values())
    assert found == tq.methods.update_ewgs(qat, batches, cross_entropy)
    assert all(torch.equal(v, qat.state_dict()[k]) for k, v in before.items())
    assert qat.training
    assert all(p.grad is None for p in qat.parameters())
    loss = F.cross_entropy(qat(batches[0][0]), batches[0][1])
    loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in qat.parameters() if p.grad is not None)
    tq.save_checkpoint(tmp_path / "c.ckpt", model=qat)
    fresh = prepared(granularity)
    tq.load_checkpoint(tmp_path / "c.ckpt", model=fresh)
    assert {n: q.scheme.rounding.delta for n, q in quantizers(fresh) if n in found} == found  # type: ignore[union-attr]
    qat.eval()
    assert torch.equal(tq.convert(qat)(batches[0][0]), qat(batches[0][0]))


def test_what_there_is_nothing_to_do_for() -> None:
    qat = weights_only()
    with pytest.raises(ArgumentError, match="no batches"):
        tq.methods.update_ewgs(qat, [], quadratic)
    plain = tq.prepare(nn.Linear(4, 1), torch.eye(4))
    with pytest.raises(ArgumentError, match="no quantizer scales gradients"):
        tq.methods.update_ewgs(plain, [torch.eye(4)], quadratic)
