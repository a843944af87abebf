from __future__ import annotations

import pytest
import torch

from truequant.numerics import accumulator_bound, pair_bound, products_in_int16


def z(value: int) -> torch.Tensor:
    return torch.tensor(float(value))


def test_the_bound_is_reached_and_not_exceeded() -> None:
    weight = torch.randint(-127, 128, (5, 3, 3, 3)).float()
    bias = torch.randint(-1000, 1000, (5,)).float()
    for zero_point in (0, 100, 255):
        bound = accumulator_bound(weight, bias, z(zero_point), 0, 255)
        reach = max(zero_point, 255 - zero_point)
        assert bound.item() == int((weight.abs().flatten(1).sum(1) * reach + bias.abs()).max())
        x = torch.randint(0, 256, (1000, 27)).double() - zero_point
        assert bool(((x @ weight.double().flatten(1).t() + bias).abs() <= bound).all())


@pytest.mark.parametrize(
    ("zero_point", "qmin", "qmax", "reach"), [(0, 0, 255, 255), (255, 0, 255, 255), (128, 0, 255, 128), (0, -128, 127, 128)]
)
def test_the_bound_by_hand(zero_point: int, qmin: int, qmax: int, reach: int) -> None:
    weight = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
    assert accumulator_bound(weight, None, z(zero_point), qmin, qmax).item() == 3 * reach
    assert accumulator_bound(weight, torch.tensor([-9.0, 1.0]), z(zero_point), qmin, qmax).item() == 3 * reach + 9


def test_a_large_bound_is_exact() -> None:
    weight = torch.full((1, 2**16 + 1), 127, dtype=torch.int8)
    bound = accumulator_bound(weight, torch.tensor([1], dtype=torch.int32), z(0), 0, 255)
    assert bound.dtype == torch.float64
    assert bound.item() == (2**16 + 1) * 127 * 255 + 1


def test_no_channels() -> None:
    assert accumulator_bound(torch.zeros(0, 3), None, z(0), 0, 255).item() == 0
    assert pair_bound(torch.zeros(0, 3), 255) == 0


@pytest.mark.parametrize(
    ("weight", "bound"),
    [
        ([[127, 127, 0]], 255 * 254),
        ([[127, -127]], 255 * 127),
        ([[-100, 3, -20]], 255 * 120),
        ([[64, 64], [64, -64]], 255 * 128),
        ([[127]], 255 * 127),
        ([[-128, -128]], 255 * 256),
        ([[0, 0]], 0),
    ],
)
def test_pairs_of_one_sign(weight: list[list[int]], bound: int) -> None:
    assert pair_bound(torch.tensor(weight), 255) == bound
    assert pair_bound(torch.tensor(weight, dtype=torch.int16).reshape(len(weight), -1, 1, 1), 255) == bound
    assert pair_bound(torch.tensor(weight), 127) == bound // 255 * 127


@pytest.mark.parametrize(
    ("shape", "groups", "products"),
    [
        ((4, 3, 3, 3), 1, 2), ((4, 9), 1, 2), ((4, 1), 1, 1), ((4, 1, 1, 1), 1, 1), ((4, 1, 3), 4, 1), ((4, 1, 3, 3), 4, 1),
        ((4, 1, 3, 3, 3), 4, 1), ((8, 1, 3, 3), 4, 2), ((4, 2, 1, 1), 2, 2), ((1, 1, 3, 3), 1, 1), ((2, 1, 3, 3), 1, 2),
    ],
)  # fmt: skip
def test_products_that_are_added_in_int16(shape: tuple[int, ...], groups: int, products: int) -> None:
    assert products_in_int16(shape, groups) == products
    assert pair_bound(torch.full(shape, 127, dtype=torch.int8), 255, groups) == products * 127 * 255


def test_seven_bits_cannot_saturate_and_eight_can() -> None:
    assert pair_bound(torch.full((4, 9), 64), 255) <= 32767 < pair_bound(torch.full((4, 9), 65), 255)
