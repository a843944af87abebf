"""The default config: the widest weights that the target computes exactly at full speed, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from truequant.errors import SchemeError
from truequant.planning.codec import config_from_json, config_to_json
from truequant.runtimes import saturating_layers
from truequant.schemes import TARGETS, Ends, uint7

CONVS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def image(axes: int, channels: int) -> Tensor:
    return torch.rand(2, channels, *(7,) * axes)


def weights(model: nn.Module, x: Tensor, config: tq.QConfig | str | None = None) -> list[str]:
    return [q.scheme.dtype.name for q in tq.plan(model, x, config).quantizers if q.kind == "weight"]


LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    **{f"conv {n}d": (lambda c=c: c(4, 8, 3), image(n, 4), "int7") for n, c in enumerate(CONVS, 1)},
    **{f"depthwise {n}d": (lambda c=c: c(4, 4, 3, groups=4), image(n, 4), "int8") for n, c in enumerate(CONVS, 1)},
    **{f"transposed {n}d": (lambda c=c: c(4, 8, 3), image(n, 4), "int7") for n, c in enumerate(TRANSPOSED, 1)},
    **{f"depthwise transposed {n}d": (lambda c=c: c(4, 4, 3, groups=4), image(n, 4), "int8")
       for n, c in enumerate(TRANSPOSED, 1)},
    "depthwise transposed, phases of several weights": (
        lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, groups=4), image(2, 4), "int8"),
    "two outputs a channel transposed": (lambda: nn.ConvTranspose2d(4, 8, 3, stride=2, groups=4), image(2, 4), "int7"),
    "depthwise transposed, phases of one weight": (
        lambda: nn.ConvTranspose2d(4, 4, 2, stride=(2, 2), groups=4), image(2, 4), "int8"),
    "transposed, one input, phases of one weight": (lambda: nn.ConvTranspose2d(1, 4, 2, stride=2), image(2, 1), "int8"),
    "transposed, one input, phases of several weights": (
        lambda: nn.ConvTranspose1d(1, 4, 3, 2, dilation=2), image(1, 1), "int7"),
    "depthwise, strided and dilated": (lambda: nn.Conv2d(4, 4, 2, 2, dilation=2, groups=4), image(2, 4), "int8"),
    "two outputs a channel": (lambda: nn.Conv2d(4, 8, 3, groups=4), image(2, 4), "int7"),
    "two inputs a group": (lambda: nn.Conv2d(4, 4, 3, groups=2), image(2, 4), "int7"),
    "one input, kernel 1": (lambda: nn.Conv2d(1, 8, 1), image(2, 1), "int8"),
    "one input, kernel 3": (lambda: nn.Conv2d(1, 8, 3), image(2, 1), "int7"),
    "linear": (lambda: nn.Linear(5, 3), torch.rand(2, 5), "int7"),
    "linear of one feature": (lambda: nn.Linear(1, 3), torch.rand(2, 1), "int8"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_by_its_kernel(name: str) -> None:
    """And no other: the layer of the program, all its weights the largest, could saturate exactly where it is narrowed."""
    make, x, expected = LAYERS[name]
    int8 = tq.convert(tq.calibrate(tq.prepare(_largest(make()), x + 0.1, "w8a8"), [x + 0.1]).eval())
    assert bool(saturating_layers(int8.program)) is (expected == "int7")
    assert not saturating_layers(tq.convert(tq.calibrate(tq.prepare(_largest(make()), x), [x]).eval()).program)
    assert weights(make(), x) == [expected]
    assert weights(make(), x, "int8") == [expected]
    assert weights(make(), x, "w8a8") == ["int8"]
    assert weights(make(), x, "w7a8") == ["int7"]


def _largest(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        layer.weight.fill_(1.0)  # type: ignore[union-attr, operator]
    return layer


class Product(nn.Module):
    """A matrix of weights as the right operand, and a convolution called as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.w = nn.Parameter(torch.randn(4, 1, 3)), nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv1d(x, self.kernel, groups=4, padding=1) @ self.w


def test_functions_are_looked_at_like_modules() -> None:
    assert weights(Product(), torch.rand(2, 4, 5)) == ["int8", "int7"]


@pytest.mark.parametrize("target", TARGETS)
def test_only_where_a_cpu_of_the_target_adds_pairs(target: str) -> None:
    config = tq.QConfig().for_target(target)
    assert weights(nn.Conv2d(4, 8, 3), image(2, 4), config) == ["int7" if TARGETS[target].saturating_pairs else "int8"]


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (tq.types.uint8, "int7"),
        (tq.types.int8, "int7"),
        (uint7, "int8"),
        (tq.types.uint4, "int8"),
        (tq.types.int4, "int7"),
        (tq.types.uint16, "int8"),
    ],
)
def test_the_codes_that_a_layer_reads(activation: Any, expected: str) -> None:
    """255 * 2 * 127 leaves int16, 127 * 2 * 127 does not; signed codes are shifted to u8; 16 bits are summed in float."""
    scheme = tq.QuantScheme(activation)
    assert weights(nn.Linear(5, 3), torch.rand(2, 5), tq.QConfig(input=scheme)) == [expected]


def test_tokens_at_run_time() -> None:
    config = tq.QConfig(
        activation=(tokens := tq.QuantScheme(tq.types.int8, observer=tq.ranges.Dynamic())), input=tokens, output=tokens
    )
    assert weights(nn.Linear(5, 3), torch.rand(2, 5), config) == ["int7"]
    assert weights(nn.Linear(5, 3), torch.rand(2, 5), "w8a8-dynamic") == ["int8"]


def test_what_is_said_is_kept() -> None:
    model, x = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), torch.rand(2, 5)
    eight = tq.QuantScheme(tq.types.int8, tq.PerChannel(0))
    assert weights(model, x, tq.QConfig().with_rules(tq.Rule("2", weight=eight))) == ["int7", "int8", "int7"]
    assert weights(model, x, tq.QConfig(weight=tq.QuantScheme(tq.types.int4, tq.PerChannel(0)))) == ["int4"] * 3
    assert weights(model, x, tq.QConfig(weight=tq.QuantScheme(tq.types.int4, tq.PerChannel(0)), ends=Ends())) == [
        "int7", "int4", "int7"
    ]  # fmt: skip
    assert weights(model, x, tq.QConfig(saturation="unsigned")) == ["int8"] * 3
    assert weights(model, x, "w4a4") == ["int8", "int4", "int8"]
    learned = tq.QuantScheme(tq.types.int8, tq.PerTensor(), observer=tq.ranges.MSE(), scale=tq.scales.LSQ())
    assert tq.plan(model, x, tq.QConfig(weight=learned)).quantizer("0.weight").scheme == learned.with_(dtype=tq.types.int7)


def test_the_plan_says_what_it_chose() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    plan = tq.plan(model, image(2, 4))
    assert [s.reason for s in plan.sites] == ["integer layer", *["integer layer, weight narrowed"] * 2]
    note = (
        "the weights of 2 layers were narrowed to [-64, 64]: x86 CPUs without VNNI add pairs of products in int16, and no pair "
        "can leave it now; preset 'w8a8' keeps 8 bits, exact too and slower"
    )
    assert plan.notes == (note,)
    assert f"note: {note}" in str(plan)
    assert tq.plan(model[:2], image(2, 4)).notes == (note.replace("weights of 2 layers were", "weight of one layer was"),)
    assert tq.plan(model, image(2, 4), "w8a8").notes == ()


def test_the_default_is_the_preset_int8() -> None:
    assert tq.QConfig() == tq.QConfig.preset("int8")
    assert tq.QConfig.preset("w8a8") == replace(tq.QConfig(), saturation="unsigned")


def test_a_config_of_before_kept_its_eight_bits() -> None:
    """Its text has no word about saturation."""
    text = config_to_json(tq.QConfig())
    assert config_from_json(text) == tq.QConfig()
    assert isinstance(text, dict)
    assert text.pop("saturation") == "narrow"
    assert config_from_json(json.loads(json.dumps(text))) == tq.QConfig.preset("w8a8")


def test_an_unknown_word() -> None:
    with pytest.raises(SchemeError) as caught:
        tq.QConfig(saturation="wide")  # type: ignore[arg-type]
    assert str(caught.value) == ("QConfig: unknown saturation\n  got:      'wide'\n  expected: 'narrow' or 'unsigned'")
