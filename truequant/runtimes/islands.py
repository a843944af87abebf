"""Float islands in ONNX: the ops that a plan left in float, by the ONNX ops that compute the same function.

An island is float arithmetic, whose order of summation belongs to the runtime: only what lies between islands is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from truequant.errors import ExportError
from truequant.integer.nodes import Island
from truequant.runtimes.arguments import Arguments, arguments_of
from truequant.runtimes.writer import Writer

Form = Callable[[Writer, Island, Arguments], None]


def write_island(writer: Writer, node: Island) -> None:
    """Append the ONNX nodes of a float op. `ExportError` where none is known."""
    if node.op not in ISLANDS:
        raise ExportError(
            f"'{node.output}': the float op {node.op} has no ONNX form here",
            got=node.op,
            expected=", ".join(sorted(ISLANDS)),
            fix="int8(x) and int8.save(path) hold it as it is",
        )
    ISLANDS[node.op](writer, node, arguments_of(writer, node))


class _Steps:
    """Names of the inner values of one island."""

    def __init__(self, writer: Writer, node: Island) -> None:
        self.writer, self.node = writer, node

    def __call__(self, op: str, inputs: list[str], part: str = "", **attributes: Any) -> str:
        """Append a node; without `part` it writes the island's output."""
        output = self.writer.fresh(f"{self.node.output}.{part}") if part else self.node.output
        return self.writer.node(op, inputs, output, name=output, **attributes)

    def number(self, value: Any, part: str = "number") -> str:
        return self.writer.constant(f"{self.node.output}.{part}", np.float32(value))


def _plain(op: str, **attributes: Any) -> Form:
    """One ONNX op on the tensors among the arguments."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        _Steps(writer, node)(op, [v for v in a.values if isinstance(v, str)], **attributes)

    return build


def _with(op: str, **names: str) -> Form:
    """One ONNX op on the first argument, other arguments as attributes."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        _Steps(writer, node)(op, [a["0"]], "", **{k: float(a[name]) for k, name in names.items()})

    return build


def _binary(op: str, *, turned: bool = False) -> Form:
    """Of two tensors or a tensor and a number; `turned` swaps the operands."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        operands = [a.tensor("0"), a.tensor("1")]
        if a.get("alpha", 1) != 1:
            scaled = writer.fresh(f"{node.output}.scaled")
            operands[1] = writer.node(
                "Mul", [operands[1], writer.constant(f"{node.output}.alpha", np.float32(a["alpha"]))], scaled, name=scaled
            )
        _Steps(writer, node)(op, operands[::-1] if turned else operands)

    return build


def _conv(op: str) -> Form:
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
        _Steps(writer, node)(op, inputs, **attributes)

    return build


def _linear(writer: Writer, node: Island, a: Arguments) -> None:
    step = _Steps(writer, node)
    weight = step("Transpose", [a.tensor("1")], "weight", perm=[1, 0])
    if a.get("2") is None:
        step("MatMul", [a["0"], weight])
    else:
        step("Add", [step("MatMul", [a["0"], weight], "product"), a.tensor("2")])


def _batch_norm(writer: Writer, node: Island, a: Arguments) -> None:
    channels = int(writer.shapes[a["0"]][1] or 1)
    ones = writer.constant(f"{node.output}.ones", np.ones(channels, np.float32))
    zeros = writer.constant(f"{node.output}.zeros", np.zeros(channels, np.float32))
    inputs = [a["0"], a.get("1") or ones, a.get("2") or zeros, a["3"], a["4"]]
    _Steps(writer, node)("BatchNormalization", inputs, epsilon=float(a["7"]))


def _softmax(op: str) -> Form:
    def build(writer: Writer, node: Island, a: Arguments) -> None:
        step = _Steps(writer, node)
        if op == "LogSoftmax":
            step("LogSoftmax", [a["0"]], axis=int(a["1"]))
        else:
            _written_out_softmax(writer, step, a["0"], int(a["1"]))

    return build


def _written_out_softmax(writer: Writer, step: _Steps, x: str, axis: int, part: str = "") -> str:
    """Between a dequantizer and a quantizer onnxruntime turns a Softmax into its own integer one; not its parts."""
    axes = writer.integers(f"{step.node.output}.axes", [axis])
    highest = step("ReduceMax", [x, axes], "max", keepdims=1)
    powers = step("Exp", [step("Sub", [x, highest], "shifted")], "exp")
    return step("Div", [powers, step("ReduceSum", [powers, axes], "sum", keepdims=1)], part)


def _attention(writer: Writer, node: Island, a: Arguments) -> None:
    """softmax(q k' * scale + mask) v."""
    step, q = _Steps(writer, node), a["0"]
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
    weights = _written_out_softmax(writer, step, scores, rank - 1, "weights")
    step("MatMul", [weights, a["2"]])


def _layer_norm(writer: Writer, node: Island, a: Arguments) -> None:
    shape = a["1"]
    gamma = a.get("2") or writer.constant(f"{node.output}.ones", np.ones(shape, np.float32))
    inputs = [a["0"], gamma] + ([a["3"]] if a.get("3") else [])
    _Steps(writer, node)("LayerNormalization", inputs, axis=-len(shape), epsilon=float(a.get("4", 1e-5)))


def _rms_norm(writer: Writer, node: Island, a: Arguments) -> None:
    step, shape = _Steps(writer, node), a["1"]
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


def _group_norm(groups_at: str | None) -> Form:
    """GroupNorm, and InstanceNorm as that of one channel a group: InstanceNormalization on groups, then the affine map."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        step, x = _Steps(writer, node), a["0"]
        shape = writer.shapes[x]
        channels = int(shape[1] or 1)
        if groups_at is None:
            if not a["5"]:  # running statistics
                _batch_norm(writer, node, a)
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


def _clamp(writer: Writer, node: Island, a: Arguments) -> None:
    names = {"relu6.default": (0.0, 6.0), "clamp_min.default": (a.get("1"), None), "clamp_max.default": (None, a.get("1"))}
    default = (-1.0, 1.0) if node.op == "hardtanh.default" else (None, None)
    low, high = names.get(node.op, (a.get("1", a.get("min", default[0])), a.get("2", a.get("max", default[1]))))
    step = _Steps(writer, node)
    step("Clip", [a["0"], *("" if b is None else step.number(b, k) for k, b in (("low", low), ("high", high)))])


def _reduce(op: str) -> Form:
    def build(writer: Writer, node: Island, a: Arguments) -> None:
        rank = len(writer.shapes[a["0"]])
        axes = a.get("1")
        axes = list(range(rank)) if axes in (None, []) else [axes] if isinstance(axes, int) else axes
        keep = int(bool(a.get("2", a.get("keepdim", False))))
        _Steps(writer, node)(op, [a["0"], writer.integers(f"{node.output}.axes", axes)], keepdims=keep)

    return build


def _norm(writer: Writer, node: Island, a: Arguments) -> None:
    """The Euclidean norm along axes."""
    if float(a.get("1", 2)) != 2.0:
        raise ExportError(f"'{node.output}': a norm of order {a['1']}", expected="order 2")
    axes = [a["2"]] if isinstance(a["2"], int) else list(a["2"])
    keep = int(bool(a.get("3", False)))
    _Steps(writer, node)("ReduceL2", [a["0"], writer.integers(f"{node.output}.axes", axes)], keepdims=keep)


def _pool(op: str) -> Form:
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
        _Steps(writer, node)(op, [a["0"]], **attributes)

    return build


def _adaptive_average(writer: Writer, node: Island, a: Arguments) -> None:
    """Windows of unequal size as two matrix products, one an axis."""
    step, before, after = _Steps(writer, node), writer.shapes[a["0"]], writer.shapes[node.output]
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


def _resize(mode: str) -> Form:
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
            _Steps(writer, node)("Resize", [a["0"], "", scales], **options)
        else:
            sizes = writer.integers(f"{node.output}.sizes", [int(n or 0) for n in shape[2:]])
            _Steps(writer, node)("Resize", [a["0"], "", "", sizes], axes=list(range(2, rank)), **options)

    return build


def _gelu(writer: Writer, node: Island, a: Arguments) -> None:
    _Steps(writer, node)("Gelu", [a["0"]], approximate=a.get("approximate", "none"))


def _silu(writer: Writer, node: Island, a: Arguments) -> None:
    step = _Steps(writer, node)
    step("Mul", [a["0"], step("Sigmoid", [a["0"]], "gate")])


def _log_sigmoid(writer: Writer, node: Island, a: Arguments) -> None:
    step = _Steps(writer, node)
    step("Neg", [step("Softplus", [step("Neg", [a["0"]], "turned")], "softplus")])


def _rsqrt(writer: Writer, node: Island, a: Arguments) -> None:
    step = _Steps(writer, node)
    step("Reciprocal", [step("Sqrt", [a["0"]], "root")])


def _prelu(writer: Writer, node: Island, a: Arguments) -> None:
    step, rank = _Steps(writer, node), len(writer.shapes[a["0"]])
    wide = writer.integers(f"{node.output}.wide", [-1, *(1,) * (rank - 2)])
    step("PRelu", [a["0"], step("Reshape", [a.tensor("1"), wide], "slopes")])


def _cast(writer: Writer, node: Island, a: Arguments) -> None:
    _Steps(writer, node)("Cast", [a["0"]], to=writer.element(a.dtype()))


def _where(writer: Writer, node: Island, a: Arguments) -> None:
    _Steps(writer, node)("Where", [a.tensor("0"), a.tensor("1"), a.tensor("2")])


def _masked_fill(writer: Writer, node: Island, a: Arguments) -> None:
    _Steps(writer, node)("Where", [a.tensor("1"), a.tensor("2"), a["0"]])


def _cumsum(writer: Writer, node: Island, a: Arguments) -> None:
    _Steps(writer, node)("CumSum", [a["0"], writer.constant(f"{node.output}.axis", np.int64(a["1"]))])


def _einsum(writer: Writer, node: Island, a: Arguments) -> None:
    _Steps(writer, node)("Einsum", [v for v in a["1"] if isinstance(v, str)], equation=a["0"].replace(" ", ""))


def _expand(writer: Writer, node: Island, a: Arguments) -> None:
    """-1 keeps a size, which is what Expand makes of 1."""
    sizes = [1 if n == -1 else n for n in a["1"]]
    a = Arguments(writer, node, a.values, {"1": sizes})
    _Steps(writer, node)("Expand", [str(a.values[0]), a.shape("1")])


def _filled(value: float) -> Form:
    """`zeros` and its kin: a number in a shape."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        fill = a["1"] if node.op.startswith(("full", "new_full")) else value
        number = writer.constant(f"{node.output}.fill", np.array(fill, writer.numpy(writer.dtypes[node.output])))
        _Steps(writer, node)("Expand", [number, a.shape("1" if node.op.startswith("new") else "0")])

    return build


def _embedding(writer: Writer, node: Island, a: Arguments) -> None:
    _Steps(writer, node)("Gather", [a.tensor("0"), a.tensor("1")])


def _same_shape(value: float) -> Form:
    """`zeros_like` and its kin: a number in the shape of the argument."""

    def build(writer: Writer, node: Island, a: Arguments) -> None:
        step = _Steps(writer, node)
        fill = a["1"] if node.op.startswith("full") else value
        number = writer.constant(f"{node.output}.fill", np.array(fill, writer.numpy(writer.dtypes[node.output])))
        step("Expand", [number, step("Shape", [a["0"]], "shape")])

    return build


ISLANDS: dict[str, Form] = {
    "conv1d.default": _conv("Conv"), "conv2d.default": _conv("Conv"), "conv3d.default": _conv("Conv"),
    "conv_transpose1d.default": _conv("ConvTranspose"), "conv_transpose2d.input": _conv("ConvTranspose"),
    "conv_transpose3d.input": _conv("ConvTranspose"), "linear.default": _linear, "batch_norm.default": _batch_norm,
    "softmax.int": _softmax("Softmax"), "log_softmax.int": _softmax("LogSoftmax"), "layer_norm.default": _layer_norm,
    "rms_norm.default": _rms_norm, "group_norm.default": _group_norm("1"), "instance_norm.default": _group_norm(None),
    "scaled_dot_product_attention.default": _attention, "relu.default": _plain("Relu"), "sigmoid.default": _plain("Sigmoid"),
    "tanh.default": _plain("Tanh"), "exp.default": _plain("Exp"), "log.default": _plain("Log"), "sqrt.default": _plain("Sqrt"),
    "sin.default": _plain("Sin"), "cos.default": _plain("Cos"), "erf.default": _plain("Erf"),
    "reciprocal.default": _plain("Reciprocal"), "rsqrt.default": _rsqrt, "neg.default": _plain("Neg"),
    "abs.default": _plain("Abs"), "matmul.default": _plain("MatMul"), "bmm.default": _plain("MatMul"),
    "mm.default": _plain("MatMul"), "maximum.default": _plain("Max"), "minimum.default": _plain("Min"),
    "hardswish.default": _plain("HardSwish"), "hardsigmoid.default": _plain("HardSigmoid", alpha=1 / 6),
    "mish.default": _plain("Mish"), "softplus.default": _plain("Softplus"), "softsign.default": _plain("Softsign"),
    "selu.default": _plain("Selu"), "silu.default": _silu, "gelu.default": _gelu, "log_sigmoid.default": _log_sigmoid,
    "elu.default": _plain("Elu"), "leaky_relu.default": _with("LeakyRelu", alpha="1"), "prelu.default": _prelu,
    "relu6.default": _clamp, "hardtanh.default": _clamp, "clamp.default": _clamp, "clamp_min.default": _clamp,
    "clamp_max.default": _clamp, "add.Tensor": _binary("Add"), "sub.Tensor": _binary("Sub"), "mul.Tensor": _binary("Mul"),
    "div.Tensor": _binary("Div"), "add.Scalar": _binary("Add"), "sub.Scalar": _binary("Sub"), "mul.Scalar": _binary("Mul"),
    "div.Scalar": _binary("Div"), "rsub.Scalar": _binary("Sub", turned=True), "rsub.Tensor": _binary("Sub", turned=True),
    "pow.Tensor_Scalar": _binary("Pow"), "pow.Tensor_Tensor": _binary("Pow"), "mean.dim": _reduce("ReduceMean"),
    "mean.default": _reduce("ReduceMean"), "sum.dim_IntList": _reduce("ReduceSum"), "sum.default": _reduce("ReduceSum"),
    "amax.default": _reduce("ReduceMax"), "amin.default": _reduce("ReduceMin"), "linalg_vector_norm.default": _norm,
    "avg_pool1d.default": _pool("AveragePool"), "avg_pool2d.default": _pool("AveragePool"),
    "avg_pool3d.default": _pool("AveragePool"), "max_pool1d.default": _pool("MaxPool"), "max_pool2d.default": _pool("MaxPool"),
    "max_pool3d.default": _pool("MaxPool"), "adaptive_avg_pool1d.default": _adaptive_average,
    "adaptive_avg_pool2d.default": _adaptive_average, "adaptive_avg_pool3d.default": _adaptive_average,
    "upsample_bilinear2d.vec": _resize("linear"), "upsample_linear1d.vec": _resize("linear"),
    "upsample_trilinear3d.vec": _resize("linear"), "upsample_bicubic2d.vec": _resize("cubic"),
    "to.dtype": _cast, "_to_copy.default": _cast, "where.self": _where, "where.ScalarOther": _where,
    "masked_fill.Scalar": _masked_fill, "masked_fill.Tensor": _masked_fill, "cumsum.default": _cumsum,
    "einsum.default": _einsum, "eq.Scalar": _binary("Equal"), "eq.Tensor": _binary("Equal"), "gt.Scalar": _binary("Greater"),
    "gt.Tensor": _binary("Greater"), "lt.Scalar": _binary("Less"), "lt.Tensor": _binary("Less"),
    "ge.Scalar": _binary("GreaterOrEqual"), "ge.Tensor": _binary("GreaterOrEqual"), "le.Scalar": _binary("LessOrEqual"),
    "le.Tensor": _binary("LessOrEqual"), "logical_not.default": _plain("Not"), "bitwise_not.default": _plain("Not"),
    "logical_and.default": _plain("And"), "bitwise_and.Tensor": _plain("And"), "logical_or.default": _plain("Or"),
    "bitwise_or.Tensor": _plain("Or"), "zeros_like.default": _same_shape(0), "ones_like.default": _same_shape(1),
    "full_like.default": _same_shape(0), "expand.default": _expand, "zeros.default": _filled(0), "ones.default": _filled(1),
    "full.default": _filled(0), "embedding.default": _embedding,
}  # fmt: skip
