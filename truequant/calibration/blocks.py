"""Blocks: modules whose layers are rounded together, and what goes into and comes out of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from truequant.calibration.layers import Layer
from truequant.calibration.method import Inputs
from truequant.calibration.running import evaluating
from truequant.errors import ArgumentError
from truequant.fake import QATModuleWrapper
from truequant.planning import tensors_of


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A module and its layers. A layer on its own is a block too, with the BatchNorm and the clamp that belong to it."""

    name: str
    module: nn.Module
    layers: tuple[Layer, ...]

    def run(self, inputs: Inputs) -> list[Tensor]:
        """The tensors that the block returns."""
        args, kwargs = inputs
        return self.finished(self.module(*args, **kwargs))

    def finished(self, outputs: Any) -> list[Tensor]:
        """What the module returned, through what belongs to the block."""
        if self.module is self.layers[0].module:
            return [self.layers[0].finished(outputs)]
        return tensors_of(outputs)

    def twin(self, model: nn.Module) -> Block:
        """The same block in a copy of the model."""
        module = model.get_submodule(self.name) if self.name else model
        return Block(self.name, module, tuple(layer.twin(model) for layer in self.layers))


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One batch at a block: its inputs in the quantized and in the float model, and the float model's results."""

    quantized: Inputs
    floats: Inputs
    outputs: list[Tensor]

    @property
    def size(self) -> int:
        return len(self.outputs[0])

    def dropped(self, rows: Tensor, drop: float, chance: torch.Generator) -> tuple[Inputs, list[Tensor]]:
        """Some samples; each element of their inputs is the float model's with probability `drop`."""

        def pick(leaf: Any) -> Any:
            return leaf[rows] if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == self.size else leaf

        def mix(quantized: Any, floats: Any) -> Any:
            quantized, floats = pick(quantized), pick(floats)
            if not (isinstance(quantized, Tensor) and quantized.is_floating_point()) or drop == 0.0:
                return quantized
            return torch.where(torch.rand(quantized.shape, generator=chance).to(quantized.device) < drop, floats, quantized)

        return pytree.tree_map(mix, self.quantized, self.floats), [pick(y) for y in self.outputs]


def blocks_of(model: QATModuleWrapper, found: Sequence[Layer], names: Sequence[str]) -> list[Block]:
    """The blocks in the order of their first layers; `ArgumentError` for a name that is no block."""
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules or not any(_inside(layer.name, name) for layer in found):
            raise ArgumentError(
                f"BlockReconstruction: '{name}' is no block", expected="the name of a module that holds a layer", got=repr(name)
            )
    chosen = list(names) or _own_classes(modules, found)
    chosen = [name for name in chosen if not any(other != name and _inside(name, other) for other in chosen)]
    result: dict[str, list[Layer]] = {}
    for layer in found:
        block = next((name for name in chosen if _inside(layer.name, name)), layer.name)
        result.setdefault(block, []).append(layer)
    return [Block(name, modules[name], tuple(inside)) for name, inside in result.items()]


def _inside(name: str, block: str) -> bool:
    return not block or name == block or name.startswith(f"{block}.")


def _own_classes(modules: dict[str, nn.Module], found: Sequence[Layer]) -> list[str]:
    """The smallest modules with several layers that are no containers, short of the model itself."""
    several = [
        name
        for name, module in modules.items()
        if name
        and not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
        and sum(_inside(layer.name, name) for layer in found) > 1
    ]
    return [name for name in several if not any(other != name and _inside(other, name) for other in several)]


# -- what goes in and comes out ------------------------------------------------------------------------------------------
def samples_of(model: nn.Module, block: Block, batches: Sequence[Inputs]) -> list[Inputs]:
    """The inputs of a block for each batch."""
    return [inputs for inputs, _ in _watched(model, block, batches)]


def outputs_of(model: nn.Module, block: Block, batches: Sequence[Inputs]) -> list[tuple[Inputs, list[Tensor]]]:
    """Inputs and results of a block for each batch."""
    return [(inputs, block.finished(outputs)) for inputs, outputs in _watched(model, block, batches)]


@torch.no_grad()
def _watched(model: nn.Module, block: Block, batches: Sequence[Inputs]) -> list[tuple[Inputs, Any]]:
    seen: list[tuple[Inputs, Any]] = []

    def look(_: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        seen.append(((args, kwargs), outputs))

    handle = block.module.register_forward_hook(look, with_kwargs=True)
    try:
        with evaluating(model):
            for count, (args, kwargs) in enumerate(batches, 1):
                model(*args, **kwargs)
                if len(seen) != count:
                    raise ArgumentError(
                        f"BlockReconstruction: '{block.name}' is called more than once in a forward",
                        fix="blocks=… with the name of a module that contains all of its calls, or AdaRound",
                    )
    finally:
        handle.remove()
    return seen
