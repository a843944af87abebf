"""The float ops that may stand between quantized edges, by torch's own names.

Only ops of the list below can be in a program: pure functions of their arguments, so that a file can name nothing else.
"""

from __future__ import annotations

_NAMES = """
    conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv_transpose1d.default conv_transpose2d.input
    conv_transpose3d.input linear.default batch_norm.default layer_norm.default group_norm.default instance_norm.default
    rms_norm.default softmax.int log_softmax.int relu.default relu6.default hardtanh.default clamp.default clamp_min.default
    clamp_max.default gelu.default silu.default sigmoid.default tanh.default hardswish.default hardsigmoid.default elu.default
    leaky_relu.default prelu.default mish.default softplus.default selu.default celu.default softsign.default
    logsigmoid.default log_sigmoid.default add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Scalar rsub.Tensor mul.Tensor
    mul.Scalar div.Tensor div.Scalar pow.Tensor_Scalar neg.default abs.default exp.default log.default sqrt.default
    rsqrt.default reciprocal.default maximum.default minimum.default mean.dim mean.default sum.dim_IntList sum.default
    amax.default amin.default matmul.default bmm.default mm.default addmm.default scaled_dot_product_attention.default
    avg_pool1d.default avg_pool2d.default avg_pool3d.default adaptive_avg_pool1d.default adaptive_avg_pool2d.default
    adaptive_avg_pool3d.default max_pool1d.default max_pool2d.default max_pool3d.default upsample_nearest1d.vec
    upsample_nearest2d.vec upsample_bilinear2d.vec view.default reshape.default flatten.using_ints unflatten.int
    squeeze.default squeeze.dim squeeze.dims unsqueeze.default permute.default transpose.int t.default expand.default
    cat.default stack.default slice.Tensor select.int pad.default constant_pad_nd.default contiguous.default clone.default
    dropout.default pixel_shuffle.default channel_shuffle.default linalg_vector_norm.default upsample_linear1d.vec
    upsample_trilinear3d.vec upsample_bicubic2d.vec to.dtype _to_copy.default where.self where.ScalarOther where.ScalarSelf
    where.Scalar masked_fill.Scalar masked_fill.Tensor cumsum.default einsum.default sin.default cos.default erf.default
    pow.Tensor_Tensor eq.Scalar eq.Tensor ne.Scalar ne.Tensor gt.Scalar gt.Tensor lt.Scalar lt.Tensor ge.Scalar ge.Tensor
    le.Scalar le.Tensor logical_not.default bitwise_not.default logical_and.default bitwise_and.Tensor logical_or.default
    bitwise_or.Tensor __and__.Tensor __or__.Tensor zeros_like.default ones_like.default full_like.default zeros.default
    ones.default full.default embedding.default index.Tensor index_select.default diff.default gather.default argmax.default
    topk.default tril.default triu.default baddbmm.default floor_divide.default remainder.Scalar clamp.Tensor var.correction
    std.correction var.dim std.dim any.dim all.dim max.dim min.dim lstm.input lstm_cell.default one_hot.default
    gru_cell.default gru.input rnn_tanh.input rnn_relu.input repeat.default repeat_interleave.self_int roll.default
    flip.default im2col.default unfold.default adaptive_max_pool2d.default type_as.default arange.start arange.default
    glu.default square.default log2.default log1p.default expm1.default tan.default atan.default floor.default ceil.default
    round.default sign.default isnan.default isinf.default nan_to_num.default addcmul.default
"""
ISLAND_OPS = frozenset(_NAMES.split())
REGISTERED = "registered."
"""Before the name of an op that a user registered; its one argument is the text of its call (see `planning.registered`)."""
