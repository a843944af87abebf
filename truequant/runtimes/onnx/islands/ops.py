"""Float islands in ONNX: the ops that a plan left in float, by the ONNX ops that compute the same function.

An island is float arithmetic, whose order of summation belongs to the runtime: only what lies between islands is exact.
"""

from __future__ import annotations

from truequant.errors import ExportError
from truequant.integer.nodes import Island
from truequant.planning.float_ops import ONNX_OPS, REGISTERED
from truequant.runtimes.onnx.islands import arithmetic, moved, places
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
    "addmm.default": arithmetic.scaled_sum("MatMul"), "lstm_cell.default": recurrent.cell("LSTM"),
    "gru_cell.default": recurrent.cell("GRU"), "batch_norm.default": layers.batch_norm,
    "softmax.int": layers.softmax("Softmax"), "log_softmax.int": layers.softmax("LogSoftmax"),
    "layer_norm.default": layers.layer_norm, "rms_norm.default": layers.rms_norm, "group_norm.default": layers.group_norm("1"),
    "instance_norm.default": layers.group_norm(None), "scaled_dot_product_attention.default": layers.attention,
    "relu.default": maths.plain("Relu"), "sigmoid.default": maths.plain("Sigmoid"), "tanh.default": maths.plain("Tanh"),
    "exp.default": maths.plain("Exp"), "log.default": maths.plain("Log"), "sqrt.default": maths.plain("Sqrt"),
    "sin.default": maths.plain("Sin"), "cos.default": maths.plain("Cos"), "erf.default": maths.plain("Erf"),
    "reciprocal.default": maths.plain("Reciprocal"), "rsqrt.default": maths.rsqrt, "neg.default": maths.plain("Neg"),
    "abs.default": maths.plain("Abs"), "matmul.default": maths.plain("MatMul"), "bmm.default": maths.plain("MatMul"),
    "mm.default": maths.plain("MatMul"), "maximum.default": arithmetic.binary("Max"),
    "minimum.default": arithmetic.binary("Min"), "hardswish.default": maths.plain("HardSwish"),
    "hardsigmoid.default": maths.plain("HardSigmoid", alpha=1 / 6), "mish.default": maths.plain("Mish"),
    "softplus.default": maths.plain("Softplus"), "selu.default": maths.plain("Selu"), "silu.default": maths.silu,
    "gelu.default": maths.gelu, "log_sigmoid.default": maths.log_sigmoid, "elu.default": maths.plain("Elu"),
    "leaky_relu.default": maths.attributed("LeakyRelu", alpha="1"), "prelu.default": maths.prelu, "relu6.default": maths.clamp,
    "hardtanh.default": maths.clamp, "clamp.default": maths.clamp, "clamp_min.default": maths.clamp,
    "clamp_max.default": maths.clamp, "add.Tensor": arithmetic.binary("Add"), "sub.Tensor": arithmetic.binary("Sub"),
    "mul.Tensor": arithmetic.binary("Mul"), "div.Tensor": arithmetic.binary("Div"), "add.Scalar": arithmetic.binary("Add"),
    "sub.Scalar": arithmetic.binary("Sub"), "mul.Scalar": arithmetic.binary("Mul"), "div.Scalar": arithmetic.binary("Div"),
    "rsub.Scalar": arithmetic.binary("Sub", turned=True), "rsub.Tensor": arithmetic.binary("Sub", turned=True),
    "pow.Tensor_Scalar": arithmetic.binary("Pow"), "pow.Tensor_Tensor": arithmetic.binary("Pow"),
    "mean.dim": maths.reduce("ReduceMean"), "mean.default": maths.reduce("ReduceMean"),
    "sum.dim_IntList": maths.reduce("ReduceSum"), "sum.default": maths.reduce("ReduceSum"),
    "amax.default": maths.reduce("ReduceMax"), "amin.default": maths.reduce("ReduceMin"),
    "linalg_vector_norm.default": maths.norm, "avg_pool1d.default": layers.pool("AveragePool"),
    "avg_pool2d.default": layers.pool("AveragePool"), "avg_pool3d.default": layers.pool("AveragePool"),
    "max_pool1d.default": layers.pool("MaxPool"), "max_pool2d.default": layers.pool("MaxPool"),
    "max_pool3d.default": layers.pool("MaxPool"), "adaptive_avg_pool1d.default": layers.adaptive_average,
    "adaptive_avg_pool2d.default": layers.adaptive_average, "adaptive_avg_pool3d.default": layers.adaptive_average,
    "upsample_bilinear2d.vec": layers.resize("linear"), "upsample_linear1d.vec": layers.resize("linear"),
    "upsample_trilinear3d.vec": layers.resize("linear"), "upsample_bicubic2d.vec": layers.resize("cubic"),
    "to.dtype": maths.cast, "_to_copy.default": maths.cast, "where.self": maths.where, "where.ScalarOther": maths.where,
    "fill.Scalar": maths.fill, "fill.Tensor": maths.fill,
    "masked_fill.Scalar": maths.masked_fill, "masked_fill.Tensor": maths.masked_fill, "cumsum.default": maths.cumsum,
    "einsum.default": maths.einsum, "eq.Scalar": arithmetic.binary("Equal"), "eq.Tensor": arithmetic.binary("Equal"),
    "gt.Scalar": arithmetic.binary("Greater"), "gt.Tensor": arithmetic.binary("Greater"),
    "lt.Scalar": arithmetic.binary("Less"), "lt.Tensor": arithmetic.binary("Less"),
    "ge.Scalar": arithmetic.binary("GreaterOrEqual"), "ge.Tensor": arithmetic.binary("GreaterOrEqual"),
    "le.Scalar": arithmetic.binary("LessOrEqual"), "le.Tensor": arithmetic.binary("LessOrEqual"),
    "logical_not.default": arithmetic.logical("Not"), "bitwise_not.default": arithmetic.logical("Not"),
    "logical_and.default": arithmetic.logical("And"), "bitwise_and.Tensor": arithmetic.logical("And"),
    "logical_or.default": arithmetic.logical("Or"), "bitwise_or.Tensor": arithmetic.logical("Or"),
    "__and__.Tensor": arithmetic.logical("And"), "__or__.Tensor": arithmetic.logical("Or"),
    "zeros_like.default": maths.same_shape(0), "ones_like.default": maths.same_shape(1), "index.Tensor": places.index,
    "index_select.default": places.select, "gather.default": places.gather, "ne.Scalar": arithmetic.unequal,
    "ne.Tensor": arithmetic.unequal, "arange.default": maths.arange, "arange.start": maths.arange,
    "one_hot.default": places.one_hot, "pad.default": maths.pad, "constant_pad_nd.default": maths.pad,
    "diff.default": maths.difference, "argmax.default": places.extreme_place("ArgMax"), "max.dim": places.largest("Max"),
    "min.dim": places.largest("Min"), "repeat.default": maths.repeat, "tril.default": maths.triangle(0),
    "triu.default": maths.triangle(1), "glu.default": maths.glu, "var.correction": maths.spread(False),
    "var.dim": maths.spread(False), "std.correction": maths.spread(True), "std.dim": maths.spread(True),
    "square.default": maths.square, "floor.default": maths.plain("Floor"), "ceil.default": maths.plain("Ceil"),
    "round.default": maths.plain("Round"), "sign.default": maths.plain("Sign"), "lstm.input": recurrent.recurrent("LSTM"),
    "gru.input": recurrent.recurrent("GRU"), "rnn_tanh.input": recurrent.recurrent("RNN"),
    "rnn_relu.input": recurrent.recurrent("RNN"), "full_like.default": maths.same_shape(0), "expand.default": maths.expand,
    "zeros.default": maths.filled(0), "ones.default": maths.filled(1), "full.default": maths.filled(0),
    "embedding.default": layers.embedding, "expand_as.default": maths.expand_as,
    "baddbmm.default": arithmetic.scaled_sum("MatMul"), "addcmul.default": arithmetic.scaled_sum("Mul"),
    "addcdiv.default": arithmetic.scaled_sum("Div"), "div.Tensor_mode": arithmetic.division("div"),
    "div.Scalar_mode": arithmetic.division("div"), "floor_divide.default": arithmetic.division("floor_divide"),
    "floor_divide.Scalar": arithmetic.division("floor_divide"), "remainder.Scalar": arithmetic.division("remainder"),
    "remainder.Tensor": arithmetic.division("remainder"), "fmod.Scalar": arithmetic.division("fmod"),
    "fmod.Tensor": arithmetic.division("fmod"), "threshold.default": arithmetic.threshold, "lerp.Scalar": arithmetic.lerp,
    "lerp.Tensor": arithmetic.lerp, "logsumexp.default": maths.reduce("ReduceLogSumExp"),
    "prod.dim_int": maths.reduce("ReduceProd"), "prod.default": maths.reduce("ReduceProd"), "log2.default": arithmetic.log2,
    "log1p.default": arithmetic.shifted("Log", 1, first=True), "expm1.default": arithmetic.shifted("Exp", -1, first=False),
    "tan.default": maths.plain("Tan"), "atan.default": maths.plain("Atan"), "asin.default": maths.plain("Asin"),
    "acos.default": maths.plain("Acos"), "sinh.default": maths.plain("Sinh"), "cosh.default": maths.plain("Cosh"),
    "isnan.default": maths.plain("IsNaN"), "isinf.default": maths.plain("IsInf"), "nan_to_num.default": arithmetic.nan_to_num,
    "any.dim": arithmetic.some("ReduceMax"), "any.default": arithmetic.some("ReduceMax"),
    "all.dim": arithmetic.some("ReduceMin"), "all.default": arithmetic.some("ReduceMin"),
    "__and__.Scalar": arithmetic.logical("And"), "bitwise_and.Scalar": arithmetic.logical("And"),
    "__or__.Scalar": arithmetic.logical("Or"), "bitwise_or.Scalar": arithmetic.logical("Or"),
    "__xor__.Scalar": arithmetic.logical("Xor"), "bitwise_xor.Scalar": arithmetic.logical("Xor"),
    "logical_xor.default": arithmetic.logical("Xor"), "__xor__.Tensor": arithmetic.logical("Xor"),
    "bitwise_xor.Tensor": arithmetic.logical("Xor"), "celu.default": maths.attributed("Celu", alpha="1"),
    "clamp.Tensor": maths.clamp, "where.ScalarSelf": maths.where, "where.Scalar": maths.where,
    "conv1d.padding": layers.conv("Conv"), "conv2d.padding": layers.conv("Conv"), "conv3d.padding": layers.conv("Conv"),
    "scatter.src": places.scatter(), "scatter.value": places.scatter(), "scatter.reduce": places.scatter(),
    "scatter.value_reduce": places.scatter(), "scatter_add.default": places.scatter("add"),
    "scatter_reduce.two": places.scatter(), "index_add.default": places.index_add("add"),
    "slice_scatter.default": places.slice_scatter, "select_scatter.default": places.select_scatter,
    "index_copy.default": places.index_add("none"), "sort.default": places.ordered("sort"),
    "sort.stable": places.ordered("sort"), "argsort.default": places.ordered("argsort"),
    "argsort.stable": places.ordered("argsort"), "topk.default": places.ordered("topk"),
    "argmin.default": places.extreme_place("ArgMin"), "unfold.default": places.unfold, "im2col.default": places.im2col,
    "col2im.default": places.col2im, "adaptive_max_pool1d.default": places.adaptive_max_pool,
    "adaptive_max_pool2d.default": places.adaptive_max_pool, "adaptive_max_pool3d.default": places.adaptive_max_pool,
    "grid_sampler.default": layers.grid_sample, "embedding_bag.padding_idx": layers.embedding_bag,
    "embedding_bag.default": layers.embedding_bag,
    "_upsample_nearest_exact1d.vec": layers.resize("nearest", nearest_mode="round_prefer_ceil"),
    "_upsample_nearest_exact2d.vec": layers.resize("nearest", nearest_mode="round_prefer_ceil"),
    "_upsample_nearest_exact3d.vec": layers.resize("nearest", nearest_mode="round_prefer_ceil"),
    "upsample_nearest1d.vec": layers.resize("nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "upsample_nearest2d.vec": layers.resize("nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "upsample_nearest3d.vec": layers.resize("nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "_upsample_bilinear2d_aa.vec": layers.smoothed, "_upsample_bicubic2d_aa.vec": layers.smoothed, "slice.Tensor": moved.cut,
    "narrow.default": moved.narrow, "view.default": moved.reshape, "reshape.default": moved.reshape,
    "select.int": moved.select, "flip.default": moved.flip, "roll.default": moved.roll, "split_with_sizes.default": moved.part,
    "chunk.default": moved.part,
    "unsqueeze.default": moved.unsqueeze, "squeeze.dim": moved.squeeze, "squeeze.dims": moved.squeeze,
    "flatten.using_ints": moved.flatten, "unflatten.int": moved.unflatten,
}  # fmt: skip
assert set(ISLANDS) == ONNX_OPS
