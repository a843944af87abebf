"""Layers, norms, poolings and attention as float islands in ONNX."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from truequant.errors import ExportError
from truequant.integer.nodes import Island
from truequant.runtimes.onnx.islands.arguments import Arguments
from truequant.runtimes.onnx.islands.steps import IslandWriter, Steps
from truequant.runtimes.onnx.writer import Writer


def conv(op: str) -> IslandWriter:
    def build(writer: Writer, node: Island, a: Arguments) -> None:
        n = len(writer.shapes[a["0"]]) - 2
        pads = a.sizes("padding", n, 0)
        inputs = [a.tensor("0"), a.tensor("1")] + ([a.tensor("2")] if a.get("2") is not None else [])
        attributes: dict[str, Any] = {
            "strides": a.sizes("stride", n, 1), "pads": [*pads, *pads], "dilations": a.sizes("dilation", n, 1),
            "group": int(a.get("groups", 1)),
        }  # fmt: skip
        if op == "ConvTranspose":
            attributes["output_padding"] = a.sizes("output_padding", n, 0)
        Steps(writer, node)(op, inputs, **attributes)

    return build


def linear(writer: Writer, node: Island, a: Arguments) -> None:
    step = Steps(writer, node)
    weight = step("Transpose", [a.tensor("1")], "weight", perm=[1, 0])
    if a.get("2") is None:
        step("MatMul", [a["0"], weight])
    else:
        step("Add", [step("MatMul", [a["0"], weight], "product"), a.tensor("2")])


def addmm(writer: Writer, node: Island, a: Arguments) -> None:
    step = Steps(writer, node)
    step("Add", [step("MatMul", [a.tensor("1"), a.tensor("2")], "product"), a.tensor("0")])


def batch_norm(writer: Writer, node: Island, a: Arguments) -> None:
    channels = int(writer.shapes[a["0"]][1] or 1)
    ones = writer.constant(f"{node.output}.ones", np.ones(channels, np.float32))
    zeros = writer.constant(f"{node.output}.zeros", np.zeros(channels, np.float32))
    inputs = [a["0"], a.get("1") or ones, a.get("2") or zeros, a["3"], a["4"]]
    Steps(writer, node)("BatchNormalization", inputs, epsilon=float(a["7"]))


def softmax(op: str) -> IslandWriter:
    def build(writer: Writer, node: Island, a: Arguments) -> None:
        step = Steps(writer, node)
        if op == "LogSoftmax":
            step("LogSoftmax", [a["0"]], axis=int(a["1"]))
        else:
            written_out_softmax(writer, step, a["0"], int(a["1"]))

    return build


def written_out_softmax(writer: Writer, step: Steps, x: str, axis: int, part: str = "") -> str:
    """Between a dequantizer and a quantizer onnxruntime turns a Softmax into its own integer one; not its parts."""
    axes = writer.integers(f"{step.node.output}.axes", [axis])
    highest = step("ReduceMax", [x, axes], "max", keepdims=1)
    powers = step("Exp", [step("Sub", [x, highest], "shifted")], "exp")
    return step("Div", [powers, step("ReduceSum", [powers, axes], "sum", keepdims=1)], part)


def attention(writer: Writer, node: Island, a: Arguments) -> None:
    """softmax(q k' * scale + mask) v."""
    step, q = Steps(writer, node), a["0"]
    rank, features = len(writer.shapes[q]), writer.shapes[q][-1]
    assert features is not None
    scale = a.get("scale")
    turned = step("Transpose", [a["1"]], "keys", perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = step("MatMul", [q, turned], "products")
    scores = step("Mul", [scores, step.number(1 / math.sqrt(features) if scale is None else scale)], "scores")
    if a.get("3") is not None:
        mask = a.tensor("3")
        if a.kind("3") == "bool":
            mask = step("Where", [mask, step.number(0.0, "zero"), step.number(-np.inf, "never")], "mask")
        scores = step("Add", [scores, mask], "masked")
    if a.get("is_causal"):
        rows, columns = writer.shapes[q][-2], writer.shapes[a["1"]][-2]
        if rows is None or columns is None:
            raise ExportError(f"'{node.output}': a causal mask of a dynamic length", expected="a fixed length")
        causal = np.triu(np.full((rows, columns), -np.inf, np.float32), 1)
        scores = step("Add", [scores, writer.constant(f"{node.output}.causal", causal)], "masked")
    # Between float products no runtime takes it for an integer softmax.
    weights = step("Softmax", [scores], "weights", axis=rank - 1)
    step("MatMul", [weights, a["2"]])


def layer_norm(writer: Writer, node: Island, a: Arguments) -> None:
    shape = a["1"]
    gamma = a.get("2") or writer.constant(f"{node.output}.ones", np.ones(shape, np.float32))
    inputs = [a["0"], gamma] + ([a["3"]] if a.get("3") else [])
    Steps(writer, node)("LayerNormalization", inputs, axis=-len(shape), epsilon=float(a.get("4", 1e-5)))


def rms_norm(writer: Writer, node: Island, a: Arguments) -> None:
    step, shape = Steps(writer, node), a["1"]
    axes = writer.integers(f"{node.output}.axes", list(range(-len(shape), 0)))
    mean = step("ReduceMean", [step("Mul", [a["0"], a["0"]], "squares"), axes], "mean", keepdims=1)
    epsilon = a.get("3")
    root = step(
        "Sqrt", [step("Add", [mean, step.number(np.finfo(np.float32).eps if epsilon is None else epsilon)], "moved")], "root"
    )
    if a.get("2"):
        step("Mul", [step("Div", [a["0"], root], "normal"), a["2"]])
    else:
        step("Div", [a["0"], root])


def group_norm(groups_at: str | None) -> IslandWriter:
    """GroupNorm, and InstanceNorm as that of one channel a group: InstanceNormalization on groups, then the affine map."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        step, x = Steps(writer, node), a["0"]
        shape = writer.shapes[x]
        channels = int(shape[1] or 1)
        if groups_at is None:
            if not a["5"]:  # running statistics
                batch_norm(writer, node, a)
                return
            groups, gamma, beta, epsilon = channels, a.get("1"), a.get("2"), a["7"]
        else:
            groups, gamma, beta, epsilon = int(a[groups_at]), a.get("2"), a.get("3"), a.get("4", 1e-5)
        folded = step("Reshape", [x, writer.integers(f"{node.output}.groups", [0, groups, -1])], "grouped")
        ones = writer.constant(f"{node.output}.ones", np.ones(groups, np.float32))
        zeros = writer.constant(f"{node.output}.zeros", np.zeros(groups, np.float32))
        normal = step("InstanceNormalization", [folded, ones, zeros], "normal", epsilon=float(epsilon))
        affine = gamma is not None and beta is not None
        target = [0, channels, *(-1 if n is None else n for n in shape[2:])]
        if target.count(-1) > 1:
            raise ExportError(f"'{node.output}': a norm over several dynamic sizes", got=str(shape), expected="at most one")
        y = step("Reshape", [normal, writer.integers(f"{node.output}.shape", target)], "whole" if affine else "")
        if affine:
            wide = writer.integers(f"{node.output}.wide", [1, channels, *(1,) * (len(shape) - 2)])
            scale, shift = (step("Reshape", [str(v), wide], k) for v, k in ((gamma, "gamma"), (beta, "beta")))
            step("Add", [step("Mul", [y, scale], "scaled"), shift])

    return build


def pool(op: str) -> IslandWriter:
    def build(writer: Writer, node: Island, a: Arguments) -> None:
        n = len(writer.shapes[a["0"]]) - 2
        kernel = a.sizes("1", n, 1)
        pads = a.sizes("padding", n, 0)
        attributes: dict[str, Any] = {
            "kernel_shape": kernel, "strides": a.sizes("stride", n, 0) if a.get("stride") else kernel, "pads": [*pads, *pads],
            "ceil_mode": int(bool(a.get("ceil_mode", False))),
        }  # fmt: skip
        if op == "AveragePool":
            attributes["count_include_pad"] = int(bool(a.get("count_include_pad", True)))
        else:
            attributes["dilations"] = a.sizes("dilation", n, 1)
        Steps(writer, node)(op, [a["0"]], **attributes)

    return build


def adaptive_average(writer: Writer, node: Island, a: Arguments) -> None:
    """Windows of unequal size as two matrix products, one an axis."""
    step, before, after = Steps(writer, node), writer.shapes[a["0"]], writer.shapes[node.output]
    x, rank = a["0"], len(before)
    spatial = [axis for axis in range(2, rank) if before[axis] != after[axis]]
    for position, axis in enumerate(spatial):
        n, m = before[axis], after[axis]
        if n is None or m is None:
            raise ExportError(f"'{node.output}': an adaptive pooling of a dynamic size", got=str(before))
        weights = np.zeros((n, m), np.float32)
        for i in range(m):
            begin, end = (i * n) // m, -((-(i + 1) * n) // m)
            weights[begin:end, i] = 1.0 / (end - begin)
        perm = list(range(rank))
        perm[axis], perm[-1] = perm[-1], perm[axis]
        moved = step("Transpose", [x], "turned", perm=perm)
        product = step("MatMul", [moved, writer.constant(f"{node.output}.windows{axis}", weights)], "means")
        x = step("Transpose", [product], "" if position == len(spatial) - 1 else "back", perm=perm)
    if not spatial:
        step("Identity", [x])


def resize(mode: str) -> IslandWriter:
    def build(writer: Writer, node: Island, a: Arguments) -> None:
        shape = writer.shapes[node.output]
        if None in shape[1:]:
            raise ExportError(f"'{node.output}': interpolates to a dynamic size", got=str(shape), expected="fixed sizes")
        align, factors = bool(a["2"]), a.get("3")
        rank = len(shape)
        way = "align_corners" if align else "half_pixel"
        options: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": way, "cubic_coeff_a": -0.75}
        if factors is not None:
            scales = writer.constant(f"{node.output}.scales", np.array([1.0] * (rank - len(factors)) + factors, np.float32))
            Steps(writer, node)("Resize", [a["0"], "", scales], **options)
        else:
            sizes = writer.integers(f"{node.output}.sizes", [int(n or 0) for n in shape[2:]])
            Steps(writer, node)("Resize", [a["0"], "", "", sizes], axes=list(range(2, rank)), **options)

    return build


def embedding(writer: Writer, node: Island, a: Arguments) -> None:
    Steps(writer, node)("Gather", [a.tensor("0"), a.tensor("1")])
