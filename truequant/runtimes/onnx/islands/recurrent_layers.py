"""Recurrent layers as float islands in ONNX: one LSTM, GRU or RNN node a layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from truequant.errors import ExportError
from truequant.integer.nodes import Island
from truequant.runtimes.onnx.islands.arguments import Arguments, Stored
from truequant.runtimes.onnx.islands.steps import IslandWriter, Steps
from truequant.runtimes.onnx.writer import Writer

# torch stacks an LSTM's gates as i f g o and a GRU's as r z n; ONNX wants i o f c and z r h.
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}


def recurrent(kind: str) -> IslandWriter:
    """`aten.{lstm,gru,rnn_tanh,rnn_relu}.input(x, states, parameters, has_biases, layers, dropout, train, bidirectional,
    batch_first)`; part 0 is the sequence, 1 and 2 the last states.
    """

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        if a["train"]:
            raise ExportError(f"'{node.output}': a recurrent layer in training mode", fix="model.eval()")
        key = (node.op, node.inputs, node.arguments, tuple(id(t) for t in node.tensors))
        if key not in writer.computed:  # by an island that takes another part of the same call
            writer.computed[key] = _call(writer, node, kind, a)
        x, *lasts = writer.computed[key]
        step, part = Steps(writer, node), node.part or 0
        if part:
            step("Concat", lasts[part - 1], axis=0)
        elif a["batch_first"]:
            step("Transpose", x, perm=[1, 0, 2])
        else:
            step("Identity", x)

    return build


def _call(writer: Writer, node: Island, kind: str, a: Arguments) -> list[list[str]]:
    """All layers: the sequence with time first, and each state of each layer."""
    states = a["hx"] if isinstance(a["hx"], list) else [a["hx"]]
    ways, per = 2 if a["bidirectional"] else 1, 4 if a["has_biases"] else 2
    if len(a["params"]) != per * ways * int(a["num_layers"]):
        raise ExportError(
            f"'{node.output}': ONNX has no LSTM with proj_size",
            got=f"{len(a['params'])} parameters",
            expected=f"{per} a layer and direction",
            fix="QConfig(unroll_recurrent=True) writes it out step by step, on integers",
        )
    step, x = Steps(writer, node), a["0"]
    if a["batch_first"]:
        x = step("Transpose", [x], "turned", perm=[1, 0, 2])
    lasts: list[list[str]] = [[] for _ in states]
    for layer in range(int(a["num_layers"])):
        names = a["params"][layer * ways * per : (layer + 1) * ways * per]
        inputs, hidden = _parameters(writer, node, kind, [names[i * per : (i + 1) * per] for i in range(ways)], layer)
        begin, end, axis = (writer.integers(f"{node.output}.{k}{layer}", [v]) for k, v in
                            (("from", layer * ways), ("to", (layer + 1) * ways), ("axis", 0)))  # fmt: skip
        first = [step("Slice", [s, begin, end, axis], "state") for s in states]
        x, last = _layer(writer, node, kind, x, inputs, hidden, first, ways)
        for position, name in enumerate(last):
            lasts[position].append(name)
    return [[x], *lasts]


def cell(kind: str) -> IslandWriter:
    """`aten.{lstm,gru}_cell(x, states, w_ih, w_hh, b_ih, b_hh)`: a layer over a sequence of one."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        states = a["hx"] if isinstance(a["hx"], list) else [a["hx"]]
        step, first = Steps(writer, node), writer.integers(f"{node.output}.first", [0])
        names = [a[str(i)] for i in range(2, 6) if a.get(str(i)) is not None]
        inputs, hidden = _parameters(writer, node, kind, [names], 0)
        wide = [step("Unsqueeze", [v, first], "wide") for v in (a["0"], *states)]
        _, last = _layer(writer, node, kind, wide[0], inputs, hidden, wide[1:], 1)
        step("Squeeze", [last[node.part or 0], first])

    return build


def _parameters(writer: Writer, node: Island, kind: str, ways: list[list[Any]], layer: int) -> tuple[list[str], int]:
    """W `(ways, gates * H, in)`, R `(ways, gates * H, H)` and B `(ways, 2 * gates * H)`; and H."""
    weights = [_stacked(writer, f"{node.output}.{k}{layer}", kind, [names[i] for names in ways]) for i, k in enumerate("WR")]
    biases = [[_turned(writer.array(name), kind) for name in names[2:]] for names in ways]
    rows = len(_values(writer, ways[0][1]))
    stacked = np.stack([np.concatenate(pair) if pair else np.zeros(2 * rows, np.float32) for pair in biases])
    return [*weights, writer.constant(f"{node.output}.B{layer}", stacked)], rows // len(_GATES[kind])


def _stacked(writer: Writer, name: str, kind: str, ways: list[Any]) -> str:
    """The same weight of all directions, `(ways, gates * H, …)`: float32, or int8 codes behind a DequantizeLinear."""
    if not all(isinstance(weight, Stored) for weight in ways):
        return writer.constant(name, np.stack([_turned(_values(writer, weight), kind) for weight in ways]))
    codes = np.stack([_turned(weight.codes, kind) for weight in ways])
    scales = [_turned(np.broadcast_to(weight.scale.reshape(-1), codes.shape[1:2]), kind) for weight in ways]
    flat = writer.on_grid(writer.fresh(f"{name}.flat"), codes.reshape(-1, codes.shape[2]), np.concatenate(scales))
    return writer.node("Reshape", [flat, writer.integers(f"{name}.shape", codes.shape)], writer.fresh(name), name=name)


def _values(writer: Writer, weight: Any) -> Any:
    return weight.codes * weight.scale if isinstance(weight, Stored) else writer.array(weight)


def _turned(array: Any, kind: str) -> Any:
    """A parameter with its gates in ONNX's order."""
    parts = np.split(array, len(_GATES[kind]))
    return np.concatenate([parts[i] for i in _GATES[kind]])


def _layer(
    writer: Writer, node: Island, kind: str, x: str, parameters: list[str], hidden: int, states: list[str], ways: int
) -> tuple[str, list[str]]:
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": "bidirectional" if ways == 2 else "forward"}
    if kind == "GRU":
        attributes["linear_before_reset"] = 1
    if node.op == "rnn_relu.input":
        attributes["activations"] = ["Relu"] * ways
    outputs = [writer.fresh(f"{node.output}.{part}") for part in ("all", "hidden", "cell")[: 2 + (kind == "LSTM")]]
    writer.several(kind, [x, *parameters, "", *states], outputs, name=writer.fresh(f"{node.output}.layer"), **attributes)
    # (time, ways, batch, H) to (time, batch, ways * H)
    step = Steps(writer, node)
    turned = step("Transpose", [outputs[0]], "turned", perm=[0, 2, 1, 3])
    joined = step("Reshape", [turned, writer.integers(f"{node.output}.joined", [0, 0, ways * hidden])], "joined")
    return joined, outputs[1:]
