"""Float islands: the ops between quantized edges that a plan left in float, by torch's own names.

Only ops of the list below can be in a program: pure functions of their arguments, so that a file can name nothing else.
An argument is the JSON text of a number, string, bool, null or array, in which {"input": i}, {"tensor": i} and
{"size": [i, axis]} stand for the i-th input, the i-th stored tensor, and a size of the i-th input.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from truequant.errors import ConversionError
from truequant.integer.nodes import Island
from truequant.planning import RegisteredOp, decode_call, registered_op

MAX_ARGUMENT = 4096
"""Characters of one argument's text."""

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
_DTYPES = frozenset(("float16", "bfloat16", "float32", "float64", "bool", "uint8", "int8", "int16", "int32", "int64"))


def run(node: Island, program: object, *inputs: Tensor) -> Tensor:
    """The op on its inputs, in float32. They are contiguous, as in evaluation: the order of its sums may depend on it."""
    return _call(node, [x.contiguous() for x in inputs])


def layout_of(node: Island, inputs: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of the result, found without computing it, from those of the inputs."""
    result = _call(node, [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in inputs])
    return tuple(result.shape), result.dtype


def check_island(node: Island) -> None:
    """ConversionError unless the op is one of the list and every argument can be read."""
    if node.op.startswith(REGISTERED):
        _registered(node)
    elif node.op not in ISLAND_OPS:
        raise ConversionError(
            f"Island '{node.output}': no such op", got=node.op, expected="an op of integer.islands.ISLAND_OPS"
        )
    for text in (*node.arguments, *node.options):
        if len(text) > MAX_ARGUMENT:
            raise ConversionError(f"Island '{node.output}': an argument too long", got=f"{len(text)} characters")
    shapes = [torch.empty((1,) * 4, device="meta")] * len(node.inputs)
    if node.op.startswith(REGISTERED):
        decode_call(node.arguments[0], [*shapes, *node.tensors])
        return
    for text in node.arguments:
        _resolved(_parsed(node, text), node, shapes, check_only=True)
    for text in node.options:
        pair = _parsed(node, text)
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise ConversionError(f"Island '{node.output}': an option is [name, value]", got=text[:80])
        _resolved(pair[1], node, shapes, check_only=True)


def _call(node: Island, inputs: Sequence[Tensor]) -> Tensor:
    if node.op.startswith(REGISTERED):
        return _call_registered(node, inputs)
    packet, overload = node.op.split(".")
    args = [_resolved(_parsed(node, text), node, inputs) for text in node.arguments]
    options = {name: _resolved(value, node, inputs) for name, value in (_parsed(node, text) for text in node.options)}
    try:
        result = getattr(getattr(torch.ops.aten, packet), overload)(*args, **options)
    except (RuntimeError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ConversionError(
            f"Island '{node.output}': {node.op} cannot compute this", got=str(error).splitlines()[0][:200] if str(error) else ""
        ) from error
    if node.part is not None and isinstance(result, (tuple, list)) and 0 <= node.part < len(result):
        result = result[node.part]
    if not isinstance(result, Tensor):
        raise ConversionError(f"Island '{node.output}': {node.op} returns no tensor", got=type(result).__name__)
    return result


def _registered(node: Island) -> RegisteredOp:
    name = node.op.removeprefix(REGISTERED)
    op = registered_op(name)
    if op is None or len(node.arguments) != 1:
        raise ConversionError(
            f"Island '{node.output}': an op that is not registered here", got=name[:80],
            fix="import what calls tq.register_op before the model is loaded",
        )  # fmt: skip
    return op


def _call_registered(node: Island, inputs: Sequence[Tensor]) -> Tensor:
    op = _registered(node)
    device = inputs[0].device if inputs else torch.device("cpu")
    args, kwargs = decode_call(node.arguments[0], [*inputs, *(t.to(device) for t in node.tensors)])
    try:
        result = op.function(*args, **kwargs)
    except Exception as error:
        raise ConversionError(f"Island '{node.output}': {op.name} cannot compute this", got=str(error)[:200]) from error
    if not isinstance(result, Tensor):
        raise ConversionError(f"Island '{node.output}': {op.name} returns no tensor", got=type(result).__name__)
    return result


def _parsed(node: Island, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"Island '{node.output}': an argument that is no JSON", got=text[:80]) from error


def _resolved(value: Any, node: Island, inputs: Sequence[Tensor], *, check_only: bool = False) -> Any:
    if isinstance(value, list):
        return [_resolved(item, node, inputs, check_only=check_only) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"number": "inf" | "-inf" | "nan" as text}:  # JSON has no such numbers
            return float(text)
        case {"dtype": str(name)} if name in _DTYPES:
            return getattr(torch, name)
        case {"arithmetic": ["add" | "sub" | "mul" | "floordiv" as kind, a, b]}:
            pair = [_resolved(v, node, inputs, check_only=check_only) for v in (a, b)]
            if not all(type(v) is int for v in pair) or (kind == "floordiv" and not pair[1]):
                raise ConversionError(f"Island '{node.output}': a size that is no number", got=repr(value)[:80])
            return int(getattr(operator, kind)(*pair))
        case {"input": int(i)} if 0 <= i < len(inputs):
            return inputs[i]
        case {"tensor": int(i)} if 0 <= i < len(node.tensors):
            return node.tensors[i].to(inputs[0].device) if not check_only else node.tensors[i]
        case {"size": [int(i), int(axis)]} if 0 <= i < len(inputs):
            if check_only:
                return 1
            if not -inputs[i].dim() <= axis < inputs[i].dim():
                raise ConversionError(f"Island '{node.output}': no axis {axis}", got=f"{inputs[i].dim()} axes")
            return inputs[i].shape[axis]
    raise ConversionError(f"Island '{node.output}': an argument that points nowhere", got=repr(value)[:80])
