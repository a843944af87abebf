"""Area 12: `convert` ships what was trained, as integers, or refuses with the name of the site."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.demo import MODELS, load_mnist
from truequant.errors import CalibrationError, ConversionError, StateError
from truequant.integer import IntegerProgram
from truequant.integer.nodes import Conv, Linear


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.depth = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return self.fc(F.max_pool2d(x + self.depth(x), 2).mean((2, 3)))


X = torch.randn(8, 1, 10, 10)


@pytest.fixture
def qat() -> nn.Module:
    torch.manual_seed(0)
    model = tq.prepare(Net(), X)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn_like(X)).square().sum().backward()
        optimizer.step()
    return model.eval()


def layers(program: IntegerProgram) -> dict[str, Conv | Linear]:
    return {n.output: n for n in program.nodes if isinstance(n, (Conv, Linear))}


def test_trained_parameters_are_the_shipped_ones(qat: nn.Module) -> None:
    """Weights on their own grids; BatchNorm in scale and bias: sw' = sw |f|, bq = rint(b' / (sx sw'))."""
    program = tq.convert(qat).program
    shipped = layers(program)
    for name in ("conv", "depth", "fc"):
        weight = qat.get_parameter(f"{name}.weight").detach()
        shape = (-1, *(1,) * (weight.dim() - 1))
        largest = 127 if name == "depth" else 64  # the default narrows weights where kernels add pairs of products
        own = weight.abs().flatten(1).amax(1) / largest
        codes = torch.clamp(torch.round(weight / own.reshape(shape)), -largest, largest)
        bias, factor = torch.zeros(len(weight)).double(), torch.ones(len(weight)).double()
        if name == "conv":
            norm = qat.get_submodule("norm")
            factor = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)  # type: ignore[union-attr, operator]
            bias = norm.bias.detach().double() - norm.running_mean.double() * factor  # type: ignore[union-attr, operator]
        else:
            bias = qat.get_parameter(f"{name}.bias").detach().double()
        scale = (own.double() * factor.abs()).float()
        unit = torch.tensor(program.edges[shipped[name].input].scale) * scale
        assert torch.equal(shipped[name].weight, (codes * factor.sign().float().reshape(shape)).to(torch.int8))
        assert torch.equal(shipped[name].weight_scale, scale)
        assert torch.equal(shipped[name].bias, torch.round(bias / unit.double()).to(torch.int32))


def test_weights_are_int8_and_nothing_float_or_fake_is_left(qat: nn.Module) -> None:
    int8 = tq.convert(qat)
    for node in layers(int8.program).values():
        assert node.weight.dtype == torch.int8
        assert node.bias.dtype == torch.int32
        assert node.weight_scale.numel() in (1, node.weight.shape[0])
    with pytest.warns(UserWarning, match="an Int8 model has no parameters"):
        assert list(int8.parameters()) == []
    assert [type(m).__name__ for m in int8.modules()] == ["Int8Model"]
    assert int8.ops() == {"Add": 1, "Conv": 2, "Dequantize": 1, "GlobalAverage": 1, "Linear": 1, "MaxPool": 1, "Quantize": 1}


def test_every_code_and_output_equals_evaluation(qat: nn.Module) -> None:
    int8 = tq.convert(qat)
    for x in (X, X[:1], 10 * X, torch.zeros_like(X)):
        ours, theirs = tq.codes(qat, x), int8.codes(x)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k].int(), theirs[k].int()) for k in ours)
        with torch.no_grad():
            assert torch.equal(qat(x), int8(x))


def test_size_and_accuracy_on_mnist(tmp_path: Path) -> None:
    torch.manual_seed(1)
    data = load_mnist()
    qat = tq.prepare(MODELS["lenet"](), data.train_images[:8])
    optimizer = torch.optim.SGD(qat.parameters(), 0.05, momentum=0.9)
    for i in range(60):
        optimizer.zero_grad()
        rows = slice(64 * i, 64 * i + 64)
        F.cross_entropy(qat(data.train_images[rows]), data.train_labels[rows]).backward()
        optimizer.step()
    int8 = tq.convert(qat.eval())
    images, labels = data.test_images[:2000], data.test_labels[:2000]
    with torch.no_grad():
        evaluated = qat(images)
    # After 60 steps: 0.86 and 0.86 with AVX2 kernels, 0.92 with baseline ones, a seed each.
    assert float((evaluated.argmax(1) == labels).float().mean()) > 0.7
    assert torch.equal(int8(images), evaluated)
    floats = {k: v for k, v in qat.state_dict().items() if "quantizers" not in k}
    assert int8.save(tmp_path / "model.tq") == (tmp_path / "model.tq").stat().st_size == int8.size_bytes
    assert int8.size_bytes <= 0.3 * len(safetensors.torch.save(floats))


def test_the_converted_model_is_deterministic_and_batch_invariant(qat: nn.Module, tmp_path: Path) -> None:
    first, second = tq.convert(qat), tq.convert(qat)
    first.save(tmp_path / "a.tq")
    second.save(tmp_path / "b.tq")
    assert (tmp_path / "a.tq").read_bytes() == (tmp_path / "b.tq").read_bytes()
    x = torch.randn(16, 1, 10, 10)
    whole = first(x)
    assert torch.equal(whole, first(x))
    assert torch.equal(whole, torch.cat([first(row) for row in x.split(1)]))
    assert torch.equal(whole, torch.cat([first(part) for part in x.split(5)]))


def test_a_new_process_needs_none_of_the_training_code(qat: nn.Module, tmp_path: Path) -> None:
    tq.convert(qat).save(tmp_path / "model.tq")
    safetensors.torch.save_file({"x": X}, tmp_path / "x.safetensors")
    code = (
        "import json, sys, safetensors.torch, truequant as tq\n"
        "x = safetensors.torch.load_file(sys.argv[2])['x']\n"
        "print(json.dumps(tq.load(sys.argv[1])(x).tolist()))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.tq"), str(tmp_path / "x.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    with torch.no_grad():
        assert torch.equal(torch.tensor(json.loads(done.stdout)), qat(X))


def test_convert_does_not_change_its_argument(qat: nn.Module) -> None:
    qat.train()
    qat.get_submodule("norm").eval()
    before = {k: v.clone() for k, v in qat.state_dict().items()}
    modes = [m.training for m in qat.modules()]
    step = qat.binding.clock.step  # type: ignore[union-attr]
    tq.convert(qat)
    assert all(torch.equal(v, before[k]) for k, v in qat.state_dict().items())
    assert [m.training for m in qat.modules()] == modes
    assert qat.binding.clock.step == step  # type: ignore[union-attr]


# -- refusals --------------------------------------------------------------------------------------------------------------
def test_ranges_never_observed_are_named() -> None:
    with pytest.raises(CalibrationError, match="6 ranges were never observed") as caught:
        tq.convert(tq.prepare(Net(), X))
    assert "'input_0'" in str(caught.value)


@pytest.mark.parametrize("name", ["depth.weight", "norm.running_var", "fc.quantizers.output.scale"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(qat: nn.Module, name: str, value: float) -> None:
    with torch.no_grad():
        qat.state_dict()[name].fill_(value)
    with pytest.raises(ConversionError, match=f"'{name}' is not finite"):
        tq.convert(qat)


def test_an_op_that_no_program_holds_is_named() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            return y + torch.rand_like(y)

    x = torch.randn(3, 4)
    with pytest.warns(UserWarning, match="tq.convert will refuse this model"):
        qat = tq.prepare(Noisy(), x)
    qat(x)
    with pytest.raises(ConversionError, match="aten.rand_like.default has no place in an integer program"):
        tq.convert(qat)
    with torch.no_grad():
        assert qat.eval()(x).shape == (3, 4)  # the prepared model is still usable


def test_a_forward_that_is_no_static_graph_is_refused() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            return y if float(y.detach().sum()) > -1e9 else y + y

    x = torch.randn(3, 4)
    qat = tq.prepare(Branches(), x)
    qat(x)
    with pytest.raises(ConversionError, match="the evaluated forward is no static graph"):
        tq.convert(qat)
    with torch.no_grad():
        assert qat.eval()(x).shape == (3, 4)


def test_a_float_model_is_refused() -> None:
    with pytest.raises(StateError, match="Net is not prepared"):
        tq.convert(Net())


class Scaled(nn.Module):
    """A forward with arguments that are no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, scale: float = 1.0, y: Tensor | None = None, twice: bool = False) -> Tensor:
        x = x if y is None else x + y
        return self.fc(x * 2 if twice else x) * scale


@pytest.mark.parametrize("example", [{"scale": 0.25}, {"scale": 0.25, "twice": True}, {"y": None}], ids=str)
def test_numbers_among_the_example_inputs_are_part_of_what_ships(example: dict[str, object]) -> None:
    x = torch.randn(5, 4)
    qat = tq.prepare(Scaled(), {"x": x, **example})
    qat(x=x, **example)
    qat.eval()
    with torch.no_grad():
        assert torch.equal(tq.convert(qat)(x=x), qat(x=x, **example))


def test_a_forward_that_asks_whether_it_is_traced_is_refused() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if torch.compiler.is_compiling() else self.fc(x.flip(1))

    x = torch.randn(5, 4)
    qat = tq.prepare(Asks(), x)
    qat(x)
    with pytest.raises(ConversionError, match="traced"):
        tq.convert(qat)
