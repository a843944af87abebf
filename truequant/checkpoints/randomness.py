"""The states of the generators that training draws from: Python's, NumPy's, torch's on the CPU and on CUDA devices."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from truequant.checkpoints.fields import field, typed
from truequant.checkpoints.tree import TreeReader, TreeWriter
from truequant.errors import ArgumentError, FileError
from truequant.files import Json


@dataclass(frozen=True, slots=True, eq=False)
class RandomStates:
    """States that their generators have accepted once."""

    python: tuple[Any, ...]
    numpy: dict[str, Any]
    cpu: Tensor
    cuda: tuple[Tensor, ...]


def random_to_json(writer: TreeWriter) -> Json:
    """The states now. Drawn from later, they give what this process will draw."""
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = numpy.random.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        raise ArgumentError(
            "save_checkpoint: NumPy's global generator was replaced", got=state["bit_generator"], expected="MT19937"
        )
    numpy_state = {"key": state["state"]["key"].tolist(), "pos": int(state["state"]["pos"])}
    # Asking CUDA would start it on every device; where it never ran, nothing was drawn.
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return writer.encode(
        {
            "python": [version, list(internal), gauss],
            "numpy": numpy_state | {"has_gauss": int(state["has_gauss"]), "gauss": float(state["gauss"])},
            "cpu": torch.get_rng_state(),
            "cuda": list(cuda),
        },
        "random",
    )


def random_from_json(value: Json, reader: TreeReader) -> RandomStates:
    """The states of a file, tried on generators of their own. FileError for what is no state."""
    where = f"{reader.where}: random"
    found = typed(reader.decode(value, "random"), dict, where)
    version, internal, gauss = (*field(found, "python", list, where), None, None, None)[:3]
    key = field(found, "numpy", dict, where)
    cpu, cuda = field(found, "cpu", Tensor, where), tuple(field(found, "cuda", list, where))
    try:
        python = (version, tuple(internal), gauss)
        random.Random().setstate(python)
        words = numpy.array(key["key"], dtype=numpy.uint32)
        state = {
            "bit_generator": "MT19937",
            "state": {"key": words, "pos": typed(key["pos"], int, where)},
            "has_gauss": typed(key["has_gauss"], int, where),
            "gauss": typed(key["gauss"], float, where),
        }
        if not 0 <= key["pos"] <= 624 or words.shape != (624,):  # NumPy would read past its end
            raise ValueError("a position outside NumPy's state")
        numpy.random.RandomState().set_state(state)
        torch.Generator().set_state(cpu)
    except (TypeError, ValueError, KeyError, OverflowError, RuntimeError) as error:
        raise FileError(
            f"{where} cannot be", got=str(error)[:200], expected="states of random, numpy.random and torch"
        ) from error
    if any(not isinstance(t, Tensor) or t.dtype != torch.uint8 or t.dim() != 1 for t in cuda):
        raise FileError(f"{where}: 'cuda' holds what is no state", expected="uint8 tensors")
    return RandomStates(python, state, cpu, cuda)


def set_random(states: RandomStates) -> bool:
    """Give the generators their states back; whether CUDA's were given to devices too, where there are any."""
    random.setstate(states.python)
    numpy.random.set_state(states.numpy)
    torch.set_rng_state(states.cpu)
    fits = len(states.cuda) <= (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    if fits:
        for device, state in enumerate(states.cuda):
            torch.cuda.set_rng_state(state, device)
    return fits
