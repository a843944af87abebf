"""The float ops that may stand between quantized edges, by torch's own names, and which of them have an ONNX form.

One table for all: `plan` says of a float op what the file forms will make of it, `convert` puts it into a program, and the
writer of ONNX files has a function for each of `ONNX_OPS` (an import of its table fails otherwise). Only ops of the table can
be in a program: pure functions of their arguments, so that a file can name nothing else.
"""

from __future__ import annotations

_EXPORTED = """
    __and__.Scalar __and__.Tensor __or__.Scalar __or__.Tensor __xor__.Scalar __xor__.Tensor _to_copy.default
    _upsample_bicubic2d_aa.vec _upsample_bilinear2d_aa.vec _upsample_nearest_exact1d.vec _upsample_nearest_exact2d.vec
    _upsample_nearest_exact3d.vec abs.default acos.default adaptive_avg_pool1d.default adaptive_avg_pool2d.default
    adaptive_avg_pool3d.default adaptive_max_pool1d.default adaptive_max_pool2d.default adaptive_max_pool3d.default
    add.Scalar add.Tensor addcdiv.default addcmul.default addmm.default all.default all.dim amax.default amin.default
    any.default any.dim arange.default arange.start argmax.default argmin.default argsort.default argsort.stable
    asin.default atan.default avg_pool1d.default avg_pool2d.default avg_pool3d.default baddbmm.default batch_norm.default
    bitwise_and.Scalar bitwise_and.Tensor bitwise_not.default bitwise_or.Scalar bitwise_or.Tensor bitwise_xor.Scalar
    bitwise_xor.Tensor bmm.default ceil.default celu.default chunk.default clamp.Tensor clamp.default clamp_max.default
    clamp_min.default col2im.default constant_pad_nd.default conv1d.default conv1d.padding conv2d.default conv2d.padding
    conv3d.default conv3d.padding conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input cos.default
    cosh.default cumsum.default diff.default div.Scalar div.Scalar_mode div.Tensor div.Tensor_mode einsum.default
    elu.default embedding.default embedding_bag.default embedding_bag.padding_idx eq.Scalar eq.Tensor erf.default
    exp.default expand.default expand_as.default expm1.default fill.Scalar fill.Tensor flip.default floor.default
    floor_divide.Scalar
    floor_divide.default fmod.Scalar fmod.Tensor full.default full_like.default gather.default ge.Scalar ge.Tensor
    gelu.default glu.default grid_sampler.default group_norm.default gru.input gru_cell.default gt.Scalar gt.Tensor
    hardsigmoid.default hardswish.default hardtanh.default im2col.default index.Tensor index_add.default
    index_copy.default index_select.default instance_norm.default isinf.default isnan.default layer_norm.default le.Scalar
    le.Tensor leaky_relu.default lerp.Scalar lerp.Tensor linalg_vector_norm.default linear.default log.default
    log1p.default log2.default log_sigmoid.default log_softmax.int logical_and.default logical_not.default
    logical_or.default logical_xor.default logsumexp.default lstm.input lstm_cell.default lt.Scalar lt.Tensor
    masked_fill.Scalar masked_fill.Tensor matmul.default max.dim max_pool1d.default max_pool2d.default max_pool3d.default
    maximum.default mean.default mean.dim min.dim minimum.default mish.default mm.default mul.Scalar mul.Tensor
    nan_to_num.default narrow.default ne.Scalar ne.Tensor neg.default one_hot.default ones.default ones_like.default
    pad.default pow.Tensor_Scalar pow.Tensor_Tensor prelu.default prod.default prod.dim_int reciprocal.default
    relu.default relu6.default remainder.Scalar remainder.Tensor repeat.default reshape.default rms_norm.default
    rnn_relu.input rnn_tanh.input roll.default round.default rsqrt.default rsub.Scalar rsub.Tensor
    scaled_dot_product_attention.default scatter.reduce scatter.src scatter.value scatter.value_reduce scatter_add.default
    scatter_reduce.two select.int select_scatter.default selu.default sigmoid.default sign.default silu.default sin.default
    sinh.default slice_scatter.default
    slice.Tensor softmax.int softplus.default sort.default sort.stable split_with_sizes.default sqrt.default square.default
    std.correction std.dim sub.Scalar sub.Tensor sum.default sum.dim_IntList tan.default tanh.default threshold.default
    to.dtype topk.default tril.default triu.default unfold.default upsample_bicubic2d.vec upsample_bilinear2d.vec
    upsample_linear1d.vec upsample_nearest1d.vec upsample_nearest2d.vec upsample_nearest3d.vec upsample_trilinear3d.vec
    var.correction var.dim view.default where.Scalar where.ScalarOther where.ScalarSelf where.self zeros.default
    zeros_like.default
    unsqueeze.default squeeze.dim squeeze.dims flatten.using_ints unflatten.int
"""
_NOT_EXPORTED = """
    __lshift__.Scalar __rshift__.Scalar _conj.default acosh.default addbmm.default addmv.default
    affine_grid_generator.default aminmax.default angle.default arange.start_step asinh.default atan2.default
    atanh.default atleast_1d.default bilinear.default bitwise_left_shift.Tensor_Scalar bitwise_right_shift.Tensor_Scalar
    block_diag.default broadcast_to.default bucketize.Tensor cartesian_prod.default cat.default cdist.default
    channel_shuffle.default cholesky.default clone.default column_stack.default combinations.default complex.default
    conj.default contiguous.default copysign.Scalar copysign.Tensor cosine_similarity.default cross.default cummax.default
    cummin.default cumprod.default deg2rad.default det.default diag.default diag_embed.default diagonal.default
    diagonal_copy.default diagonal_scatter.default digamma.default dot.default dropout.default dstack.default erfc.default
    erfinv.default exp2.default expand_copy.default eye.default eye.m fft_fft.default fft_fft2.default fft_fftn.default
    fft_fftshift.default fft_ifft.default fft_ifft2.default fft_ifftn.default fft_ifftshift.default fft_irfft.default
    fft_irfft2.default fft_irfftn.default fft_rfft.default fft_rfft2.default fft_rfftn.default
    fliplr.default flipud.default float_power.Tensor_Scalar float_power.Tensor_Tensor frac.default
    fractional_max_pool2d.default fractional_max_pool3d.default hann_window.default hardshrink.default heaviside.default
    histc.default hstack.default hypot.default imag.default index_fill.int_Scalar index_fill.int_Tensor index_put.default
    inner.default inverse.default isfinite.default isin.Tensor_Tensor istft.default kron.default kthvalue.default
    lgamma.default linalg_cholesky.default linalg_cross.default linalg_det.default linalg_inv.default
    linalg_matmul.default linalg_matrix_norm.default linalg_multi_dot.default linalg_norm.default linalg_solve.default
    linspace.default log10.default logaddexp.default logaddexp2.default logcumsumexp.default logit.default
    logspace.default mT.default masked_scatter.default matrix_exp.default matrix_power.default max.default
    max_pool1d_with_indices.default max_pool2d_with_indices.default max_pool3d_with_indices.default max_unpool2d.default
    max_unpool3d.default median.default median.dim meshgrid.default meshgrid.indexing min.default mode.default movedim.int
    movedim.intlist multiply.Tensor mv.default nanmean.default nansum.default native_layer_norm.default norm.Scalar
    norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype numpy_T.default outer.default pairwise_distance.default pdist.default
    permute.default pixel_shuffle.default pixel_unshuffle.default polar.default pow.Scalar put.default quantile.default
    quantile.scalar rad2deg.default real.default renorm.default repeat_interleave.self_int reshape_as.default
    resolve_conj.default rnn_relu_cell.default rnn_tanh_cell.default rot90.default scalar_tensor.default
    searchsorted.Tensor sgn.default signbit.default sinc.default
    softshrink.default special_i0.default split.Tensor squeeze.default stack.default
    std.default std_mean.correction std_mean.default std_mean.dim stft.center stft.default swapaxes.default t.default
    take.default take_along_dim.default tensordot.default tile.default trace.default transpose.int tril_indices.default
    triu_indices.default true_divide.Tensor trunc.default type_as.default unbind.int
    var.default var_mean.correction var_mean.default var_mean.dim view_as.default view_as_complex.default
    view_as_real.default vstack.default xlogy.Scalar_Other xlogy.Tensor
"""
_MOVING = """
    _to_copy.default _unsafe_view.default alias.default alpha_dropout.default cat.default channel_shuffle.default
    chunk.default clone.default contiguous.default detach.default detach_.default dropout.default expand.default
    expand_as.default feature_alpha_dropout.default feature_dropout.default flatten.using_ints flip.default index.Tensor
    index_select.default lift_fresh_copy.default mT.default movedim.int movedim.intlist narrow.default numpy_T.default
    permute.default pixel_shuffle.default pixel_unshuffle.default repeat.default repeat_interleave.self_int
    reshape.default reshape_as.default roll.default select.int slice.Tensor split.Tensor split_with_sizes.default
    squeeze.default squeeze.dim squeeze.dims stack.default t.default to.device to.dtype to.dtype_layout transpose.int
    type_as.default unbind.int unflatten.int unsqueeze.default upsample_nearest1d.vec upsample_nearest2d.vec
    upsample_nearest3d.vec view.default view_as.default
"""
ONNX_OPS = frozenset(_EXPORTED.split())
"""Float ops that a program and an ONNX file can hold."""
ISLAND_OPS = ONNX_OPS | frozenset(_NOT_EXPORTED.split())
"""Float ops that a program can hold: these, and some without an ONNX form."""
MOVING_OPS = frozenset(_MOVING.split())
"""Ops that move values, pass them on or cast them: nodes of the program for codes and values alike, in every file form."""
MADE_AS = {"new_zeros.default": "zeros.default", "new_ones.default": "ones.default", "new_full.default": "full.default"}
"""Ops that take nothing but its dtype from a tensor, and the ops that a program has for them."""
REGISTERED = "registered."
"""Before the name of an op that a user registered; its one argument is the text of its call (see `planning.registered`)."""
