"""What must hold of the Triton kernels on a device (`cpu` in Triton's interpreter, or `cuda`), run by test_cuda.py.

`graph`: one training step of a prepared model, captured in a CUDA graph and replayed.
"""

from __future__ import annotations

import sys
from unittest import mock

import torch
from torch import Tensor

from truequant import kernels
from truequant.fake import FakeQuantize
from truequant.kernels import chosen, cuda, reference
from truequant.observers.minmax import finite_range
from truequant.schemes import PerTensor, QuantScheme, int8, uint8

SPECIAL = (0.0, -0.0, 0.5, 1.5, -0.5, 2.5, float("nan"), float("inf"), float("-inf"), 1e-40, -1e-40, 3e38, -3e38, 4194303.5)
SIZES = (0, 1, 7, 8, 1023, 1024, 1025, 5000)


def bits(x: Tensor) -> Tensor:
    """Bit patterns, with one pattern for every NaN and one for both zeros: a gradient of 0 has no sign that means anything."""
    x = torch.where(torch.isnan(x), torch.nan, x) + 0.0
    return x.contiguous().view(torch.int32 if x.element_size() == 4 else torch.int16)


def values(n: int, dtype: torch.dtype, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, generator=generator) * 40
    x[: min(n, len(SPECIAL))] = torch.tensor(SPECIAL)[:n]
    half = n // 2
    x[half:] = torch.round(x[half:] * 2) / 2 * 0.25  # ties on the grid of 0.5
    return x.to(device, dtype)


def equal(name: str, a: Tensor, b: Tensor) -> None:
    if a.dtype != b.dtype or a.shape != b.shape or not torch.equal(bits(a), bits(b)):
        wrong = int((bits(a) != bits(b)).sum()) if a.shape == b.shape else -1
        raise SystemExit(f"{name}: {wrong} of {a.numel()} elements differ")


def both(name: str, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int, identity: bool) -> None:
    """Forward, gradient and observed range against the reference."""
    mine, theirs = x.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(x.device, x.dtype)
    expected = reference.fake_quantize(theirs, scale, zero, low, high, identity=identity)
    y = cuda.fake_quantize(mine, scale, zero, low, high, identity=identity)
    equal(f"{name}, forward", y, expected)
    y.backward(gradient)
    expected.backward(gradient)
    equal(f"{name}, gradient", mine.grad, theirs.grad)
    if scale.dim() == 0:
        again, smallest, largest = cuda.fake_quantize_observed(x, scale, zero, low, high, identity=identity)
        equal(f"{name}, forward of the observed form", again, expected.detach())
        for found, wanted in zip((smallest, largest), finite_range(x, PerTensor()), strict=True):
            equal(f"{name}, range", found, wanted)


def twice(name: str, x: Tensor, scale: Tensor, zero: Tensor) -> None:
    """The gradient of a gradient."""
    found = []
    for quantize in (cuda.fake_quantize, reference.fake_quantize):
        leaf = x.detach().clone().requires_grad_()
        (first,) = torch.autograd.grad(quantize(leaf, scale, zero, 0, 255).pow(3).sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(first.sum(), leaf)[0])
    equal(f"{name}, second gradient", *found)


def learned(name: str, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> None:
    x = torch.nan_to_num(x, 0.0, 9.0, -9.0)  # a sum with infinities has no value to compare
    x = torch.where(x.abs() > 1e30, 1.0, x)
    mine, theirs = (x.detach().clone().requires_grad_() for _ in range(2))
    my_scale, their_scale = (scale.detach().clone().requires_grad_() for _ in range(2))
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(x.device, x.dtype)
    y = cuda.fake_quantize_learned(mine, my_scale, zero, low, high, factor=0.5)
    expected = reference.fake_quantize_learned(theirs, their_scale, zero, low, high, factor=0.5)
    equal(f"{name}, learned forward", y, expected)
    y.backward(gradient)
    expected.backward(gradient)
    equal(f"{name}, learned gradient", mine.grad, theirs.grad)
    assert my_scale.grad is not None
    torch.testing.assert_close(my_scale.grad, their_scale.grad, rtol=1e-4, atol=1e-2, msg=f"{name}, gradient of the scale")


def module(device: str, scheme: QuantScheme) -> None:
    """A quantizer in training: results, gradients and state after every step are those of the reference."""
    state = []
    for found in (None, cuda):
        quantizer, kept = FakeQuantize(scheme).to(device), []
        chooses = mock.Mock(return_value=found)
        with (
            mock.patch.object(chosen, "on_device", chooses),
            mock.patch.object(kernels, "on_device", chooses),
            kernels.using("reference"),
        ):
            for seed in range(4):
                x = torch.randn(37, generator=torch.Generator().manual_seed(seed)).to(device).requires_grad_()
                y = quantizer(x)
                y.square().sum().backward()
                kept += [y.detach(), x.grad, *(b.clone().float() for b in quantizer.buffers())]
        if not chooses.called:
            raise SystemExit("the quantizer did not ask which kernels to take")
        state.append(kept)
    for a, b in zip(*state, strict=True):
        equal(f"{scheme} as a module", b, a)


def laws(device: str) -> None:
    scale, zero = torch.tensor(0.5, device=device), torch.tensor(3.0, device=device)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for n in SIZES:
            for low, high in ((0, 255), (-127, 127), (0, 15)):
                both(f"{dtype}, {n}", values(n, dtype, device), scale, zero, low, high, identity=False)
        both(f"{dtype}, identity", values(1025, dtype, device), scale, zero, 0, 255, identity=True)
        learned(f"{dtype}", values(5000, dtype, device), scale, zero, 0, 255)
    x = values(2 * 6 * 5 * 7, torch.float32, device).reshape(2, 6, 5, 7)
    layouts = {
        "contiguous": x, "channels-last": x.contiguous(memory_format=torch.channels_last), "transposed": x.transpose(1, 3),
        "with gaps": x[:, :, ::2],
    }  # fmt: skip
    for name, tensor in layouts.items():
        both(name, tensor, scale, zero, 0, 255, identity=False)
        for axis in (0, 1):
            shape = [1] * 4
            shape[axis] = tensor.shape[axis]
            scales = torch.linspace(0.1, 2.0, shape[axis], device=device).reshape(shape)
            both(f"{name}, scales along {axis}", tensor, scales, torch.zeros_like(scales), -127, 127, identity=False)
            learned(f"{name}, scales along {axis}", tensor, scales, torch.zeros_like(scales), -127, 127)
    clean = values(5000, torch.float32, device)[len(SPECIAL) :]
    for scheme in (QuantScheme(uint8), QuantScheme(int8), QuantScheme(int8, gradient="identity")):
        module(device, scheme)
    twice("finite", clean, scale, zero)
    both("finite", clean, scale, zero, 0, 255, identity=False)


def graph() -> None:
    """Ten replays of one captured step: the loss falls, and the ranges follow."""
    import truequant as tq

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(512, 4),
    ).cuda()
    x, y = torch.randn(8, 3, 8, 8, device="cuda"), torch.randint(0, 4, (8,), device="cuda")
    qat = tq.prepare(model, x)
    optimizer = torch.optim.SGD(qat.parameters(), 0.05)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(qat(x), y)
        loss.backward()
        optimizer.step()
        return loss

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        loss = step()
    losses = []
    for _ in range(10):
        captured.replay()
        losses.append(float(loss))
    if not losses[-1] < losses[0]:
        raise SystemExit(f"the loss did not fall: {losses}")


if __name__ == "__main__":
    graph() if sys.argv[1] == "graph" else laws(sys.argv[1])
    sys.stdout.write("laws hold\n")
