"""Ways of training on several ranks, run by test_ranks_training.py."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as together
from torch import Tensor, nn

import truequant as tq
from tests.parity.ranks import BASE, CONFIGS, KINDS, Found, Net, data, main, moved, scales, shared, trained, whole


def state(qat: nn.Module) -> Found:
    return {name: whole(tensor).detach().flatten().tolist() for name, tensor in qat.state_dict().items()}


def accumulated(rank: int, world: int, folder: Path) -> Found:
    """Two batches a step, gradients exchanged once: `no_sync` and its like of FSDP2."""
    found = {}
    for kind in KINDS:
        qat = tq.prepare(Net(), torch.zeros(2, 3, 8, 8), BASE)
        model = shared(kind, qat, world)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        for step in range(2):
            optimizer.zero_grad()
            if kind == "ddp":
                with model.no_sync():
                    model(data(rank, 2 * step)).square().mean().backward()
            else:
                model.set_requires_gradient_sync(False)
                model(data(rank, 2 * step)).square().mean().backward()
                model.set_requires_gradient_sync(True)
            model(data(rank, 2 * step + 1)).square().mean().backward()
            optimizer.step()
        found[kind] = {"scales": scales(qat), "weights": {n: whole(p).detach().sum().item() for n, p in qat.named_parameters()}}
    return found


def units(rank: int, world: int, folder: Path) -> Found:
    """FSDP2 with the whole, blocks, or layers as units: learned scales are read where their layer is not gathered."""
    found = {}
    for name in ("root", "blocks", "layers"):
        qat = trained("fsdp", CONFIGS["learned"], rank, world, name)
        found[name] = {n: v for n, v in state(qat).items() if ".running_" not in n}  # which are a rank's own
    return found


def idle(rank: int, world: int, folder: Path) -> Found:
    """Learned scales that are switched off for two steps, without `find_unused_parameters`."""
    found = {}
    for kind in KINDS:
        qat = tq.prepare(Net(), torch.zeros(2, 3, 8, 8), CONFIGS["learned"])
        model = shared(kind, qat, world)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        seen = []
        for step in range(4):
            for _, quantizer in tq.quantizers(qat):
                quantizer.quantizing = step >= 2
            optimizer.zero_grad()
            model(data(rank, step)).square().mean().backward()
            optimizer.step()
            seen.append(moved(qat))
        found[kind] = {"scales": scales(qat), "moved": seen}
    return found


def limits(rank: int, world: int, folder: Path) -> Found:
    """Learned scales under an absurd learning rate: how far they have moved at most when evaluation begins, and in training."""
    found = {}
    for name in ("root", "layers"):
        qat = tq.prepare(Net(), torch.zeros(2, 3, 8, 8), CONFIGS["learned"])
        model = shared("fsdp", qat, world, name)
        optimizer = torch.optim.SGD(model.parameters(), 100.0)
        reach = []
        for step in range(3):
            optimizer.zero_grad()
            model.train()(data(rank, step)).square().mean().backward()
            optimizer.step()
            reach.append(max(float(whole(p).detach().abs().max()) for n, p in qat.named_parameters() if n.endswith(".shift")))
            model.eval()
            reach.append(max(float(whole(p).detach().abs().max()) for n, p in qat.named_parameters() if n.endswith(".shift")))
        found[name] = reach
    return found


def _normalized_over_ranks(self: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    """What SyncBatchNorm computes, where torch itself has it: on GPUs only."""
    if not self.training:
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
    assert self.running_mean is not None
    assert self.running_var is not None
    assert self.num_batches_tracked is not None
    count = x.numel() // x.shape[1] * dist.get_world_size()
    mean = together.all_reduce(x.sum((0, 2, 3))) / count
    centered = x - mean[:, None, None]
    variance = together.all_reduce(centered.square().sum((0, 2, 3))) / count
    with torch.no_grad():
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        self.num_batches_tracked.add_(1)
    y = centered * torch.rsqrt(variance + self.eps)[:, None, None]
    return y * self.weight[:, None, None] + self.bias[:, None, None]


def sync_batchnorm(rank: int, world: int, folder: Path) -> Found:
    """BatchNorm over all ranks, in a prepared model: converted first, then prepared."""
    nn.SyncBatchNorm.forward = _normalized_over_ranks  # type: ignore[method-assign]
    qat = tq.prepare(nn.SyncBatchNorm.convert_sync_batchnorm(Net()), torch.zeros(2, 3, 8, 8), BASE)
    model = shared("fsdp", qat, world)  # DDP takes SyncBatchNorm on GPUs only
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(3):
        optimizer.zero_grad()
        model(data(rank, step)).square().mean().backward()
        optimizer.step()
    return {"state": state(qat), "scales": scales(qat)}


def whole_batch(qat: nn.Module, model: nn.Module, batches: list[Tensor]) -> Found:
    """What two steps leave, behind a gradient that reaches the input through BatchNorm."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for batch in batches:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
    return state(qat)


def prepared_per_tensor(net: nn.Module) -> nn.Module:
    return tq.prepare(net, torch.zeros(2, 3, 8, 8), tq.QConfig.preset("w8a8-per-tensor").with_observer(tq.ranges.MinMax()))


def sync_batchnorm_per_tensor(rank: int, world: int, folder: Path) -> Found:
    """BatchNorm over all ranks behind a layer with one scale, whose statistics are those of the float weights."""
    qat = prepared_per_tensor(nn.SyncBatchNorm.convert_sync_batchnorm(Net()))
    return whole_batch(qat, shared("fsdp", qat, world), [data(rank, step) for step in range(2)])


SCENARIOS = {
    "accumulated": accumulated,
    "units": units,
    "idle": idle,
    "limits": limits,
    "sync_batchnorm": sync_batchnorm,
    "sync_batchnorm_per_tensor": sync_batchnorm_per_tensor,
}


def everything(rank: int, world: int, folder: Path) -> Found:
    return {name: scenario(rank, world, folder) for name, scenario in SCENARIOS.items()}


if __name__ == "__main__":
    main({"everything": everything})
