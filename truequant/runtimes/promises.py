"""What a file promises on machines of other kinds, found from the program alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from truequant.integer import IntegerProgram
from truequant.integer.nodes import FloatLinear, Island
from truequant.runtimes.registry import RUNTIMES
from truequant.runtimes.sentences import names_of
from truequant.schemes import ONNXRUNTIME, TARGETS


def promises(
    program: IntegerProgram, runtimes: Sequence[str] = ("onnxruntime",), different: Collection[str] = ()
) -> tuple[str, ...]:
    """For each runtime what its file promises, and a sentence for each kind of machine where it might not hold.

    Runtimes that promise nothing have no line. different: those that computed other codes from equal ones on this machine, so
    that nothing can be promised.
    """
    target = TARGETS.get(program.target, ONNXRUNTIME)
    if not target.runs_here:
        return (f"target '{target.name}': no runtime of it runs here, so that its codes are UNVERIFIED",)
    between = " between float islands" if any(isinstance(node, Island) for node in program.nodes) else ""
    lines = []
    for runtime in (RUNTIMES[name] for name in runtimes if name in RUNTIMES):
        if runtime.exceptions is None or (runtime.targets is not None and target.name not in runtime.targets):
            continue
        also = " and on 64-bit Arm" if "64-bit Arm" in target.other_cpus and runtime.name == "onnxruntime" else ""
        name, exceptions = runtime.name, [*runtime.exceptions(program, target), *_in_float(program)]
        if name in different:
            lines.append(f"{name}: nothing is promised, since it computes other codes from equal ones on this machine")
        elif exceptions:
            lines.append(f"{name}, promised{between}: the same codes on {runtime.machines}{also} but")
        else:
            lines.append(f"{name}, promised{between}: the same codes on {runtime.machines}{runtime.kinds}{also}")
        lines += [f"{name}, {line}" for line in exceptions]
    return tuple(lines)


def _in_float(program: IntegerProgram) -> list[str]:
    floats = [node.output for node in program.nodes if isinstance(node, FloatLinear)]
    if not floats:
        return []
    return [f"wherever it runs: the float sums of {names_of(floats)}, which every runtime rounds in its own way"]
