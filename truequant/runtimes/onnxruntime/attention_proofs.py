"""Proofs of softmax and attention: random and extreme rows of each of them through the installed runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from truequant.errors import ExportError
from truequant.integer import IntegerProgram, ProgramInput, execute
from truequant.integer.nodes import Attend, Dequantize, Edge, Node, Quantize, Shape, Softmax
from truequant.runtimes.onnx.shapes import dynamic_shapes
from truequant.runtimes.onnxruntime.session import run, session

_ROWS, _LENGTH = 16, 40
"""Rows of scores that are tried where a program has no fixed number of them, and places of a row."""


def require_exact_attention(program: IntegerProgram, write: Callable[[IntegerProgram], bytes]) -> int:
    """How many codes were compared. write: the serialized model of a program, its edges shown.

    `ExportError` naming the first softmax or attention of which onnxruntime computes another code.
    """
    nodes = [node for node in program.nodes if isinstance(node, (Softmax, Attend)) and node.output in program.edges]
    if not nodes:
        return 0
    trial = _Trial(program)
    for number, node in enumerate(nodes):
        trial.add(number, node)
    alone = IntegerProgram(tuple(trial.inputs), tuple(trial.nodes), trial.edges, trial.outputs, program.target)
    names = [f"y{number}" for number in range(len(nodes))]
    expected = execute(alone, trial.feeds, names)
    found = run(session(write(alone)), trial.feeds, names)
    for name, node in zip(names, nodes, strict=True):
        differ = (found[name].int() != expected[name].int()).nonzero()
        if len(differ):
            at = tuple(differ[0].tolist())
            raise ExportError(
                f"'{node.output}': onnxruntime computes another code of this {type(node).__name__}",
                got=f"{int(found[name][at])}, {len(differ)} of {found[name].numel()} differ", expected=int(expected[name][at]),
                fix="leave it in float by a rule, and please report it",
            )  # fmt: skip
    return sum(codes.numel() for codes in expected.values())


class _Trial:
    """A program of these nodes alone, and what it is fed with."""

    def __init__(self, program: IntegerProgram) -> None:
        self.program, (self.shapes, _) = program, dynamic_shapes(program)
        self.inputs: list[ProgramInput] = []
        self.nodes: list[Node] = []
        self.edges: dict[str, Edge] = {}
        self.feeds: dict[str, Tensor] = {}
        self.outputs: list[str] = []
        self.generator = torch.Generator().manual_seed(0)

    def add(self, number: int, node: Softmax | Attend) -> None:
        planned = self.shapes[node.scores]
        leading = [1] * (len(planned) - 2) if node.shown is None else [n or 1 for n in planned[:-2]]
        fixed = node.shown is not None or node.causal
        rows = (planned[-2] or _LENGTH) if fixed else _ROWS
        shape = (*leading, rows, planned[-1] or _LENGTH) if len(planned) > 1 else (planned[-1] or _LENGTH,)
        scores, masks = f"x{number}", tuple(f"m{number}_{i}" for i in range(len(node.masks)))
        self._input(scores, self.program.edges[node.scores], self._rows(shape, node))
        for name, source in zip(masks, node.masks, strict=True):
            shown = (torch.rand(shape, generator=self.generator) < 0.7).int() * 255
            shown[..., -1:, :] = 0
            self._input(name, self.program.edges[source], shown)
        made = replace(node, scores=scores, masks=masks, output=f"y{number}")
        if isinstance(made, Attend):
            features, edge = self.shapes[node.output][-1] or _ROWS, self.program.edges[made.values]
            size = (*shape[:-2], shape[-1], features)
            codes = torch.randint(edge.qmin, edge.qmax + 1, size, generator=self.generator)
            codes[..., 0] = edge.qmax
            self._input(f"v{number}", edge, codes)
            made = replace(made, values=f"v{number}")
        self.nodes += [made, Dequantize(f"y{number}", f"w{number}")]
        self.edges[f"y{number}"] = self.program.edges[node.output]
        self.outputs.append(f"w{number}")

    def _rows(self, shape: Shape, node: Softmax | Attend) -> Tensor:
        """Random rows of several widths, and rows of one code."""
        top = self.program.edges[node.scores].qmax
        codes = torch.randint(0, top + 1, shape, generator=self.generator)
        spread = torch.tensor([1, 8, 64, top])[torch.arange(shape[-2] if len(shape) > 1 else 1) % 4]
        codes = (top - codes * spread.reshape(-1, 1) // top).reshape(shape)
        if len(shape) > 1:
            codes[..., -1, :], codes[..., 0, :] = top, 0
            codes[..., 0, -1:] = top
        return codes

    def _input(self, name: str, edge: Edge, codes: Tensor) -> None:
        value = f"{name}.value"
        self.inputs.append(ProgramInput(value, "float32", tuple(codes.shape)))
        self.nodes.append(Quantize(value, name))
        self.edges[name] = edge
        self.feeds[value] = (codes - edge.zero_point) * torch.tensor(edge.scale)
