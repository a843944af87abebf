"""How threads wait for each other: asleep, and not in a loop that keeps a core from whoever has work for it."""

from __future__ import annotations

from collections.abc import Mapping

WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""The variables of OpenMP's libraries by which users say so themselves."""


def waiting(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to set before torch is loaded, which reads them then; none where the user has set one of `CHOSEN`.

    The threads of a small model wait for each other every few microseconds. Where another process holds one of the cores, a
    thread that spins until the other one comes spends whole time slices on it.

    >>> waiting({}), waiting({"GOMP_SPINCOUNT": "1000"})
    ({'OMP_WAIT_POLICY': 'PASSIVE'}, {})
    """
    return {} if any(name in environment for name in CHOSEN) else dict(WAITING)
