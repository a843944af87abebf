"""Area 9. Save, restore, resume: a training that was interrupted gives the bits of one that was not.

Every comparison is of bits: `torch.equal` on all of a model's state, no tolerances.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import truequant as tq
from tests.training_runs import EXAMPLE, Net, Run, assert_same_model, assert_same_optimizer, fresh, random_states, seed, started
from truequant.checkpoints import load_checkpoint, save_checkpoint
from truequant.errors import ArgumentError, CalibrationError
from truequant.fake import FakeQuantize, quantizers


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "training.ckpt"


# -- save and restore --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("config", ["w8a8", "w7a8", "w8a8-per-tensor", "w8a8-pow2", "w4a4", "w2a2-all", "w1a1"])
def test_every_parameter_buffer_switch_and_the_plan_come_back(path: Path, config: str) -> None:
    run = started(config)
    run.train(3)
    size = save_checkpoint(path, **run.parts(), step=3)
    assert size == path.stat().st_size
    model = Net()
    found = load_checkpoint(path, model=model)
    assert_same_model(run.model, model)
    assert isinstance(model, Net)
    assert (found.kind, found.step, found.missing) == ("qat", 3, ())
    assert found.plan == run.model.binding.plan
    assert found.config == tq.QConfig.preset(config)
    assert found.unused == ("loader", "optimizer", "scheduler")


@pytest.mark.parametrize("config", ["w8a8", "w8a8-per-tensor", "w4a4"])
def test_the_restored_model_gives_the_same_outputs_and_codes(path: Path, config: str) -> None:
    run = started(config)
    run.train(3)
    model = Net()
    save_checkpoint(path, model=run.model)
    load_checkpoint(path, model=model)
    x = torch.randn(6, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(run.model.eval()(x), model.eval()(x))
    left, right = tq.codes(run.model, x), tq.codes(model, x)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[n], right[n]) for n in left)
    assert torch.equal(tq.convert(run.model)(x), tq.convert(model)(x))


def test_a_model_that_was_never_called_comes_back_uncalibrated(path: Path) -> None:
    run = started("w4a4")
    save_checkpoint(path, model=run.model)
    model = Net()
    load_checkpoint(path, model=model)
    assert_same_model(run.model, model)
    with pytest.raises(CalibrationError):
        model.eval()(EXAMPLE)


def test_frozen_ranges_switches_modes_and_held_parameters_come_back(path: Path) -> None:
    run = started("w8a8")
    run.train(2)
    tq.freeze(run.model)
    run.model.norm.eval()
    run.model.stem.weight.requires_grad_(False)
    first = next(q for _, q in quantizers(run.model) if isinstance(q, FakeQuantize))
    first.observing, first.quantizing = False, False
    save_checkpoint(path, model=run.model)
    model = Net()
    load_checkpoint(path, model=model)
    assert_same_model(run.model, model)
    assert model.binding.clock.state == "frozen"
    assert model.dropout.training
    assert not model.norm.training


def test_a_checkpoint_in_evaluation_is_not_committed_by_loading(path: Path) -> None:
    run = started("w8a8")
    run.train(2)
    pending = {n: q.observer.pending_maximum.clone() for n, q in quantizers(run.model) if isinstance(q, FakeQuantize)}
    assert all(torch.isfinite(p) for p in pending.values())
    for module in run.model.modules():
        module.training = False  # unlike eval(), which commits
    save_checkpoint(path, model=run.model)
    model = Net()
    load_checkpoint(path, model=model)
    assert all(torch.equal(q.observer.pending_maximum, pending[n]) for n, q in quantizers(model) if n in pending)


# -- resume ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("config", ["w8a8", "w8a8-per-tensor", "w4a4", "w1a1"])
@pytest.mark.parametrize("at", [1, 5])
def test_resumed_training_equals_uninterrupted_training(path: Path, config: str, optimizer: str, at: int) -> None:
    whole = started(config, optimizer)
    whole.train(at)
    save_checkpoint(path, **whole.parts(), step=at)
    losses = whole.train(9 - at)
    end = random_states()

    resumed = fresh(optimizer)
    assert load_checkpoint(path, **resumed.parts()).step == at
    assert resumed.train(9 - at) == losses
    assert_same_model(whole.model, resumed.model)
    assert_same_optimizer(whole, resumed)
    assert random_states() == end


def test_saving_changes_nothing(path: Path) -> None:
    plain, saved = started("w4a4", "adam"), None
    losses = plain.train(6)
    saved = started("w4a4", "adam")
    again = []
    for step in range(6):
        again += saved.train(1)
        save_checkpoint(path, **saved.parts(), step=step)
    assert again == losses
    assert_same_model(plain.model, saved.model)


def test_resumed_in_another_process(path: Path) -> None:
    whole = started("w4a4", "adam")
    whole.train(3)
    save_checkpoint(path, **whole.parts(), step=3)
    whole.train(4)
    script = (
        "import torch; torch.set_num_threads(1)\nfrom truequant.checkpoints import load_checkpoint, save_checkpoint\n"
        "from tests.training_runs import Net, Run\n"
        f"run = Run(Net(), 'adam'); load_checkpoint({str(path)!r}, **run.parts()); run.train(4)\n"
        f"save_checkpoint({str(path)!r}, **run.parts(), step=7)"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root, timeout=120)
    model = Net()
    assert load_checkpoint(path, model=model).step == 7
    assert_same_model(whole.model, model)


def test_going_back_in_the_same_process_equals_the_first_time(path: Path) -> None:
    run = started("w8a8")
    run.train(4)
    save_checkpoint(path, **run.parts(), step=4)
    losses = run.train(1)
    state = {n: t.clone() for n, t in run.model.state_dict().items()}
    load_checkpoint(path, **run.parts())
    assert run.train(1) == losses  # the step count repeats: what was pending is committed all the same
    assert all(torch.equal(t, state[n]) for n, t in run.model.state_dict().items())


def test_pending_observations_take_effect_at_the_next_step(path: Path) -> None:
    run = started("w8a8")
    run.train(2)
    activations = [q for _, q in quantizers(run.model) if isinstance(q, FakeQuantize)]
    assert all(torch.isfinite(q.observer.pending_maximum) for q in activations)
    save_checkpoint(path, **run.parts())
    scales = [q.scale.clone() for q in activations]
    run.train(1)
    assert any(not torch.equal(q.scale, s) for q, s in zip(activations, scales, strict=True))
    resumed = fresh()
    load_checkpoint(path, **resumed.parts())
    again = [q for _, q in quantizers(resumed.model) if isinstance(q, FakeQuantize)]
    assert all(torch.equal(q.scale, s) for q, s in zip(again, scales, strict=True))
    resumed.train(1)
    assert all(torch.equal(p.scale, q.scale) for p, q in zip(activations, again, strict=True))


def test_an_optimizer_built_before_holds_the_same_parameters_and_the_learned_scales(path: Path) -> None:
    run = started("w4a4")
    run.train(2)
    save_checkpoint(path, **run.parts())
    resumed = fresh()
    before = dict(resumed.model.named_parameters())
    load_checkpoint(path, **resumed.parts())
    after = dict(resumed.model.named_parameters())
    assert all(after[n] is p for n, p in before.items())
    learned = [n for n in after if n.endswith(".shift")]
    assert len(learned) == len(after) - len(before) > 0
    held = {id(p) for group in resumed.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in after.values()}
    assert all("momentum_buffer" in resumed.optimizer.state[after[n]] for n in learned)


def test_averaged_weights_resume(path: Path) -> None:
    def averaged(model: nn.Module) -> AveragedModel:
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))

    run = started("w4a4")
    ema = averaged(run.model)
    for _ in range(3):
        run.train(1)
        ema.update_parameters(run.model)
    save_checkpoint(path, **run.parts(), ema=ema)
    run.train(2)
    ema.update_parameters(run.model)
    resumed = fresh()
    other = averaged(resumed.model)  # of the float model: the plan inside prepares it too
    load_checkpoint(path, **resumed.parts(), ema=other)
    resumed.train(2)
    other.update_parameters(resumed.model)
    assert int(other.n_averaged) == 4
    assert_same_model(ema.module, other.module)
    with torch.no_grad():
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(ema.eval()(x), other.eval()(x))


def test_random_states_are_left_alone_on_request(path: Path) -> None:
    run = started("w8a8")
    save_checkpoint(path, model=run.model)
    seed(3)
    before = random_states()
    load_checkpoint(path, model=Net(), restore_random=False)
    seed(3)  # building a Net draws
    Net()
    assert random_states() != before
    seed(3)
    model, drawn = Net(), random_states()
    load_checkpoint(path, model=model, restore_random=False)
    assert random_states() == drawn


# -- float and Int8 ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["checkpoint", "safetensors", "torch", "torch nested"])
def test_a_float_checkpoint_loads_into_a_prepared_model_and_back(path: Path, form: str) -> None:
    donor, qat = Net(), tq.prepare(Net(), EXAMPLE, "w4a4")
    donor.norm.running_mean.uniform_()
    if form == "checkpoint":
        save_checkpoint(path, model=donor)
    elif form == "safetensors":
        safetensors.torch.save_file(donor.state_dict(), path)
    else:
        torch.save({"model": donor.state_dict(), "epoch": 3} if "nested" in form else donor.state_dict(), path)
    qat(torch.randn(4, 3, 8, 8))  # ranges of other weights
    found = load_checkpoint(path, model=qat)
    assert found.kind == "float"
    assert found.missing == tuple(n for n in qat.state_dict() if ".quantizers." in f".{n}")
    assert found.unused == (("epoch",) if "nested" in form else ())
    expected = tq.prepare(donor, EXAMPLE, "w4a4").state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in qat.state_dict().items())
    assert not any(q.is_calibrated for _, q in quantizers(qat) if isinstance(q, FakeQuantize))

    save_checkpoint(path, model=tq.restore_float(qat))
    back = Net()
    assert load_checkpoint(path, model=back).kind == "float"
    assert all(torch.equal(t, donor.state_dict()[n]) for n, t in back.state_dict().items())


def test_float_training_resumes_too(path: Path) -> None:
    seed(0)
    whole = Run(Net(), "adam")
    whole.train(2)
    save_checkpoint(path, **whole.parts(), step=2)
    losses = whole.train(3)
    resumed = fresh("adam")
    assert load_checkpoint(path, **resumed.parts()).kind == "float"
    assert resumed.train(3) == losses


def test_a_state_dict_of_a_prepared_model_loads_into_a_prepared_model(path: Path) -> None:
    run = started("w8a8")
    run.train(2)
    torch.save({f"module.{n}": t for n, t in run.model.state_dict().items()}, path)
    model = tq.prepare(Net(), EXAMPLE, "w8a8")
    found = load_checkpoint(path, model=model)
    assert (found.kind, found.plan, found.missing) == ("qat", None, ())
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in run.model.state_dict().items())
    with pytest.raises(ArgumentError, match="tells no plan: tq.prepare the model first"):
        load_checkpoint(path, model=Net())


def test_an_int8_model_is_recognized(path: Path) -> None:
    run = started("w8a8")
    run.train(1)
    int8 = tq.convert(run.model.eval())
    int8.save(path)
    model = Net()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    found = load_checkpoint(path, model=model)
    assert found.kind == "int8"
    x = torch.randn(3, 3, 8, 8)
    assert found.int8 is not None
    assert torch.equal(found.int8(x), int8(x))
    assert type(model) is Net
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
