"""A small training that draws from every random generator, for tests that interrupt and resume one."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.fake import FakeQuantize, quantizers

EXAMPLE = torch.zeros(4, 3, 8, 8)


class Net(nn.Module):
    """A residual block, a depthwise convolution without BatchNorm, dropout, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.dropout = nn.Dropout(0.3)
        self.hidden = nn.Linear(8 * 16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.depthwise(x))
        x = self.dropout(torch.flatten(F.max_pool2d(x, 2), 1))
        return self.head(F.relu(self.hidden(x)))


class Batches:
    """A shuffled loader whose position inside an epoch is state."""

    def __init__(self) -> None:
        source = torch.Generator().manual_seed(7)
        self.x = torch.randn(24, 3, 8, 8, generator=source)
        self.y = torch.randint(0, 5, (24,), generator=source)
        self.generator = torch.Generator().manual_seed(8)
        self.order: list[int] = []

    def draw(self) -> tuple[Tensor, Tensor]:
        if not self.order:
            self.order = torch.randperm(24, generator=self.generator).tolist()
        chosen, self.order = self.order[:4], self.order[4:]
        return self.x[chosen], self.y[chosen]

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order = list(state["order"])
        self.generator.set_state(state["generator"])


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=1e-3, nesterov=True)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 3e-3, amsgrad=True)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {"sgd": sgd, "adam": adam}


class Run:
    """Everything that a training script holds. Each step draws from all three random generators."""

    def __init__(self, model: nn.Module, optimizer: str) -> None:
        self.model = model
        self.optimizer = OPTIMIZERS[optimizer](model.parameters())
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [3, 6], 0.5)
        self.loader = Batches()

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "loader": self.loader}

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            x, y = self.loader.draw()
            x = x.flip(3) if random.random() < 0.5 else x
            x = x + torch.from_numpy(numpy.random.normal(0.0, 0.1, x.shape)).float()
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(float(loss.detach()))
        return losses


def started(config: str | tq.QConfig, optimizer: str = "sgd") -> Run:
    """A run of a prepared model that has not taken a step."""
    seed(0)
    return Run(tq.prepare(Net(), EXAMPLE, config), optimizer)


def fresh(optimizer: str = "sgd") -> Run:
    """A run as a new process would build it: the float model's class alone, and other random states."""
    seed(99)
    return Run(Net(), optimizer)


def seed(value: int) -> None:
    random.seed(value)
    numpy.random.seed(value)
    torch.manual_seed(value)


def assert_same_model(a: nn.Module, b: nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert list(left) == list(right)
    assert [n for n in left if not torch.equal(left[n], right[n]) or left[n].dtype != right[n].dtype] == []
    assert a.binding.plan == b.binding.plan
    assert a.binding.clock.__getstate__() == b.binding.clock.__getstate__()
    assert [(n, m.training) for n, m in a.named_modules()] == [(n, m.training) for n, m in b.named_modules()]
    assert [(n, p.requires_grad) for n, p in a.named_parameters()] == [(n, p.requires_grad) for n, p in b.named_parameters()]
    for (name, p), (other, q) in zip(quantizers(a), quantizers(b), strict=True):
        assert (name, p.quantizing, p.is_calibrated) == (other, q.quantizing, q.is_calibrated)
        if isinstance(p, FakeQuantize):
            assert p.observing == q.observing


def assert_same_optimizer(a: Run, b: Run) -> None:
    names = [{id(p): n for n, p in run.model.named_parameters()} for run in (a, b)]
    for g, h in zip(a.optimizer.param_groups, b.optimizer.param_groups, strict=True):
        assert [names[0][id(p)] for p in g["params"]] == [names[1][id(p)] for p in h["params"]]
        assert {k: v for k, v in g.items() if k != "params"} == {k: v for k, v in h.items() if k != "params"}
        for p, q in zip(g["params"], h["params"], strict=True):
            left, right = a.optimizer.state[p], b.optimizer.state[q]
            assert left.keys() == right.keys()
            assert all(torch.equal(left[k], right[k]) if isinstance(v, Tensor) else v == right[k] for k, v in left.items())
    assert a.scheduler.state_dict() == b.scheduler.state_dict()


def random_states() -> tuple[object, object, bytes]:
    key = numpy.random.get_state()
    return random.getstate(), (key[1].tobytes(), *key[2:]), torch.get_rng_state().numpy().tobytes()
