"""The training loop: it learns, it repeats, and its schedule is the stated one."""

from __future__ import annotations

import torch
from torch import nn

from truequant.demo import Recipe, accuracy, fit
from truequant.demo.training import logits


def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(256) % 4
    return torch.eye(4)[labels] + 0.1 * torch.randn(256, 4), labels


def test_it_learns_and_reports_every_step() -> None:
    images, labels = blobs()
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))
    seen: list[tuple[int, float]] = []
    recipe = Recipe(epochs=10, learning_rate=0.1, batch_size=50)
    fit(model, images, labels, recipe, lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == list(range(1, 51)) == list(range(1, recipe.steps(256) + 1))
    assert seen[-1][1] < 0.2 < seen[0][1]
    assert accuracy(model, images, labels) == 100.0
    assert not model.training


def test_equal_seeds_give_equal_weights() -> None:
    images, labels = blobs()
    trained = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        fit(model, images, labels, Recipe(2, 0.1, 32, seed=seed))
        trained.append(model.weight.detach())
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_no_epochs_change_nothing() -> None:
    images, labels = blobs()
    model = nn.Linear(4, 4)
    before = model.weight.detach().clone()
    fit(model, images, labels, Recipe(0, 0.1))
    assert torch.equal(model.weight, before)
    assert not model.training


def test_fewer_images_than_a_batch_are_one_batch() -> None:
    images, labels = blobs()
    model, losses = nn.Linear(4, 4), []
    recipe = Recipe(epochs=3, learning_rate=0.1, batch_size=1000)
    fit(model, images, labels, recipe, lambda step, loss: losses.append(loss))
    assert len(losses) == recipe.steps(256) == 3
    assert losses[2] < losses[0]


def test_an_epoch_ends_in_eval_and_the_next_one_trains() -> None:
    images, labels = blobs()
    model = nn.Linear(4, 4)
    ends, modes = [], []
    fit(
        model, images, labels, Recipe(2, 0.1, 128),
        on_step=lambda step, loss: modes.append(model.training), on_epoch=lambda step: ends.append((step, model.training)),
    )  # fmt: skip
    assert ends == [(2, False), (4, False)]
    assert modes == [True] * 4


def test_logits_are_computed_in_batches() -> None:
    sizes: list[int] = []

    def model(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return x

    x = torch.rand(7, 3)
    assert torch.equal(logits(model, x, 3), x)
    assert sizes == [3, 3, 1]
    assert accuracy(model, torch.eye(3), torch.tensor([0, 1, 1])) == 100 * 2 / 3
