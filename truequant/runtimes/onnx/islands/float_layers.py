"""Layers, norms, poolings and attention as float islands in ONNX."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from truequant.errors import ExportError
from truequant.integer.nodes import Island
from truequant.runtimes.onnx.islands.arguments import Arguments, Stored
from truequant.runtimes.onnx.islands.steps import IslandWriter, Steps
from truequant.runtimes.onnx.writer import Writer


def conv(op: str) -> IslandWriter:
    def build(writer: Writer, node: Island, a: Arguments) -> None:
        n = len(writer.shapes[a["0"]]) - 2
        dilations = a.sizes("dilation", n, 1)
        if isinstance(a.get("padding"), str):  # an odd total has one more behind than before
            kernel = [int(k or 0) for k in writer.shapes[a.tensor("1")][2:]]
            totals = [d * (k - 1) if a["padding"] == "same" else 0 for k, d in zip(kernel, dilations, strict=True)]
            pads = [*(t // 2 for t in totals), *(t - t // 2 for t in totals)]
        else:
            pads = a.sizes("padding", n, 0) * 2
        inputs = [a.tensor("0"), a.tensor("1")] + ([a.tensor("2")] if a.get("2") is not None else [])
        attributes: dict[str, Any] = {
            "strides": a.sizes("stride", n, 1), "pads": pads, "dilations": dilations, "group": int(a.get("groups", 1)),
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
    """softmax(q k' * scale + mask) v, and 0 for a row that sees nothing, whose softmax is no number."""
    step, q = Steps(writer, node), a["0"]
    rank, features = len(writer.shapes[q]), writer.shapes[q][-1]
    assert features is not None
    scale = a.get("scale")
    turned = step("Transpose", [a["1"]], "keys", perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = step("MatMul", [q, turned], "products")
    scores = step("Mul", [scores, step.number(1 / math.sqrt(features) if scale is None else scale)], "scores")
    seen = None
    if a.get("3") is not None:
        mask = a.tensor("3")
        seen = _seen(writer, step, mask)
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
    if seen is None:
        step("MatMul", [weights, a["2"]])
    else:
        step("Where", [seen, step("MatMul", [weights, a["2"]], "mixed"), step.number(0.0, "nothing")])


def _seen(writer: Writer, step: Steps, mask: str) -> str | None:
    """Whether a row of a mask lets anything through; None where every row of a constant mask does."""
    boolean = writer.dtypes.get(mask) == torch.bool
    if mask in writer.constants:
        numbers = writer.array(mask)
        if bool((numbers if boolean else numbers > -np.inf).any(-1).all()):
            return None
    last = writer.integers(f"{step.node.output}.keys", [-1])
    number = step("Cast", [mask], "sight", to=writer.element(torch.float32)) if boolean else mask
    highest = step("ReduceMax", [number, last], "highest", keepdims=1)
    return step("Greater", [highest, step.number(0.0 if boolean else -np.inf, "least")], "seen")


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
    before, after = writer.shapes[a["0"]], writer.shapes[node.output]
    n = int(node.op.split("pool")[1][0])
    matrices = {}
    for axis in (axis for axis in range(len(before) - n, len(before)) if before[axis] != after[axis]):
        n, m = _fixed(node, before, axis), _fixed(node, after, axis)
        weights = np.zeros((n, m), np.float32)
        for i in range(m):
            begin, end = (i * n) // m, -((-(i + 1) * n) // m)
            weights[begin:end, i] = 1.0 / (end - begin)
        matrices[axis] = weights
    _by_matrices(writer, node, a["0"], matrices)


def smoothed(writer: Writer, node: Island, a: Arguments) -> None:
    """Interpolation with antialias=True, one matrix an axis: what torch itself makes of each place."""
    before, after = writer.shapes[a["0"]], writer.shapes[node.output]
    align, factors = bool(a.get("align_corners", False)), a.get("scale_factors")
    op = getattr(torch.ops.aten, node.op.split(".")[0]).vec
    matrices = {}
    for position, axis in enumerate((2, 3)):
        n, m = _fixed(node, before, axis), _fixed(node, after, axis)
        places = torch.eye(n).reshape(1, n, 1, n)
        given = (None, align, [1.0, factors[position]]) if factors is not None else ([1, m], align, None)
        matrices[axis] = op(places, *given).reshape(n, m).numpy()
    _by_matrices(writer, node, a["0"], matrices)


def _fixed(node: Island, shape: tuple[int | None, ...], axis: int) -> int:
    size = shape[axis]
    if size is None:
        raise ExportError(f"'{node.output}': {node.op} of a dynamic size", got=str(shape), expected="fixed sizes")
    return size


def _by_matrices(writer: Writer, node: Island, x: str, matrices: dict[int, Any]) -> None:
    """A matrix product along each axis, the last one the result."""
    step, rank = Steps(writer, node), len(writer.shapes[x])
    for position, (axis, weights) in enumerate(matrices.items(), 1):
        perm = list(range(rank))
        perm[axis], perm[-1] = perm[-1], perm[axis]
        moved = step("Transpose", [x], "turned", perm=perm)
        product = step("MatMul", [moved, writer.constant(f"{node.output}.windows{axis}", weights)], "means")
        x = step("Transpose", [product], "" if position == len(matrices) else "back", perm=perm)
    if not matrices:
        step("Identity", [x])


def resize(mode: str, **more: Any) -> IslandWriter:
    """Interpolation by factors or to sizes. more: how `nearest` rounds."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        step, rank = Steps(writer, node), len(writer.shapes[a["0"]])
        align, factors = bool(a.get("align_corners", False)), a.get("scale_factors")
        way = "align_corners" if align else "half_pixel"
        options: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": way, "cubic_coeff_a": -0.75} | more
        if factors is not None:
            scales = writer.constant(f"{node.output}.scales", np.array([1.0] * (rank - len(factors)) + factors, np.float32))
            step("Resize", [a["0"], "", scales], **options)
            return
        # Sizes of all axes: onnxruntime's own shape inference refuses those of some, with `axes`, in an optimized graph.
        kept = writer.measured(a["0"], f"{node.output}.kept", 0, 2)
        step("Resize", [a["0"], "", "", writer.joined(f"{node.output}.whole", [kept, a.joined(a["1"])])], **options)

    return build


_SAMPLED = ("linear", "nearest", "cubic")
_BEYOND = ("zeros", "border", "reflection")


def grid_sample(writer: Writer, node: Island, a: Arguments) -> None:
    mode, padding = _SAMPLED[int(a["2"])], _BEYOND[int(a["3"])]
    corners = int(bool(a["4"]))
    Steps(writer, node)("GridSample", [a["0"], a["1"]], mode=mode, padding_mode=padding, align_corners=corners)


def embedding_bag(writer: Writer, node: Island, a: Arguments) -> None:
    """Sums, means or maxima of the rows of bags that begin at offsets: which row lies in which bag, as a matrix."""
    step = Steps(writer, node)
    weight, rows, offsets = a.tensor("0"), a.tensor("1"), a.tensor("2")
    if node.part not in (None, 0):
        raise ExportError(f"'{node.output}': what embedding_bag returns beside the bags", expected="the bags")
    zero, one = writer.constant(f"{node.output}.zero", np.int64(0)), writer.constant(f"{node.output}.one", np.int64(1))
    first, last = writer.integers(f"{node.output}.first", [0]), writer.integers(f"{node.output}.last", [-1])
    if a.get("include_last_offset", False):
        offsets = step("Slice", [offsets, first, last], "begins")
    kinds = [step("Cast", [x], "whole", to=writer.element(torch.int64)) for x in (rows, offsets)]
    count = step("Squeeze", [step("Shape", [rows], "length"), first], "count")
    places = step("Unsqueeze", [step("Range", [zero, count, one], "places"), first], "row")
    begins = step(
        "Cast",
        [
            step("Unsqueeze", [kinds[1], last], "column"),
        ],
        "begin",
        to=writer.element(torch.int64),
    )
    behind = step("Slice", [kinds[1], writer.integers(f"{node.output}.second", [1]),
                            writer.integers(f"{node.output}.end", [2**63 - 1])], "behind")  # fmt: skip
    ends = step("Concat", [behind, step("Unsqueeze", [count, first], "all")], "ends", axis=0)
    inside = step("And", [step("GreaterOrEqual", [places, begins], "after"),
                          step("Less", [places, step("Unsqueeze", [ends, last], "until")], "before")], "inside")  # fmt: skip
    padding = a.get("padding_idx")
    if padding is not None and padding >= 0:
        skipped = step("Equal", [kinds[0], writer.constant(f"{node.output}.padding", np.int64(padding))], "skipped")
        inside = step("And", [inside, step("Not", [skipped], "kept")], "counted")
    member = step("Cast", [inside], "member", to=writer.element(torch.float32))
    taken = step("Gather", [weight, kinds[0]], "rows")
    if a.get("per_sample_weights") is not None:
        taken = step("Mul", [taken, step("Unsqueeze", [a.tensor("per_sample_weights"), last], "factors")], "weighted")
    mode = int(a.get("mode", 0))
    if mode == 2:
        lowest, nothing = step.number(-np.inf, "lowest"), step.number(0.0, "nothing")
        wide = step("Where", [step("Unsqueeze", [inside, last], "wide"), taken, lowest], "bags")
        highest = step("ReduceMax", [wide, writer.integers(f"{node.output}.axis", [1])], "highest", keepdims=0)
        filled = step("Greater", [step("ReduceMax", [member, writer.integers(f"{node.output}.axis", [1])], "some"),
                                  nothing], "filled")  # fmt: skip
        step("Where", [filled, highest, nothing])
        return
    total = step("MatMul", [member, taken], "" if mode == 0 else "sums")
    if mode == 1:
        number = step("ReduceSum", [member, writer.integers(f"{node.output}.axis", [1])], "number", keepdims=1)
        step("Div", [total, step("Max", [number, step.number(1.0, "least")], "divisor")])


def embedding(writer: Writer, node: Island, a: Arguments) -> None:
    """Rows of a table; of codes those rows alone become values."""
    step, table, rows = Steps(writer, node), a["0"], a.tensor("1")
    if not isinstance(table, Stored):
        step("Gather", [a.tensor("0"), rows])
        return
    taken = step("Gather", [writer.constant(f"{node.output}.codes", table.codes), rows], "rows")
    values = step("Cast", [taken], "values", to=writer.element(torch.float32))
    scale = writer.constant(f"{node.output}.scale", table.scale)
    if not table.scale.ndim:
        step("Mul", [values, scale])
        return
    scales, groups = step("Gather", [scale, rows], "scales"), table.scale.shape[1]
    if groups == 1:
        step("Mul", [values, scales])
        return
    kept, width = [0] * len(writer.shapes[rows]), table.codes.shape[1]
    split = writer.integers(f"{node.output}.groups", [*kept, groups, width // groups])
    last = writer.integers(f"{node.output}.last", [len(kept) + 1])
    scaled = step("Mul", [step("Reshape", [values, split], "split"), step("Unsqueeze", [scales, last], "wide")], "scaled")
    step("Reshape", [scaled, writer.integers(f"{node.output}.whole", [*kept, width])])
