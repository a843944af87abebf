"""The table of ops: which functions are the same op, and what an op does to codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import get_testing_overrides, resolve_name

from truequant.planning.assignment import with_items

Answer = TypeVar("Answer", bound=Callable[..., Any])


class Role(Enum):
    """What an op does, seen from quantization."""

    LAYER = "layer"  # sums of products with a weight
    PRODUCT = "product"  # sums of products of two activations
    NORM = "norm"  # a per-channel affine map that folds into a layer before it
    CLAMP = "clamp"  # a clamp of values: fuses into what precedes it, or moves codes
    ADD = "add"
    SUB = "sub"
    MUL = "mul"
    SOFTMAX = "softmax"
    ATTENTION = "attention"  # product, softmax and product in one call
    SCALAR = "scalar"  # a function of one code where its input is codes already: `-x`, `x / 8`
    TABLE = "table"  # a function of one code
    LOOKUP = "lookup"  # rows of a table of codes
    AVERAGE = "average"
    NORMALIZE = "normalize"  # rows over their own deviation
    CONCAT = "concat"
    MOVEMENT = "movement"  # keeps scale and zero point
    IDENTITY = "identity"  # does nothing in evaluation
    FLOAT = "float"  # not known: stays float


@dataclass(frozen=True, slots=True)
class Op:
    """An op by its name, its role and the functions under which it is called (in-place variants among them)."""

    name: str
    role: Role
    functions: tuple[Callable[..., Any], ...]


def _getter(name: str) -> Callable[..., Any]:
    """The function that reads an attribute such as `x.T`."""
    return vars(torch._C.TensorBase)[name].__get__  # type: ignore[no-any-return]


T = Tensor
OPS: tuple[Op, ...] = (
    Op("linear", Role.LAYER, (F.linear,)),
    Op("matmul", Role.LAYER, (torch.matmul, T.matmul, T.__matmul__, T.__rmatmul__, torch.mm, T.mm)),
    Op("addmm", Role.LAYER, (torch.addmm, T.addmm)),
    Op("bmm", Role.PRODUCT, (torch.bmm, T.bmm)),
    Op("einsum", Role.PRODUCT, (torch.einsum,)),
    Op("conv1d", Role.LAYER, (F.conv1d,)),
    Op("conv2d", Role.LAYER, (F.conv2d,)),
    Op("conv3d", Role.LAYER, (F.conv3d,)),
    Op("conv_transpose1d", Role.LAYER, (F.conv_transpose1d,)),
    Op("conv_transpose2d", Role.LAYER, (F.conv_transpose2d,)),
    Op("conv_transpose3d", Role.LAYER, (F.conv_transpose3d,)),
    Op("embedding", Role.LOOKUP, (F.embedding, torch.embedding)),
    Op("batch_norm", Role.NORM, (F.batch_norm, torch.batch_norm)),
    Op("relu", Role.CLAMP, (F.relu, F.relu_, torch.relu, T.relu, T.relu_)),
    Op("relu6", Role.CLAMP, (F.relu6,)),
    Op("hardtanh", Role.CLAMP, (F.hardtanh, F.hardtanh_)),
    Op(
        "clamp",
        Role.CLAMP,
        (torch.clamp, torch.clamp_, T.clamp, T.clamp_, torch.clip, T.clip, T.clip_, torch.clamp_min, T.clamp_min, T.clamp_min_),
    ),
    Op("add", Role.ADD, (torch.add, T.add, T.add_, T.__add__, T.__radd__, T.__iadd__)),
    Op("mul", Role.MUL, (torch.mul, T.mul, T.mul_, torch.multiply, T.multiply, T.__mul__, T.__rmul__, T.__imul__)),
    Op("sub", Role.SUB, (torch.sub, T.sub, T.sub_, torch.subtract, T.subtract, T.__sub__, T.__isub__)),
    Op("rsub", Role.SCALAR, (torch.rsub, T.__rsub__)),
    Op("div", Role.SCALAR, (torch.div, T.div, T.div_, torch.true_divide, T.true_divide, T.__truediv__, T.__itruediv__)),
    Op("neg", Role.SCALAR, (torch.neg, T.neg, T.neg_, torch.negative, T.negative, T.__neg__)),
    Op("pow", Role.SCALAR, (torch.pow, T.pow, T.pow_, T.__pow__, T.__ipow__)),
    Op("abs", Role.SCALAR, (torch.abs, T.abs, T.abs_, torch.absolute, T.absolute, T.__abs__)),
    Op("sigmoid", Role.TABLE, (torch.sigmoid, T.sigmoid, T.sigmoid_, F.sigmoid)),
    Op("tanh", Role.TABLE, (torch.tanh, T.tanh, T.tanh_, F.tanh)),
    Op("hardswish", Role.TABLE, (F.hardswish,)),
    Op("hardsigmoid", Role.TABLE, (F.hardsigmoid,)),
    Op("silu", Role.TABLE, (F.silu,)),
    Op("gelu", Role.TABLE, (F.gelu,)),
    Op("elu", Role.TABLE, (F.elu, F.elu_)),
    Op("leaky_relu", Role.TABLE, (F.leaky_relu, F.leaky_relu_)),
    Op("prelu", Role.TABLE, (F.prelu, torch.prelu)),
    Op("mish", Role.TABLE, (F.mish,)),
    Op("softplus", Role.TABLE, (F.softplus,)),
    Op("selu", Role.TABLE, (F.selu, F.selu_, torch.selu)),
    Op("celu", Role.TABLE, (F.celu, F.celu_, torch.celu)),
    Op("logsigmoid", Role.TABLE, (F.logsigmoid,)),
    Op("softmax", Role.SOFTMAX, (F.softmax, torch.softmax, T.softmax)),
    Op("scaled_dot_product_attention", Role.ATTENTION, (F.scaled_dot_product_attention,)),
    Op("mean", Role.AVERAGE, (torch.mean, T.mean)),
    Op("adaptive_avg_pool1d", Role.AVERAGE, (F.adaptive_avg_pool1d,)),
    Op("adaptive_avg_pool2d", Role.AVERAGE, (F.adaptive_avg_pool2d,)),
    Op("adaptive_avg_pool3d", Role.AVERAGE, (F.adaptive_avg_pool3d,)),
    Op("avg_pool1d", Role.AVERAGE, (F.avg_pool1d,)),
    Op("avg_pool2d", Role.AVERAGE, (F.avg_pool2d,)),
    Op("avg_pool3d", Role.AVERAGE, (F.avg_pool3d,)),
    Op("layer_norm", Role.NORMALIZE, (F.layer_norm, torch.layer_norm)),
    Op("rms_norm", Role.NORMALIZE, (F.rms_norm, torch.rms_norm)),
    Op("group_norm", Role.NORMALIZE, (F.group_norm, torch.group_norm)),
    Op("instance_norm", Role.NORMALIZE, (F.instance_norm, torch.instance_norm)),
    Op("normalize", Role.NORMALIZE, (F.normalize,)),
    Op("cat", Role.CONCAT, (torch.cat, torch.concat, torch.concatenate)),
    Op("stack", Role.CONCAT, (torch.stack,)),
    Op("max_pool1d", Role.MOVEMENT, (F.max_pool1d, torch.max_pool1d)),
    Op("max_pool2d", Role.MOVEMENT, (F.max_pool2d, torch.max_pool2d)),
    Op("max_pool3d", Role.MOVEMENT, (F.max_pool3d, torch.max_pool3d)),
    Op("adaptive_max_pool1d", Role.MOVEMENT, (F.adaptive_max_pool1d,)),
    Op("adaptive_max_pool2d", Role.MOVEMENT, (F.adaptive_max_pool2d,)),
    Op("adaptive_max_pool3d", Role.MOVEMENT, (F.adaptive_max_pool3d,)),
    Op("interpolate", Role.MOVEMENT, (F.interpolate, F.upsample)),
    Op("pixel_shuffle", Role.MOVEMENT, (F.pixel_shuffle, torch.pixel_shuffle)),
    Op("pixel_unshuffle", Role.MOVEMENT, (F.pixel_unshuffle, torch.pixel_unshuffle)),
    Op("channel_shuffle", Role.MOVEMENT, (F.channel_shuffle, torch.channel_shuffle)),
    Op("flatten", Role.MOVEMENT, (torch.flatten, T.flatten)),
    Op("unflatten", Role.MOVEMENT, (torch.unflatten, T.unflatten)),
    Op("reshape", Role.MOVEMENT, (torch.reshape, T.reshape)),
    Op("view", Role.MOVEMENT, (T.view, T.view_as, T.reshape_as)),
    Op("permute", Role.MOVEMENT, (torch.permute, T.permute)),
    Op("transpose", Role.MOVEMENT, (torch.transpose, T.transpose, torch.swapaxes, T.swapaxes)),
    Op("squeeze", Role.MOVEMENT, (torch.squeeze, T.squeeze)),
    Op("unsqueeze", Role.MOVEMENT, (torch.unsqueeze, T.unsqueeze)),
    Op("pad", Role.MOVEMENT, (F.pad,)),
    Op("movedim", Role.MOVEMENT, (torch.movedim, T.movedim, torch.moveaxis, T.moveaxis)),
    Op("t", Role.MOVEMENT, (torch.t, T.t, _getter("T"), _getter("mT"))),
    Op("getitem", Role.MOVEMENT, (T.__getitem__,)),
    Op("select", Role.MOVEMENT, (torch.select, T.select)),
    Op("narrow", Role.MOVEMENT, (torch.narrow, T.narrow)),
    Op("unbind", Role.MOVEMENT, (torch.unbind, T.unbind, T.__iter__)),
    Op("flip", Role.MOVEMENT, (torch.flip, T.flip)),
    Op("roll", Role.MOVEMENT, (torch.roll, T.roll)),
    Op("expand", Role.MOVEMENT, (T.expand, T.expand_as, torch.broadcast_to)),
    Op("repeat", Role.MOVEMENT, (T.repeat, torch.tile, T.tile)),
    Op("repeat_interleave", Role.MOVEMENT, (torch.repeat_interleave, T.repeat_interleave)),
    Op("index_select", Role.MOVEMENT, (torch.index_select, T.index_select)),
    Op("chunk", Role.MOVEMENT, (torch.chunk, T.chunk)),
    Op("split", Role.MOVEMENT, (torch.split, T.split)),
    Op(
        "dropout",
        Role.IDENTITY,
        (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout),
    ),
    Op("contiguous", Role.IDENTITY, (T.contiguous,)),
    Op("clone", Role.IDENTITY, (torch.clone, T.clone)),
    Op("detach", Role.IDENTITY, (torch.detach, T.detach, _getter("data"))),
    Op("setitem", Role.FLOAT, (T.__setitem__,)),
)

LINEAR_OPS = frozenset(("linear", "matmul", "addmm"))
"""Layers without space: features on the last axis."""
_BY_FUNCTION: dict[Callable[..., Any], Op] = {}
_BY_NAME: dict[str, Op] = {}


def add_op(op: Op) -> None:
    """Put an op into the table, in force from now on."""
    _BY_NAME[op.name] = op
    for function in op.functions:
        _BY_FUNCTION[function] = op


for _op in OPS:
    add_op(_op)


_AUGMENTED = {
    "iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "idiv": "div", "ifloordiv": "floor_divide", "ipow": "pow",
    "imod": "remainder",
}  # fmt: skip


def _named_in_place(function: Callable[..., Any]) -> bool:
    name = str(getattr(function, "__name__", ""))
    return (name.endswith("_") and not name.endswith("__")) or name.strip("_") in _AUGMENTED


def _plain_name(function: Callable[..., Any]) -> str:
    name = str(getattr(function, "__name__", "")).strip("_")
    return _AUGMENTED.get(name, name)


# By function: looked up, not computed, where a compiler traces.
_IN_PLACE: dict[Callable[..., Any], Callable[..., Any]] = {
    function: getattr(T, _plain_name(function), None) or getattr(F, _plain_name(function))
    for function in _BY_FUNCTION
    if _named_in_place(function)
}

_IN_PLACE[T.__setitem__] = with_items

# Questions about a tensor, not computations on one.
_PROPERTIES = frozenset(
    (
        "dim",
        "size",
        "numel",
        "stride",
        "is_contiguous",
        "get_device",
        "is_floating_point",
        "__get__",
        "__len__",
        "type",
        "data_ptr",
    )
)


_OTHERS: dict[Callable[..., Any], Op] = {}
"""Functions and methods written in C that are not in the table, as far as they were called: to find a name takes long."""
IN_C = (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType)
"""Types of functions that are written in C, as torch's own are: one of them makes one call, itself."""


def _answered_while_tracing(function: Answer) -> Answer:
    """As `torch.compiler.assume_constant_result`, which would import the compiler.

    Else the guards of a compiled model look at every key of the tables before each of its steps.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_answered_while_tracing
def op_of(function: Callable[..., Any]) -> Op | None:
    """The op that a function computes; one of role FLOAT for a function that is not in the table, None for a property."""
    op = _BY_FUNCTION.get(function)
    if op is not None:
        return op
    name = getattr(function, "__name__", "")
    if name in _PROPERTIES:
        return None
    if torch.compiler.is_compiling() or not isinstance(function, IN_C):
        return Op(_label(function), Role.FLOAT, (function,))
    op = _OTHERS.get(function)
    if op is None:
        op = _OTHERS[function] = Op(_label(function), Role.FLOAT, (function,))
    return op


def counted_as(op: Op, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Op:
    """The op as which a call is counted: apart where it computes on integers alone.

    Masks and positions are computed differently while a model is traced; they must not shift the count of calls on activations.
    """
    if op.role is Role.LOOKUP or (args and isinstance(args[0], Tensor) and args[0].is_floating_point()):
        return op
    if any(t.is_floating_point() for t in tensors_in((*args, *kwargs.values()))):
        return op
    return Op(f"{op.name}_int", Role.FLOAT, op.functions)


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments, those in lists and tuples too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


@_answered_while_tracing
def writes_in_place(function: Callable[..., Any]) -> bool:
    """Whether a function overwrites its first argument, by its name."""
    if function in _BY_FUNCTION:
        return function in _IN_PLACE
    return _named_in_place(function)


def out_of_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that computes what an in-place one does, and overwrites nothing."""
    if function in _IN_PLACE:
        return _IN_PLACE[function]
    return _plain(function) or partial(_on_a_copy, function)


def only_in_place(function: Callable[..., Any]) -> bool:
    """Whether an op overwrites its first argument, and torch has no function that does not, such as `copy_`."""
    return writes_in_place(function) and function not in _IN_PLACE and _plain(function) is None


def _plain(function: Callable[..., Any]) -> Callable[..., Any] | None:
    name = _plain_name(function)
    return getattr(T, name, None) or getattr(F, name, None)


def _on_a_copy(function: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What an op leaves of its argument that exists in place alone, such as `copy_`."""
    y = x.clone()
    function(y, *args, **kwargs)
    return y


def is_loss(name: str) -> bool:
    """Whether an op of that name compares answers with targets."""
    return name.endswith("_loss") or name in (
        "cross_entropy",
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "kl_div",
    )


def op_named(name: str) -> Op | None:
    """The op of the table with that name."""
    return _BY_NAME.get(name)


@_answered_while_tracing
def has_op(name: str) -> bool:
    """Whether the table has an op of that name."""
    return name in _BY_NAME


def is_torch_function(function: Callable[..., Any]) -> bool:
    """Whether calls of a function are seen as they are: torch's own functions, and ops of `torch.ops`."""
    return function in get_testing_overrides() or isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))


def _label(function: Callable[..., Any]) -> str:
    """A name for a function that is not in the table: its last part, as in 'softmax'."""
    full = resolve_name(function) or getattr(function, "__name__", repr(function))
    return str(full).rsplit(".", 1)[-1]


def clamp_bounds(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[float | None, float | None] | None:
    """`(min, max)` of a clamp op called so; None where a bound is a tensor."""
    if op == "relu":
        return 0.0, None
    if op == "relu6":
        return 0.0, 6.0
    names = ("min_val", "max_val") if op == "hardtanh" else ("min", "max")
    default = (-1.0, 1.0) if op == "hardtanh" else (None, None)
    bounds = []
    for position, (name, fallback) in enumerate(zip(names, default, strict=True), start=1):
        value = args[position] if len(args) > position else kwargs.get(name, fallback)
        if not (value is None or isinstance(value, (int, float))):
            return None
        bounds.append(None if value is None else float(value))
    return bounds[0], bounds[1]
