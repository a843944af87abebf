"""Float islands in ONNX: the ops that a plan left in float, by the ONNX ops that compute the same function.

An island is float arithmetic, whose order of summation belongs to the runtime: only what lies between islands is exact.
"""

from __future__ import annotations

from truequant.errors import ExportError
from truequant.integer.islands import REGISTERED
from truequant.integer.nodes import Island
from truequant.runtimes.onnx.islands import float_layers as layers
from truequant.runtimes.onnx.islands import float_math as maths
from truequant.runtimes.onnx.islands import recurrent_layers as recurrent
from truequant.runtimes.onnx.islands.arguments import arguments_of
from truequant.runtimes.onnx.islands.steps import IslandWriter
from truequant.runtimes.onnx.islands.user_ops import write_registered
from truequant.runtimes.onnx.writer import Writer


def write_island(writer: Writer, node: Island) -> None:
    """Append the ONNX nodes of a float op. `ExportError` where none is known."""
    if node.op.startswith(REGISTERED):
        write_registered(writer, node)
        return
    if node.op not in ISLANDS:
        raise ExportError(
            f"'{node.output}': the float op {node.op} has no ONNX form here",
            got=node.op,
            expected=", ".join(sorted(ISLANDS)),
            fix="int8(x) and int8.save(path) hold it as it is",
        )
    ISLANDS[node.op](writer, node, arguments_of(writer, node))


ISLANDS: dict[str, IslandWriter] = {
    "conv1d.default": layers.conv("Conv"), "conv2d.default": layers.conv("Conv"), "conv3d.default": layers.conv("Conv"),
    "conv_transpose1d.default": layers.conv("ConvTranspose"), "conv_transpose2d.input": layers.conv("ConvTranspose"),
    "conv_transpose3d.input": layers.conv("ConvTranspose"), "linear.default": layers.linear,
    "addmm.default": layers.addmm, "lstm_cell.default": recurrent.cell("LSTM"),
    "gru_cell.default": recurrent.cell("GRU"), "batch_norm.default": layers.batch_norm,
    "softmax.int": layers.softmax("Softmax"),
    "log_softmax.int": layers.softmax("LogSoftmax"), "layer_norm.default": layers.layer_norm,
    "rms_norm.default": layers.rms_norm, "group_norm.default": layers.group_norm("1"),
    "instance_norm.default": layers.group_norm(None), "scaled_dot_product_attention.default": layers.attention,
    "relu.default": maths.plain("Relu"), "sigmoid.default": maths.plain("Sigmoid"), "tanh.default": maths.plain("Tanh"),
    "exp.default": maths.plain("Exp"), "log.default": maths.plain("Log"), "sqrt.default": maths.plain("Sqrt"),
    "sin.default": maths.plain("Sin"), "cos.default": maths.plain("Cos"), "erf.default": maths.plain("Erf"),
    "reciprocal.default": maths.plain("Reciprocal"), "rsqrt.default": maths.rsqrt, "neg.default": maths.plain("Neg"),
    "abs.default": maths.plain("Abs"), "matmul.default": maths.plain("MatMul"), "bmm.default": maths.plain("MatMul"),
    "mm.default": maths.plain("MatMul"), "maximum.default": maths.plain("Max"), "minimum.default": maths.plain("Min"),
    "hardswish.default": maths.plain("HardSwish"), "hardsigmoid.default": maths.plain("HardSigmoid", alpha=1 / 6),
    "mish.default": maths.plain("Mish"), "softplus.default": maths.plain("Softplus"),
    "softsign.default": maths.plain("Softsign"), "selu.default": maths.plain("Selu"), "silu.default": maths.silu,
    "gelu.default": maths.gelu, "log_sigmoid.default": maths.log_sigmoid, "elu.default": maths.plain("Elu"),
    "leaky_relu.default": maths.attributed("LeakyRelu", alpha="1"), "prelu.default": maths.prelu, "relu6.default": maths.clamp,
    "hardtanh.default": maths.clamp, "clamp.default": maths.clamp, "clamp_min.default": maths.clamp,
    "clamp_max.default": maths.clamp, "add.Tensor": maths.binary("Add"), "sub.Tensor": maths.binary("Sub"),
    "mul.Tensor": maths.binary("Mul"), "div.Tensor": maths.binary("Div"), "add.Scalar": maths.binary("Add"),
    "sub.Scalar": maths.binary("Sub"), "mul.Scalar": maths.binary("Mul"), "div.Scalar": maths.binary("Div"),
    "rsub.Scalar": maths.binary("Sub", turned=True), "rsub.Tensor": maths.binary("Sub", turned=True),
    "pow.Tensor_Scalar": maths.binary("Pow"), "pow.Tensor_Tensor": maths.binary("Pow"), "mean.dim": maths.reduce("ReduceMean"),
    "mean.default": maths.reduce("ReduceMean"), "sum.dim_IntList": maths.reduce("ReduceSum"),
    "sum.default": maths.reduce("ReduceSum"), "amax.default": maths.reduce("ReduceMax"),
    "amin.default": maths.reduce("ReduceMin"), "linalg_vector_norm.default": maths.norm,
    "avg_pool1d.default": layers.pool("AveragePool"), "avg_pool2d.default": layers.pool("AveragePool"),
    "avg_pool3d.default": layers.pool("AveragePool"), "max_pool1d.default": layers.pool("MaxPool"),
    "max_pool2d.default": layers.pool("MaxPool"), "max_pool3d.default": layers.pool("MaxPool"),
    "adaptive_avg_pool1d.default": layers.adaptive_average, "adaptive_avg_pool2d.default": layers.adaptive_average,
    "adaptive_avg_pool3d.default": layers.adaptive_average, "upsample_bilinear2d.vec": layers.resize("linear"),
    "upsample_linear1d.vec": layers.resize("linear"), "upsample_trilinear3d.vec": layers.resize("linear"),
    "upsample_bicubic2d.vec": layers.resize("cubic"), "to.dtype": maths.cast, "_to_copy.default": maths.cast,
    "where.self": maths.where, "where.ScalarOther": maths.where, "masked_fill.Scalar": maths.masked_fill,
    "masked_fill.Tensor": maths.masked_fill, "cumsum.default": maths.cumsum, "einsum.default": maths.einsum,
    "eq.Scalar": maths.binary("Equal"), "eq.Tensor": maths.binary("Equal"), "gt.Scalar": maths.binary("Greater"),
    "gt.Tensor": maths.binary("Greater"), "lt.Scalar": maths.binary("Less"), "lt.Tensor": maths.binary("Less"),
    "ge.Scalar": maths.binary("GreaterOrEqual"), "ge.Tensor": maths.binary("GreaterOrEqual"),
    "le.Scalar": maths.binary("LessOrEqual"), "le.Tensor": maths.binary("LessOrEqual"),
    "logical_not.default": maths.plain("Not"), "bitwise_not.default": maths.plain("Not"),
    "logical_and.default": maths.plain("And"), "bitwise_and.Tensor": maths.plain("And"),
    "logical_or.default": maths.plain("Or"), "bitwise_or.Tensor": maths.plain("Or"), "__and__.Tensor": maths.plain("And"),
    "__or__.Tensor": maths.plain("Or"), "zeros_like.default": maths.same_shape(0), "ones_like.default": maths.same_shape(1),
    "index.Tensor": maths.index, "index_select.default": maths.select, "gather.default": maths.gather,
    "ne.Scalar": maths.unequal, "ne.Tensor": maths.unequal, "arange.default": maths.arange, "arange.start": maths.arange,
    "one_hot.default": maths.one_hot, "pad.default": maths.pad, "constant_pad_nd.default": maths.pad,
    "diff.default": maths.difference, "argmax.default": maths.argmax, "max.dim": maths.largest("Max"),
    "min.dim": maths.largest("Min"), "repeat.default": maths.repeat, "tril.default": maths.triangle(0),
    "triu.default": maths.triangle(1), "glu.default": maths.glu, "var.correction": maths.spread(False),
    "var.dim": maths.spread(False), "std.correction": maths.spread(True), "std.dim": maths.spread(True),
    "square.default": maths.square, "floor.default": maths.plain("Floor"), "ceil.default": maths.plain("Ceil"),
    "round.default": maths.plain("Round"), "sign.default": maths.plain("Sign"), "lstm.input": recurrent.recurrent("LSTM"),
    "gru.input": recurrent.recurrent("GRU"), "rnn_tanh.input": recurrent.recurrent("RNN"),
    "rnn_relu.input": recurrent.recurrent("RNN"), "full_like.default": maths.same_shape(0), "expand.default": maths.expand,
    "zeros.default": maths.filled(0), "ones.default": maths.filled(1), "full.default": maths.filled(0),
    "embedding.default": layers.embedding,
}  # fmt: skip
