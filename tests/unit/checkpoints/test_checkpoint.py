"""`save_checkpoint` and `load_checkpoint`: parts beside the model, the file's bytes, and what does not fit."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

import truequant as tq
from tests.training_runs import EXAMPLE, Net, Run, assert_same_model, fresh, random_states, seed, started
from truequant.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from truequant.errors import FileError, PlanError, StateError
from truequant.fake import FakeQuantize


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "training.ckpt"


# -- parts beside the model --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "build",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 9),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, 9),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o, [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.8)], [3]
        ),
        lambda o: torch.optim.lr_scheduler.ChainedScheduler([torch.optim.lr_scheduler.ConstantLR(o)], optimizer=o),
    ],
    ids=["cosine", "one-cycle", "sequential", "chained"],
)
@pytest.mark.filterwarnings("ignore:.*(scheduler.step.*epoch|epoch.*scheduler.step).*:UserWarning")  # SequentialLR's own
def test_schedulers_of_torch_resume(path: Path, build: Callable[[Any], Any]) -> None:
    def rate(run: Run, steps: int) -> list[float]:
        rates = []
        for _ in range(steps):
            run.train(1)
            rates.append(run.optimizer.param_groups[0]["lr"])
        return rates

    whole, resumed = started("w8a8"), fresh()
    for run in (whole, resumed):
        run.scheduler = build(run.optimizer)
    seed(0)
    rate(whole, 2)
    save_checkpoint(path, **whole.parts())
    rates = rate(whole, 4)
    load_checkpoint(path, **resumed.parts())
    assert rate(resumed, 4) == rates
    assert_same_model(whole.model, resumed.model)


def test_plateau_and_scaler_and_generator_and_extra(path: Path) -> None:
    run = started("w8a8")
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(run.optimizer)  # its best is infinite at first
    scaler, generator = torch.amp.GradScaler("cpu", init_scale=512.0), torch.Generator().manual_seed(5)
    extra = {"best": 0.5, "history": [(1, float("nan"))], "codes": torch.arange(3), 3: None, "raw": b"\x00\xff"}
    parts = {"model": run.model, "optimizer": run.optimizer}
    torch.rand(3, generator=generator)
    save_checkpoint(path, **parts, scheduler=plateau, scaler=scaler, loader=generator, extra=extra)
    expected = torch.rand(3, generator=generator)
    fresh_run, other, drawn = fresh(), torch.amp.GradScaler("cpu"), torch.Generator()
    other_plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(fresh_run.optimizer)
    found = load_checkpoint(
        path, model=fresh_run.model, optimizer=fresh_run.optimizer, scheduler=other_plateau, scaler=other, loader=drawn
    )
    assert other.state_dict() == scaler.state_dict()
    assert other_plateau.state_dict() == plateau.state_dict()
    assert torch.equal(torch.rand(3, generator=drawn), expected)
    assert list(found.extra) == list(extra)
    assert torch.equal(found.extra["codes"], extra["codes"])
    assert repr(found.extra["history"]) == "[(1, nan)]"
    assert found.extra["raw"] == b"\x00\xff"


def test_parameter_groups_keep_their_options_and_order(path: Path) -> None:
    def groups(model: nn.Module) -> list[dict[str, Any]]:
        named = [(n, p) for n, p in model.named_parameters()]
        return [
            {"params": [p for n, p in named if "head" in n], "lr": 0.3},
            {"params": [p for n, p in named if "head" not in n], "weight_decay": 0.1},
        ]

    model = tq.prepare(Net(), EXAMPLE, "w2a2-all")
    optimizer = torch.optim.AdamW(groups(model), 0.01, betas=(0.8, 0.9))
    F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.7
    save_checkpoint(path, model=model, optimizer=optimizer)
    other = Net()
    restored = torch.optim.AdamW(groups(other), 0.5)
    load_checkpoint(path, model=other, optimizer=restored)
    assert restored.param_groups[0]["lr"] == 0.7
    assert restored.param_groups[1]["betas"] == (0.8, 0.9)
    assert [len(g["params"]) for g in restored.param_groups] == [len(g["params"]) for g in optimizer.param_groups]


def test_the_model_wrapped_by_data_parallel_is_the_model(path: Path) -> None:
    run = started("w8a8")
    run.train(1)
    save_checkpoint(path, model=nn.DataParallel(run.model))
    model = Net()
    load_checkpoint(path, model=nn.DataParallel(model))
    assert_same_model(run.model, model)


def test_a_prepared_part_of_a_larger_module(path: Path) -> None:
    def build() -> nn.ModuleDict:
        return nn.ModuleDict({"net": Net(), "loss": nn.Linear(5, 1)})

    whole, other = build(), build()
    tq.prepare(whole["net"], EXAMPLE, "w4a4", inplace=True)
    whole["net"](torch.randn(4, 3, 8, 8))
    save_checkpoint(path, model=whole)
    assert load_checkpoint(path, model=other).kind == "qat"
    assert_same_model(whole["net"], other["net"])
    assert torch.equal(whole["loss"].weight, other["loss"].weight)


def test_looking_into_a_file_restores_nothing(path: Path) -> None:
    run = started("w4a4")
    save_checkpoint(path, **run.parts(), step=11, extra="note")
    before = random_states()
    found = load_checkpoint(path)
    assert isinstance(found, Checkpoint)
    assert (found.kind, found.step, found.extra, found.plan) == ("qat", 11, "note", run.model.binding.plan)
    assert dict(found.libraries)["torch"] == torch.__version__
    assert random_states() == before


class FloatMomentum(torch.optim.Optimizer):
    """Momentum in float32, whatever the parameters' dtype."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p, dtype=torch.float32))
            momentum.mul_(0.9).add_(p.grad.float())
            p.sub_((self.param_groups[0]["lr"] * momentum).to(p.dtype))


def test_an_optimizer_state_keeps_its_own_dtype(path: Path) -> None:
    model, other = nn.Linear(8, 8).bfloat16(), nn.Linear(8, 8).bfloat16()
    optimizer, restored = FloatMomentum(model.parameters()), FloatMomentum(other.parameters())
    model(torch.randn(3, 8).bfloat16()).sum().backward()
    optimizer.step()
    save_checkpoint(path, model=model, optimizer=optimizer)
    load_checkpoint(path, model=other, optimizer=restored)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert restored.state[q]["momentum"].dtype == torch.float32
        assert torch.equal(restored.state[q]["momentum"], optimizer.state[p]["momentum"])


def test_the_second_normal_number_of_a_pair_is_kept(path: Path) -> None:
    random.gauss(0, 1), numpy.random.normal()  # both draw two and keep one
    save_checkpoint(path, model=nn.Linear(1, 1))
    expected = [random.gauss(0, 1), random.random()], numpy.random.normal(size=3).tolist()
    seed(5)
    load_checkpoint(path, model=nn.Linear(1, 1))
    assert ([random.gauss(0, 1), random.random()], numpy.random.normal(size=3).tolist()) == expected


# -- the file ----------------------------------------------------------------------------------------------------------
def test_the_file_is_safetensors_and_equal_states_give_equal_bytes(path: Path, tmp_path: Path) -> None:
    run = started("w4a4")
    run.train(2)
    (tmp_path / "deep").mkdir()
    other = tmp_path / "deep" / "other.ckpt"
    for target in (path, other):
        save_checkpoint(target, **run.parts(), step=2)
    assert path.read_bytes() == other.read_bytes()
    tensors = safetensors.torch.load_file(path)
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensors[f"model/{name}"], tensor)
    assert "optimizer/stem.weight/momentum_buffer" in tensors


def test_what_is_restored_and_saved_again_has_the_same_bytes(path: Path, tmp_path: Path) -> None:
    run = started("w4a4", "adam")
    run.train(3)
    save_checkpoint(path, **run.parts(), step=3)
    resumed = fresh("adam")
    load_checkpoint(path, **resumed.parts())
    save_checkpoint(tmp_path / "again.ckpt", **resumed.parts(), step=3)
    assert (tmp_path / "again.ckpt").read_bytes() == path.read_bytes()


def test_tied_weights_are_stored_once_and_stay_tied(path: Path) -> None:
    def build() -> nn.Sequential:
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        model[2].weight = model[0].weight
        return model

    model, other = build(), build()
    size = save_checkpoint(path, model=model)
    names = [n for n in safetensors.torch.load_file(path) if n.endswith(".weight")]
    assert names == ["model/0.weight"]
    assert size > 0
    load_checkpoint(path, model=other)
    assert other[2].weight is other[0].weight
    assert torch.equal(other[0].weight, model[0].weight)

    safetensors.torch.save_model(model, path)  # which leaves out the second name
    other = build()
    found = load_checkpoint(path, model=other)
    assert len(found.missing) == 1
    assert torch.equal(other[2].weight, model[0].weight)


# -- what does not fit -------------------------------------------------------------------------------------------------
def test_another_plan_is_named(path: Path) -> None:
    save_checkpoint(path, model=started("w4a4").model)
    model = tq.prepare(Net(), EXAMPLE, "w8a8")
    with pytest.raises(PlanError, match="prepared by another plan: their quantizers differ"):
        load_checkpoint(path, model=model)


def test_a_part_of_a_prepared_model_has_no_plan(path: Path) -> None:
    model = started("w8a8").model
    with pytest.raises(StateError, match="'hidden' is a part of a prepared model"):
        save_checkpoint(path, model=model.hidden)


def test_parts_that_the_file_lacks_are_errors(path: Path) -> None:
    run = started("w8a8")
    save_checkpoint(path, model=run.model, optimizer=run.optimizer)
    resumed = fresh()
    with pytest.raises(FileError, match="holds no state of the loader\n  got:      a model, optimizer"):
        load_checkpoint(path, model=resumed.model, loader=resumed.loader)
    assert type(resumed.model) is Net


# -- without a plan ----------------------------------------------------------------------------------------------------
def test_quantizers_that_were_placed_by_hand_resume_with_their_own_clocks(path: Path) -> None:
    def build() -> nn.Sequential:
        quantizers = (
            FakeQuantize(tq.QuantScheme(tq.types.uint8)),
            FakeQuantize(tq.QuantScheme(tq.types.uint4, scale=tq.scales.LSQ())),
        )
        return nn.Sequential(nn.Linear(6, 6), quantizers[0], nn.ReLU(), nn.Linear(6, 6), quantizers[1])

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(4, 6)).square().mean().backward()
            optimizer.step()

    model, other = build(), build()
    optimizer, restored = torch.optim.Adam(model.parameters()), torch.optim.Adam(other.parameters())
    train(model, optimizer, 3)
    model[1].clock.enabled = False
    save_checkpoint(path, model=model, optimizer=optimizer)
    train(model, optimizer, 3)
    found = load_checkpoint(path, model=other, optimizer=restored)
    assert (found.kind, found.plan, found.config) == ("qat", None, None)
    train(other, restored, 3)
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in model.state_dict().items())
    assert [m.clock.__getstate__() for m in (other[1], other[4])] == [m.clock.__getstate__() for m in (model[1], model[4])]
    assert (other[1].clock.enabled, other[4].clock.enabled) == (False, True)


def test_plans_that_differ_in_their_words_are_one_plan(path: Path) -> None:
    run = started("w4a4")
    save_checkpoint(path, model=run.model)
    model = tq.prepare(Net(), EXAMPLE, "w4a4")
    plan = model.binding.plan
    model.binding.plan = replace(plan, sites=tuple(replace(s, reason="because", rule="at 0x7f") for s in plan.sites))
    assert load_checkpoint(path, model=model).kind == "qat"


def test_float_weights_free_ranges_that_were_frozen_for_others(path: Path) -> None:
    save_checkpoint(path, model=Net())
    run = started("w8a8")
    run.train(1)
    tq.freeze(run.model)
    load_checkpoint(path, model=run.model)
    assert run.model.binding.clock.state == "training"


class Versioned(nn.Linear):
    """A class that says its version in text, as models of transformers do."""

    _version = "0.0.5"  # type: ignore[assignment]


def test_a_version_of_text_is_read_back(tmp_path: Path) -> None:
    x = torch.rand(2, 8)
    qat = tq.calibrate(tq.prepare(Versioned(8, 4), x), [x], progress=False).eval()
    tq.save_checkpoint(tmp_path / "v.ckpt", model=qat)
    again = Versioned(8, 4)
    tq.load_checkpoint(tmp_path / "v.ckpt", model=again)
    assert torch.equal(again.eval()(x), qat(x))
