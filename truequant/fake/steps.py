"""What a quantizer does in one call of a training step: decided once, in Python, and read by the compiled kernels."""

from __future__ import annotations

from typing import Any, NamedTuple


class Step(NamedTuple):
    """What happens to the range of what is quantized; kernels read the fields by their places.

    observes: what passes is merged into what is pending; a weight's range is read from the weight.
    commits: what is pending takes effect first.
    first: there is no range yet: what passes is only observed, and sets it.
    """

    observes: bool
    commits: bool
    first: bool


IN_FORCE = Step(observes=False, commits=False, first=False)
"""The range in force is used, and stays as it is."""
OBSERVES = Step(observes=True, commits=False, first=False)
COMMITS = Step(observes=True, commits=True, first=False)
FIRST = Step(observes=True, commits=False, first=True)


def is_hooked(module: Any) -> bool:
    """Whether a hook of this module's own wants to see its calls."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)
