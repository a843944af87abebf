"""Which value a tensor holds, after ops that overwrote it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from truequant.errors import PlanError


@dataclass(slots=True)
class _Cell:
    """Memory that is overwritten as a whole: the values it held, in order, each with the name that its op returned.

    tensors: all names, the first before the rest, kept so that no id is used again.
    """

    tensors: list[Tensor]
    names: list[tuple[int, int]] = field(default_factory=list)
    written_elsewhere: str = ""
    """File and line where another view of the same memory was written."""


class Names:
    """Values by the tensors that hold them.

    An in-place op gives its memory a new value, and hands out a new name for it. Where an older name is read afterwards, the
    ops in between must write back: `stale` collects their values. Memory that was written through another view of it holds
    what no op has for its result, and cannot be read.
    """

    def __init__(self, stale: set[int]) -> None:
        self.stale = stale
        self._cells: dict[int, _Cell] = {}
        self._sharing: dict[int, list[_Cell]] = {}

    def add(self, tensor: Tensor, value: int) -> None:
        """A tensor that holds a value from now on."""
        self._cells[id(tensor)] = cell = _Cell([tensor], [(id(tensor), value)])
        self._sharing.setdefault(_storage(tensor), []).append(cell)

    def known(self, tensor: Tensor) -> int | None:
        """The value that a tensor holds, if any."""
        cell = self._cells.get(id(tensor))
        return None if cell is None else cell.names[-1][1]

    def read(self, tensor: Tensor) -> int | None:
        """The same, of a tensor that is read: what was written behind this name's back must be written back."""
        cell = self._cells.get(id(tensor))
        if cell is None:
            return None
        if cell.written_elsewhere:
            raise PlanError(
                "a tensor is read whose memory was written through a view of it",
                got=f"an in-place op on a view, {cell.written_elsewhere}",
                expected="values that are written under the name by which they are read",
                fix="compute out of place: y = y.add(1), torch.cat of the parts; or assign to the tensor itself, y[:, :3] = …",
            )
        behind = next(i for i in range(len(cell.names) - 1, -1, -1) if cell.names[i][0] == id(tensor))
        self.stale.update(value for _, value in cell.names[behind + 1 :])
        return cell.names[-1][1]

    def overwrite(self, tensor: Tensor, name: Tensor | None, value: int, location: str) -> None:
        """`tensor` holds another value from now on, which an op handed out as `name`; None where it handed out nothing."""
        cell = self._cells.get(id(tensor))
        if cell is None:
            self.add(tensor, value)
            cell = self._cells[id(tensor)]
        cell.names.append((id(name), value))
        if name is not None:
            self._cells[id(name)] = cell
            cell.tensors.append(name)
        for other in self._sharing[_storage(tensor)]:
            if other is not cell and _overlap(tensor, other.tensors[0]):
                other.written_elsewhere = location


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _overlap(written: Tensor, other: Tensor) -> bool:
    """Whether two tensors on one storage have an element in common."""
    if written.dtype != other.dtype:
        return True
    elements = written.untyped_storage().nbytes() // max(1, written.element_size())
    touched = torch.zeros(elements, dtype=torch.bool)
    torch.as_strided(touched, written.shape, written.stride(), written.storage_offset()).fill_(True)
    return bool(torch.as_strided(touched, other.shape, other.stride(), other.storage_offset()).any())
