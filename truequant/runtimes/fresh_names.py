"""Names of tensors in a file, each given once."""

from __future__ import annotations

from collections.abc import Iterable


class FreshNames:
    """taken: names that nothing new may have."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)

    def __call__(self, name: str) -> str:
        """`name`, or `name.2` and so on where it is taken.

        >>> fresh = FreshNames(["x"])
        >>> fresh("x"), fresh("x"), fresh("y")
        ('x.2', 'x.3', 'y')
        """
        found, n = name, 1
        while found in self._taken:
            n += 1
            found = f"{name}.{n}"
        self._taken.add(found)
        return found
