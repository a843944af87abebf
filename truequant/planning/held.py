"""What a program and an ONNX file will make of a call that stays float, known before anything is trained.

A call is traced alone, on made-up tensors without data, as `convert` traces the whole forward: what torch makes of it is looked
up in the table that `convert` and the writer of ONNX files read (`planning.float_ops`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from truequant.planning.capture import Call, Constant, Ref, Trace
from truequant.planning.float_ops import ISLAND_OPS, MADE_AS, MOVING_OPS, ONNX_OPS
from truequant.planning.ops import only_in_place, out_of_place, writes_in_place
from truequant.planning.user_ops import registered_op


@dataclass(frozen=True, slots=True)
class Held:
    """Of a float call, torch's names of the ops that no program can hold, and of those that no ONNX file can.

    None of both says nothing against it: of a call that cannot be traced alone, nothing is known.
    """

    refused: tuple[str, ...] = ()
    without_onnx: tuple[str, ...] = ()


def held(call: Call, trace: Trace, known: dict[Any, Held]) -> Held:
    """known: what was found of calls alike."""
    op = registered_op(call.op.name)
    if op is not None:
        return Held() if op.onnx is not None or op.lower is not None else Held((), (call.op.name,))
    if call.function is None or only_in_place(call.function):  # the whole graph alone shows what becomes of the latter
        return Held()
    args = (call.args[0], _by_places(call.args[1])) if call.op.name == "getitem" else call.args
    leaves, spec = pytree.tree_flatten((args, dict(call.kwargs)))
    kinds = tuple(_kind(leaf, trace) for leaf in leaves)
    key = call.function, kinds, str(spec)
    if key not in known:
        known[key] = _looked_up(call.function, kinds, leaves, spec)
    return known[key]


def _by_places(index: Any) -> Any:
    """An index with masks that a module holds as the numbers of their places, an axis each: `convert` knows them."""
    items = index if isinstance(index, tuple) else (index,)
    if not any(isinstance(item, Constant) and item.places is not None for item in items):
        return index
    found: list[Any] = []
    for item in items:
        known = isinstance(item, Constant) and item.places is not None
        found += [Constant(None, (item.places,), torch.int64)] * len(item.shape) if known else [item]
    return tuple(found)


def _kind(leaf: Any, trace: Trace) -> Any:
    """A tensor as its shape and dtype; anything else as its text, which tells calls apart."""
    if isinstance(leaf, Ref):
        return trace.values[leaf.value].shape, trace.values[leaf.value].dtype
    return (leaf.shape, leaf.dtype) if isinstance(leaf, Constant) else repr(leaf)


def _looked_up(function: Callable[..., Any], kinds: tuple[Any, ...], leaves: list[Any], spec: Any) -> Held:
    try:
        ops, follows = _traced(function, kinds, leaves, spec)
    except _depending() as error:
        return Held((f"{_name(getattr(error, 'func', function))}{_DEPENDS}",))
    except Exception:  # made-up tensors are none of this function's: nothing can be said
        return Held()
    refused = [op for op in ops if op.removesuffix(_PROJECTED) not in MOVING_OPS | ISLAND_OPS]
    refused += [f"{op}{_DEPENDS}" for op in follows if op not in refused]
    without = [op for op in ops if op in ISLAND_OPS - ONNX_OPS - MOVING_OPS or op.endswith(_PROJECTED)]
    return Held(tuple(dict.fromkeys(refused)), tuple(dict.fromkeys(without)))


_PROJECTED = " with proj_size"


def _projected(call: Any) -> str:
    """What tells an LSTM with `proj_size`, whose states differ in size, from one without: ONNX has no such layer."""
    states = call.meta.get("val")
    if _name(call.target) != "lstm.input" or states[1].shape[-1] == states[2].shape[-1]:
        return ""
    return _PROJECTED


_DEPENDS = ", whose shape depends on values"


def _depending() -> tuple[type[Exception], ...]:
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    return DynamicOutputShapeException, DataDependentOutputException


def _traced(function: Callable[..., Any], kinds: tuple[Any, ...], leaves: list[Any], spec: Any) -> tuple[list[str], list[str]]:
    """torch's names of the ops that a function calls, and of those whose result has as many elements as values say."""
    from torch.fx.experimental.proxy_tensor import make_fx  # loads a part of the compiler

    plain = out_of_place(function) if writes_in_place(function) else function
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, (Ref, Constant))]

    def alone(*tensors: Tensor) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return plain(*args, **kwargs)

    with torch.no_grad():
        made = [torch.empty(kinds[i][0], dtype=kinds[i][1]) for i in places]
        graph = make_fx(alone, tracing_mode="fake", pre_dispatch=True)(*made).graph
    graph.eliminate_dead_code()
    calls = [node for node in graph.nodes if node.op == "call_function" and node.target is not operator.getitem]
    names = [MADE_AS.get(name, name) + _projected(node) for node, name in ((node, _name(node.target)) for node in calls)]
    sizes = [[n for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, Tensor) for n in t.shape] for node in calls]
    return names, [name for name, of in zip(names, sizes, strict=True) if not all(isinstance(n, int) for n in of)]


def _name(target: Any) -> str:
    """`add.Tensor` of torch's own op, `torchvision.nms.default` of another library's."""
    return str(target).removeprefix("aten.")
