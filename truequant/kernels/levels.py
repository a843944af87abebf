"""Which kernels run: compiled ones of a level (`avx512`, `avx2`, `portable`), or the reference in plain torch.

The widest level of the CPU is chosen; `TRUEQUANT_KERNELS` names another before the first import, `use` and `using` later.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from types import ModuleType

from truequant.errors import ArgumentError

REFERENCE = "reference"
VARIABLE = "TRUEQUANT_KERNELS"

_module: ModuleType | None
_missing = ""
try:
    from truequant.kernels import _native as _module  # type: ignore[attr-defined,no-redef,unused-ignore]
except ImportError as error:
    _module, _missing = None, str(error)


class _Choice:
    module: ModuleType | None = _module
    warned = False


def compiled() -> ModuleType | None:
    """The compiled kernels, None where the reference runs. Warns once where they are missing."""
    if _Choice.module is None and _missing and not _Choice.warned:
        _Choice.warned = True
        warnings.warn(
            f"truequant has no compiled kernels here and runs its reference, several times slower ({_missing}); "
            f"reinstall it with a C++ compiler and --no-build-isolation, or set {VARIABLE}={REFERENCE} to say that it is meant",
            stacklevel=2,
        )
    return _Choice.module


def levels() -> tuple[str, ...]:
    """The levels that run on this machine, fastest first."""
    return ((*_module.levels(),) if _module is not None else ()) + (REFERENCE,)


def level() -> str:
    """The level in use."""
    return str(_Choice.module.level()) if _Choice.module is not None else REFERENCE


def use(name: str) -> None:
    """Choose a level for the whole process. Raises `ArgumentError` for one that does not run here."""
    if name not in levels():
        raise ArgumentError(
            f"no kernels {name!r} on this machine", got=name, expected=", ".join(levels()), fix=_missing or None
        )
    _Choice.warned = True
    _Choice.module = _module if name != REFERENCE else None
    if _Choice.module is not None:
        _Choice.module.choose(name)


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """A level for the body of a `with`, in the whole process."""
    before = level()
    use(name)
    try:
        yield
    finally:
        use(before)


def describe() -> str:
    """What was found, in a sentence."""
    others = [n for n in levels() if n != level()]
    found = f"{level()} (also here: {', '.join(others)})" if others else level()
    return found + (f"; no compiled kernels: {_missing}" if _missing else "")


if os.environ.get(VARIABLE):
    use(os.environ[VARIABLE])
