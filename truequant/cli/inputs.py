"""Models and example inputs from the words of a command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from truequant.checkpoints import Checkpoint, CheckpointManager, load_checkpoint
from truequant.cli.naming import made
from truequant.errors import ArgumentError
from truequant.training.loop import random_state_kept, seed_random

_SHAPE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<sizes>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?(?:<(?P<bound>\d+))?")
_LARGEST = 1 << 28
"""Elements of an example input: more is a slip of the keyboard."""


def model_and_inputs(name: str, shapes: Sequence[str] | None) -> tuple[nn.Module, Any]:
    """The model of a factory and its example inputs, which come from `shapes` or from a factory that returns both."""
    model, inputs = float_model(name)
    inputs = example_inputs(shapes) if shapes else inputs
    if inputs is None:
        raise ArgumentError(
            f"'{name}': no example inputs", expected="their shapes, batch first", fix="--input 8x3x224x224, once for each input"
        )
    return model, inputs


def float_model(name: str, weights: Path | None = None, arguments: Mapping[str, Any] | None = None) -> tuple[nn.Module, Any]:
    """The model of a factory, with trained `weights` from a file, and the example inputs that the factory returned, or None."""
    model, inputs = made(name, name, arguments), None
    if isinstance(model, tuple) and len(model) == 2:
        model, inputs = model
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"'{name}' made no model", got=type(model).__name__, expected="nn.Module, or (nn.Module, inputs)")
    if weights is not None:
        found = load_checkpoint(weights, model=model, restore_random=False)
        if found.kind != "float":
            raise ArgumentError(
                f"'{weights}' holds no float weights", got=f"a {found.kind} checkpoint", fix="truequant convert"
            )
    return model, inputs


RANDOM = (
    "The model starts from random weights: no file of weights is given, and its factory makes other ones with another seed. "
    "Fine-tuning expects a trained model"
)


def draws_weights(model: nn.Module, name: str, arguments: Mapping[str, Any] | None = None) -> bool:
    """Whether a factory gives another model of other weights where random generators begin elsewhere: nobody trained them."""
    with random_state_kept():
        seed_random(1_000_003)
        other, _ = float_model(name, arguments=arguments)
    own = dict(other.named_parameters())
    return any(name in own and not torch.equal(p.detach(), own[name].detach()) for name, p in model.named_parameters())


def trained_model(checkpoint: Path, model: str) -> tuple[nn.Module, Checkpoint]:
    """The prepared model of a training's checkpoint, in evaluation, and the checkpoint; of a folder's newest intact one."""
    made, _ = float_model(model)
    if checkpoint.is_dir():
        found = CheckpointManager(checkpoint).restore(model=made, restore_random=False)
        if found is None:
            raise ArgumentError(
                f"'{checkpoint}' holds no checkpoints", expected="the folder that truequant train wrote them to"
            )
    else:
        found = load_checkpoint(checkpoint, model=made, restore_random=False)
    if found.kind != "qat":
        raise ArgumentError(
            f"'{checkpoint}' is no checkpoint of quantization-aware training", got=f"a {found.kind} checkpoint",
            fix="truequant quantize MODULE:FACTORY --weights FILE quantizes a float model",
        )  # fmt: skip
    return made.eval(), found


def example_inputs(shapes: Sequence[str]) -> Any:
    """Inputs of these shapes: one tensor, a tuple of them, or a dict where they have names.

    Floats are drawn from a normal distribution, integers evenly from 0 to below the bound (`8x128:int64<30000`; 2 unless
    said), always the same ones.

    >>> {name: tuple(x.shape) for name, x in example_inputs(["ids=2x5:int64<9", "mask=2x5:bool"]).items()}
    {'ids': (2, 5), 'mask': (2, 5)}
    """
    generator = torch.Generator().manual_seed(0)
    parsed = [_tensor(text, generator) for text in shapes]
    names = [name for name, _ in parsed if name is not None]
    if names and (len(names) < len(parsed) or len(set(names)) < len(names)):
        raise ArgumentError("--input: all inputs have a name of their own, or none has one", got=" ".join(shapes))
    if names:
        return dict(parsed)
    return parsed[0][1] if len(parsed) == 1 else tuple(x for _, x in parsed)


def _tensor(text: str, generator: torch.Generator) -> tuple[str | None, Tensor]:
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise ArgumentError("--input: no shape", got=repr(text), expected="8x3x224x224, 8x128:int64<30000, name=8x16:float32")
    sizes = [int(size) for size in match["sizes"].split("x")]
    dtype = getattr(torch, match["dtype"] or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise ArgumentError("--input: no dtype of torch", got=repr(match["dtype"]), expected="float32, int64, bool …")
    count = 1
    for size in sizes:
        count *= size
    if not 0 < count <= _LARGEST:
        raise ArgumentError("--input: a shape of that size", got=f"{text!r}, {count:,} numbers", expected=f"1 to {_LARGEST:,}")
    if dtype.is_floating_point or dtype.is_complex:
        return match["name"], torch.randn(sizes, generator=generator).to(dtype)
    bound = max(1, int(match["bound"] or 2))
    return match["name"], torch.randint(0, bound, sizes, generator=generator).to(dtype)
