"""Checkpoints that are damaged, foreign or lie: one of our errors each, and nothing that was passed is touched."""

from __future__ import annotations

import copy
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import truequant as tq
from tests.training_runs import Net, Run, fresh, random_states, seed, started
from truequant.checkpoints import load_checkpoint, save_checkpoint
from truequant.checkpoints.stored import VERSION, digest
from truequant.errors import ArgumentError, FileError, PlanError, TruequantError
from truequant.files import read_container, write_container

Header = dict[str, Any]
Forgery = Callable[[Header, dict[str, Tensor]], None]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A QAT checkpoint with an optimizer, a scheduler and a loader, learned scales among its parameters."""
    path = tmp_path_factory.mktemp("honest") / "training.ckpt"
    run = started("w4a4", "adam")
    run.train(2)
    save_checkpoint(path, **run.parts(), step=2, extra={"note": [1, 2.5]})
    return path


def forged(honest: Path, path: Path, forge: Forgery) -> Path:
    """The honest file with changed contents, and a SHA-256 that fits them."""
    header, tensors = read_container(honest)
    changed, values = copy.deepcopy(header), dict(tensors)
    forge(changed, values)
    changed["sha256"] = digest(changed, values)
    write_container(path, changed, values)
    return path


def state_of(run: Run) -> tuple[object, ...]:
    tensors = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    kinds = [(name, type(m), m.training) for name, m in run.model.named_modules()]
    options = [{k: v for k, v in g.items() if k != "params"} for g in run.optimizer.param_groups]
    held = [[id(p) for p in g["params"]] for g in run.optimizer.param_groups]
    loader = run.loader.state_dict()["generator"].numpy().tobytes(), list(run.loader.order)
    return tensors, kinds, options, held, dict(run.optimizer.state), run.scheduler.state_dict(), loader, random_states()


def assert_untouched(before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(t, after[0][n]) for n, t in before[0].items())
    assert before[1:] == after[1:]


def refused(path: Path, error: type[TruequantError], message: str, run: Run | None = None) -> TruequantError:
    """Loading raises `error` with `message` and changes nothing of what is passed."""
    run = fresh("adam") if run is None else run
    before = state_of(run)
    with pytest.raises(error) as caught:
        load_checkpoint(path, **run.parts())
    assert message in str(caught.value)
    assert_untouched(before, state_of(run))
    return caught.value


def test_the_honest_file_of_these_tests_is_read_also_when_written_again(honest: Path, tmp_path: Path) -> None:
    run = fresh("adam")
    load_checkpoint(forged(honest, tmp_path / "x", lambda header, tensors: None), **run.parts())
    assert run.train(1)


# -- damage ------------------------------------------------------------------------------------------------------------
def test_truncated_anywhere(honest: Path, tmp_path: Path) -> None:
    data, path = honest.read_bytes(), tmp_path / "x.ckpt"
    for length in [*range(12), *range(12, len(data), len(data) // 40), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(FileError, match=r"x\.ckpt"):
            load_checkpoint(path)
    refused(path, FileError, "the file is cut short")


def test_one_flipped_bit_anywhere(honest: Path, tmp_path: Path) -> None:
    data, path = honest.read_bytes(), tmp_path / "x.ckpt"
    for position in [*range(9), *random.Random(0).sample(range(9, len(data)), 60)]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(FileError, match=r"x\.ckpt"):
            load_checkpoint(path)
    damaged = bytearray(data)
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    refused(path, FileError, "the contents are not those that were written\n  got:      SHA-256 ")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path("bomb went off").write_text, ("",)


def test_foreign_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.ckpt"
    contents: dict[bytes, str] = {
        b"": "too short", b"hello, I am a text file": "not a truequant file", b"\x93NUMPY\x01\x00v\x00{'descr'": "x.ckpt",
        pickle.dumps(Bomb(), protocol=2): "not readable as a torch.save file", pickle.dumps({"a": 1}, protocol=5): "torch.save",
        b"PK\x03\x04 and no more": "not readable as a torch.save file",
    }  # fmt: skip
    for content, message in contents.items():
        path.write_bytes(content)
        refused(path, FileError, message, fresh())
    assert not (tmp_path / "bomb went off").exists()
    refused(tmp_path, FileError, "cannot be read", fresh())
    refused(tmp_path / "nothing.ckpt", FileError, "cannot be read: No such file", fresh())


def test_pickles_are_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pt"
    for content in ({"w": Bomb()}, Net(), [Bomb()]):
        torch.save(content, path)
        refused(path, FileError, "save the state dict, not the model; or save with tq.save_checkpoint", fresh())
    assert not (tmp_path / "bomb went off").exists()


def test_torch_files_without_a_state_dict_and_archives_that_unpack_to_more(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for content in ({"epoch": 3}, [torch.ones(2)], torch.ones(2), {"model": {"w": 1}}):
        torch.save(content, path)
        refused(path, FileError, "holds no state dict", fresh())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    refused(path, FileError, "a compressed archive", fresh())


def test_float_state_of_another_model(tmp_path: Path) -> None:
    path, state = tmp_path / "x.safetensors", Net().state_dict()
    run = fresh()
    run_parts = {"model": run.model}
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({**state, "head.bias": torch.zeros(6)}, "'head.bias' has another shape\n  got:      (6,) in the file"),
        ({n: t for n, t in state.items() if n != "head.bias"}, "1 names missing, 0 unknown\n  got:      missing: 'head.bias'"),
        ({("haed" if n == "head.bias" else n): t for n, t in state.items()}, "1 names missing, 1 unknown"),
        ({**state, "norm.num_batches_tracked": torch.tensor(1.0)}, "'norm.num_batches_tracked' has another dtype"),
    ]
    for content, message in cases:
        safetensors.torch.save_file(content, path)
        before = state_of(run)
        with pytest.raises(ArgumentError) as caught:
            load_checkpoint(path, **run_parts)
        assert message in str(caught.value)
        assert_untouched(before, state_of(run))


# -- lies --------------------------------------------------------------------------------------------------------------
def put(value: Any, *keys: Any) -> Forgery:
    """Set a place of the header."""

    def forge(header: Header, tensors: dict[str, Tensor]) -> None:
        place: Any = header
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return forge


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Forgery:
    def forge(header: Header, tensors: dict[str, Tensor]) -> None:
        tensors[name] = change(tensors[name].clone())

    return forge


def renamed(old: str, new: str, *keys: Any) -> Forgery:
    """Give a key of a dict in the header another name."""

    def forge(header: Header, tensors: dict[str, Tensor]) -> None:
        place: Any = header
        for key in keys:
            place = place[key]
        for pair in place.get("$dict", ()):
            pair[0] = new if pair[0] == old else pair[0]
        if old in place:
            place[new] = place.pop(old)

    return forge


def filled(value: float) -> Callable[[Tensor], Tensor]:
    return lambda t: torch.full_like(t, value)


PLAN = ("model", "plans", 0, "plan")
WEIGHT, ACTIVATION = "model/depthwise.quantizers.weight", "model/depthwise.quantizers.output"
LIES: dict[str, tuple[Forgery, type[TruequantError], str]] = {
    "another format": (put("bread", "format"), FileError, "neither a checkpoint nor an Int8 model"),
    "a later version": (put(VERSION + 1, "version"), FileError, "fix:      load it with the truequant that wrote it"),
    "no version": (lambda h, t: h.pop("version") and None, FileError, "'version' is missing"),
    "a part too many": (put(1, "payload"), FileError, "parts that no checkpoint has\n  got:      payload"),
    "another kind": (put("float", "kind"), FileError, "it says of itself what it is not"),
    "a negative step": (put(-1, "step"), FileError, "'step' is negative"),
    "true for a step": (put(True, "step"), FileError, "'step' has a wrong type"),
    "a tensor nobody names": (lambda h, t: t.update(x=torch.ones(1)), FileError, "tensors that nothing names\n  got:      x"),
    "an unknown type": (put("Popen", *PLAN, "type"), FileError, "a Plan"),
    "an unknown action": (put("explode", *PLAN, "sites", 0, "action"), FileError, "sites[0].action: cannot be"),
    "an unknown class": (put([{"type": "Rule", "select": {"class": "os.Popen"}}], *PLAN, "config", "rules"), FileError,
                         "nothing imported has this name"),
    "a site of no owner": (put("ghost", *PLAN, "sites", 0, "owner"), FileError, "names what the plan does not hold"),
    "a quantizer of no plan": (put("ghost", *PLAN, "sites", 0, "quantizer"), FileError, "names what the plan does not hold"),
    "a million channels": (put(10**12, *PLAN, "quantizers", 0, "channels"), FileError, "contradicts itself"),
    "no quantizers": (put([], *PLAN, "quantizers"), FileError, "names what the plan does not hold"),
    "no such clock": (put(7, "model", "plans", 0, "clock"), FileError, "there is no such clock"),
    "a clock of a wrong state": (put([{"state": "asleep", "enabled": True, "step": 1}], "model", "clocks"), FileError,
                                 "a clock cannot be"),
    "switches of nobody": (put({}, "model", "quantizers"), FileError, "the switches of other quantizers"),
    "a version that is none": (put({"head": 1}, "model", "versions"), FileError, "'versions' of 'head' has a wrong type"),
    "a version of words": (put({"norm": {"version": "2"}}, "model", "versions"), FileError, "'version' has a wrong type"),
    "a name for a mode": (put([3], "model", "others"), FileError, "'others'[0] has a wrong type"),
    "a NaN scale": (tensor(f"{WEIGHT}.scale", filled(float("nan"))), FileError,
                    "'depthwise.quantizers.weight' has a scale that cannot be\n  got:      scale nan"),
    "a scale of zero": (tensor(f"{WEIGHT}.scale", filled(0.0)), FileError, "expected: a finite positive number"),
    "an infinite scale": (tensor(f"{WEIGHT}.scale", filled(float("inf"))), FileError, "got:      scale inf"),
    "a negative scale": (tensor(f"{WEIGHT}.scale", filled(-1.0)), FileError, "got:      scale -1.0"),
    "a broken zero point": (tensor(f"{WEIGHT}.zero_point", filled(0.5)), FileError, "got:      zero point 0.5"),
    "a NaN shift": (tensor(f"{WEIGHT}.shift", filled(float("nan"))), FileError, "weight.shift' is not finite\n  got:      nan"),
    "a wrong shape": (tensor("model/head.bias", lambda t: t[:2]), ArgumentError, "'head.bias' has another shape"),
    "another dtype": (tensor("model/head.bias", lambda t: t.double()), ArgumentError, "fix:      model.to(torch.float64)"),
    "no tensor": (put({"$tuple": [{"$tensor": "model/stem.weight"}]}, "model", "state", "$dict", 0, 1), FileError,
                  "'stem.weight' is no tensor\n  got:      tuple"),
    "a momentum of a wrong shape": (tensor("optimizer/head.bias/exp_avg", lambda t: t[:2]), FileError,
                                    "has another shape in 'exp_avg'\n  got:      (2,)\n  expected: (5,)"),
    "another optimizer": (put("SGD", "optimizer", "class"), ArgumentError, "the optimizer is of another class"),
    "a parameter twice": (lambda h, t: h["optimizer"]["names"][0].__setitem__(0, "head.bias"), FileError, "stands twice"),
    "a parameter of nobody": (lambda h, t: h["optimizer"]["names"][0].__setitem__(0, "ghost"), ArgumentError,
                              "not in the optimizer: ['ghost']"),
    "a state that the optimizer does not take": (renamed("step", "pets", "optimizer", "states", 0), FileError,
                                                 "the optimizer does not take its state\n  got:      KeyError: 'step'"),
    "no options": (put([], "optimizer", "options"), FileError, "its parts do not fit each other"),
    "an entry of a scheduler": (put({"gamma": 1}, "scheduler", "state"), FileError, "the scheduler's state has other entries"),
    "a loader's state": (put({"generator": 3, "order": [], "x": {"$tensor": "loader/generator"}}, "loader", "state"), FileError,
                         "the loader does not take its state"),
    "a short random state": (put([3, [1, 2], None], "random", "$dict", 0, 1), FileError, "random cannot be"),
    "random states of zero bytes": (tensor("random/cpu", lambda t: t[:3]), FileError, "random cannot be"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lies(honest: Path, tmp_path: Path, lie: str) -> None:
    forge, error, message = LIES[lie]
    refused(forged(honest, tmp_path / "x.ckpt", forge), error, message)


def test_a_plan_of_another_model(honest: Path) -> None:
    seed(1)
    refused(honest, PlanError, "of its modules are not there", Run(nn.Sequential(nn.Linear(3, 3)), "adam"))

    class Wider(Net):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(16, 7)

    error = refused(honest, ArgumentError, "'head.weight' has another shape", Run(Wider(), "adam"))
    assert error.fix == "build the model with the class and the arguments that it was saved with"


def test_an_optimizer_of_other_parameters(honest: Path) -> None:
    run = fresh("adam")
    run.optimizer = torch.optim.Adam(run.model.head.parameters())
    refused(honest, ArgumentError, "group 0 of the optimizer holds other parameters", run)


def test_any_change_of_the_header_is_refused_or_harmless(honest: Path, tmp_path: Path) -> None:
    """Random junk in random places, under a SHA-256 that fits: no exception but ours, and never half a model."""
    source = random.Random(0)
    junk: list[Any] = [
        None, True, -1, 0, 2**70, 1.5, "", "ghost", "weight", [], {}, [[]], {"type": "Plan"}, {"$tensor": "model/head.bias"},
        {"$dict": [[1, 2]]}, {"$float": "nan"}, ["stem"], 10**9,
    ]  # fmt: skip
    refusals: list[str] = []
    run = fresh("adam")
    for _ in range(70):

        def forge(header: Header, tensors: dict[str, Tensor]) -> None:
            place: Any = header
            while True:
                key = source.choice(list(place) if isinstance(place, dict) else range(len(place)))
                if not isinstance(place[key], (dict, list)) or not place[key] or source.random() < 0.08:
                    break
                place = place[key]
            if source.random() < 0.2:
                del place[key]
            else:
                place[key] = source.choice(junk)

        path = forged(honest, tmp_path / "x.ckpt", forge)
        before = state_of(run)
        try:
            load_checkpoint(path, **run.parts())
        except TruequantError as error:
            refusals.append(str(error))
            assert_untouched(before, state_of(run))
        else:
            run = fresh("adam")
    assert len(refusals) > 30
    assert max(map(len, refusals)) < 4000


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(honest: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(honest.read_bytes())
    run = started("w8a8")
    with pytest.raises(TypeError, match="extra/x cannot be stored without pickle"):
        save_checkpoint(path, model=run.model, extra={"x": object()})
    with pytest.raises(FileError, match="its folder does not exist"):
        save_checkpoint(tmp_path / "nowhere" / "x.ckpt", model=run.model)
    assert path.read_bytes() == honest.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["x.ckpt"]


def test_wrong_arguments(tmp_path: Path, honest: Path) -> None:
    run, path = started("w8a8"), tmp_path / "x.ckpt"
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"model": 3}, TypeError, "the model is not an nn.Module"),
        ({"model": run.model, "step": -1}, ValueError, "the step is no count"),
        ({"model": run.model, "step": True}, ValueError, "the step is no count"),
        ({"model": run.model, "optimizer": run.scheduler}, TypeError, "the optimizer is none of torch"),
        ({"model": run.model, "loader": [1]}, TypeError, "the loader has no state to keep"),
    ]
    for arguments, error, message in cases:
        with pytest.raises(error, match=message):
            save_checkpoint(path, **arguments)
    run.train(1)
    with pytest.raises(TypeError, match="an Int8 model trains no more"):
        save_checkpoint(path, model=tq.convert(run.model.eval()))
    assert not path.exists()
    with pytest.raises(ValueError, match="an optimizer without its model"):
        load_checkpoint(honest, optimizer=run.optimizer)
