"""Softmax, and attention as product, softmax, product: which calls of a forward are one.

A softmax is followed back to what computes its scores. Between the two may lie a factor (1 / sqrt(d)), which goes into the
scale of the scores, and masks, which hide places. It is followed on to the products of its result with values.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch.utils import _pytree as pytree

from truequant.planning.actions import Action, Bias
from truequant.planning.capture import FAR, Call, Constant, Ref, Trace
from truequant.planning.flow import Flow
from truequant.planning.ops import Role
from truequant.planning.products import contraction, is_product, product
from truequant.planning.values import Values

HIDES = -FAR
"""What is added to scores to hide a place is this, or less."""
PART = Literal["product", "softmax", "weights", "attend", "scaled", "masked", "biased"]


@dataclass(frozen=True, slots=True)
class Part:
    """A call that belongs to the softmax of the call `softmax`.

    operand: which positional argument is the scores. factor: of "scaled". scores: of "attend", what the softmax reads; of
    "product", whose result the softmax reads, the values that its weights multiply. bias: of "biased".
    """

    kind: PART
    softmax: int
    operand: int = 0
    factor: float = 1.0
    scores: int = 0
    bias: Bias | None = None


def attentions(flow: Flow, without: Collection[int] = ()) -> Mapping[int, Part]:
    """By index of a call, what it is in an attention. without: softmaxes that stay float, by index of their call."""
    trace = flow.trace
    found: dict[int, Part] = {}
    for index, call in enumerate(trace.calls):
        if call.op.role is Role.SOFTMAX and index not in without and softmax_axis(call, trace) is not None:
            found |= _parts(index, call, flow)
    return found


def softmax_axis(call: Call, trace: Trace) -> int | None:
    """The axis of a softmax, from the front; None where it is the batch's, or the result has another dtype."""
    given = dict(zip(("input", "dim", "_stacklevel", "dtype"), call.args, strict=False)) | dict(call.kwargs)
    if call.op.functions and len(call.args) > 2 and isinstance(call.args[2], torch.dtype):  # `torch.softmax(x, dim, dtype)`
        given["dtype"] = call.args[2]
    axis, scores = given.get("dim"), given.get("input", given.get("self"))
    if not isinstance(axis, int) or given.get("dtype") not in (None, torch.float32) or not isinstance(scores, Ref):
        return None
    rank = len(trace.values[scores.value].shape)
    return axis % rank if rank > 1 and axis % rank > 0 else None


_IN_ONE_CALL = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def attention_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `scaled_dot_product_attention` by name, those left out as None."""
    return dict.fromkeys(_IN_ONE_CALL) | dict(zip(_IN_ONE_CALL, args, strict=False)) | dict(kwargs)


def why_no_attention(call: Call, values: Values) -> str | None:
    """Why one call of `scaled_dot_product_attention` stays float; None where it is product, softmax and product on codes."""
    given = attention_arguments(call.args, call.kwargs)
    operands = [given[name] for name in ("query", "key", "value")]
    if not all(isinstance(o, Ref) for o in operands):
        return "one operand is no activation"
    q, k, v = (values.shape(o.value) for o in operands)
    grouped = bool(given["enable_gqa"])
    if min(len(q), len(k), len(v)) < 2 or k[:-2] != v[:-2] or k[-2] != v[-2]:
        return "its operands are broadcast"
    if q[:-2] != k[:-2] and not (grouped and q[:-3] == k[:-3] and len(q) > 2 and q[-3] % k[-3] == 0):
        return "its operands are broadcast"
    scale, mask = given["scale"], given["attn_mask"]
    if scale is not None and not (isinstance(scale, (int, float)) and 2.0**-32 <= scale <= 2.0**32):
        return "its scale is no positive number"
    if mask is not None and not (is_bool(mask, values.trace) or _is_float(mask, values.trace)):
        return "its mask is no tensor of numbers, or of yes and no"
    return None


def adds_bias(call: Call, values: Values) -> Bias | None:
    """What a call of attention adds to its scores beside masks; None where that is nothing."""
    mask = attention_arguments(call.args, call.kwargs)["attn_mask"]
    if mask is None or is_bool(mask, values.trace) or hides(mask, values.trace):
        return None
    return _bias(mask)


def _bias(added: Constant | Ref) -> Bias:
    """What a bias does: of one that depends on the inputs, nobody knows that it hides no place."""
    return "hiding" if isinstance(added, Ref) or added.far else "finite"


def _is_float(argument: Any, trace: Trace) -> bool:
    if isinstance(argument, Ref):
        return trace.values[argument.value].is_float
    return isinstance(argument, Constant) and argument.dtype.is_floating_point and argument.elements > 0


_REASONS: Mapping[Action, str] = {
    "softmax": "a table of exponentials, divided by their exact sum",
    "weights": "a table of exponentials; their sum divides behind the product",
    "attend": "integer sums of weights and values, divided by the sum of the weights",
    "attention": "integer products, softmax by a table of its scores",
    "scaled": "goes into the scale of the scores",
    "masked": "hides places of the scores",
    "biased": "a bias of the scores, added before they are quantized",
}
Decision = tuple[Action, str, tuple[None, None]]


def attention_of(index: int, call: Call, part: Part | None, values: Values) -> Decision | None:
    """What a call is in an attention, and why: action, reason, no bounds. None where it is in none, or reads no codes."""
    if part is not None and part.kind == "product":
        reads = tuple(values.resolve(v) for v in call.inputs)
        return (*product(call, reads, values, floats=part.scores in values.on_codes), (None, None))
    if part is not None:
        scores = part.scores if part.kind == "attend" else call.args[part.operand].value if part.operand else call.inputs[0]
        return _decision(part.kind) if values.resolve(scores) in values.on_codes else None
    if call.op.role is not Role.ATTENTION:
        return None
    if (why := why_no_attention(call, values)) is not None:
        return _decision("float", why)
    if index in values.without:
        return _decision("float", "an operand, its scores or its result is left in float")
    given = attention_arguments(call.args, call.kwargs)
    operands = [values.resolve(given[name].value) for name in ("query", "key", "value")]
    if not any(v in values.on_codes for v in operands) and not all(v in values.input_values for v in operands):
        return _decision("float", "none of its operands is computed in integer")
    return _decision("attention")


def _decision(action: Action, reason: str = "") -> Decision:
    return action, reason or _REASONS[action], (None, None)


def _parts(index: int, softmax: Call, flow: Flow) -> dict[int, Part]:
    scores = flow.resolve(softmax.inputs[0])
    last = softmax_axis(softmax, flow.trace) == len(flow.shape(scores)) - 1
    weights = softmax.outputs[0]
    readers = flow.readers.get(weights, [])
    products = [i for i in readers if last and _multiplies_values(flow.trace.calls[i], weights, flow)]
    found = {i: Part("attend", index, scores=scores) for i in products}
    found[index] = Part("weights" if products else "softmax", index)
    found |= _between(index, scores, flow, masked=last)
    if products:
        values = flow.resolve(flow.trace.calls[products[0]].inputs[1])
        found |= {at: replace(part, scores=values) for at, part in found.items() if part.kind == "product"}
    return found


def _multiplies_values(call: Call, weights: int, flow: Flow) -> bool:
    """Whether a call is `weights @ values`, each row of weights with the same values."""
    operands = call.args[1:] if call.op.name == "einsum" else call.args
    if not is_product(call) or call.kwargs or len(operands) != 2 or not all(isinstance(o, Ref) for o in operands):
        return False
    left, right = (flow.resolve(o.value) for o in operands)
    if left != weights or right == weights or len(flow.shape(right)) < 2:
        return False
    if call.op.name == "einsum":
        found = contraction(call.args[0], [len(flow.shape(v)) for v in (left, right)])
        if found is None or len(found.rows) != 1 or len(found.columns) != 1 or len(found.summed) != 1:
            return False
        plain = (found.batch + found.rows + found.summed, found.batch + found.summed + found.columns)
        return (found.left, found.right) == plain and found.output == found.batch + found.rows + found.columns
    return flow.shape(call.outputs[0])[:-2] == flow.shape(left)[:-2]


def _between(softmax: int, scores: int, flow: Flow, masked: bool) -> dict[int, Part]:
    """The factors and masks between a product and its softmax; none of a mask that moves afterwards."""
    found: dict[int, Part] = {}
    reader, value, moved = softmax, scores, False
    while flow.only_read_by(value, reader) and value in flow.writer:
        reader = flow.writer[value]
        call = flow.trace.calls[reader]
        if call.op.role is Role.MOVEMENT and len(call.outputs) == 1 and isinstance(call.args[0], Ref):
            if any(part.kind == "scaled" for part in found.values()):
                break  # what moves in between has values without the factor
            moved, value = True, flow.resolve(call.args[0].value)
            continue
        part = _scaled(call, softmax) or (_masked(call, softmax, flow) if masked and not moved else None)
        if part is None and (bias := _biased(call, softmax, flow)) is not None:
            scaled = any(other.kind == "scaled" for other in found.values())
            if not scaled and (bias.bias == "finite" or (masked and not moved)):
                return found | {reader: bias}
        if part is None:
            break
        found[reader] = part
        operand = call.args[part.operand]
        value = flow.resolve(operand.value)
    head = flow.trace.calls[flow.writer[value]] if value in flow.writer else None
    if head is not None and is_product(head):
        return found | {flow.writer[value]: Part("product", softmax, scores=-1)}
    kept: dict[int, Part] = {}  # a factor of what is no product is a table of its own
    for at, part in found.items():
        if part.kind == "scaled":
            break
        kept[at] = part
    return kept


def _scaled(call: Call, softmax: int) -> Part | None:
    """A positive number times the scores, or the scores by one."""
    if call.op.name not in ("mul", "div") or len(call.args) != 2 or call.kwargs or len(call.outputs) != 1:
        return None
    operand = next((i for i, a in enumerate(call.args) if isinstance(a, Ref)), None)
    if operand is None or (call.op.name == "div" and operand == 1):
        return None
    number = _number(call.args[1 - operand])
    if number is None or not (math.isfinite(number) and 2.0**-32 <= number <= 2.0**32):
        return None
    return Part("scaled", softmax, operand, 1.0 / number if call.op.name == "div" else number)


def _number(argument: Any) -> float | None:
    if isinstance(argument, Constant):
        return argument.number
    return float(argument) if isinstance(argument, (int, float)) and not isinstance(argument, bool) else None


def _masked(call: Call, softmax: int, flow: Flow) -> Part | None:
    """An addition of a mask, `masked_fill` or `where`, which hide places of the scores and keep their shape."""
    operand = _hiding(call, flow.trace)
    if operand is None or len(call.outputs) != 1:
        return None
    scores = call.args[operand].value
    return Part("masked", softmax, operand) if flow.shape(call.outputs[0]) == flow.shape(scores) else None


def _biased(call: Call, softmax: int, flow: Flow) -> Part | None:
    """An addition of a bias to the scores: of a table, or of a value beside what a product computes."""
    if call.op.name != "add" or len(call.args) != 2 or call.kwargs or len(call.outputs) != 1:
        return None
    if not all(_is_float(argument, flow.trace) for argument in call.args):
        return None
    constants = [isinstance(argument, Constant) for argument in call.args]
    if any(constants):
        operand = constants.index(False)
    else:
        products = [_of_product(argument, flow) for argument in call.args]
        if products.count(True) != 1:
            return None
        operand = products.index(True)
    same_shape = flow.shape(call.outputs[0]) == flow.shape(call.args[operand].value)
    added = call.args[1 - operand]
    table = isinstance(added, Ref) or added.elements > 1
    return Part("biased", softmax, operand, bias=_bias(added)) if same_shape and table else None


def _of_product(argument: Ref, flow: Flow) -> bool:
    """Whether a product computes a value, which is moved or multiplied by a number afterwards."""
    value = flow.resolve(argument.value)
    while value in flow.writer:
        call = flow.trace.calls[flow.writer[value]]
        if is_product(call):
            return True
        part = _scaled(call, 0)
        if part is None and not (call.op.role is Role.MOVEMENT and call.args and isinstance(call.args[0], Ref)):
            return False
        value = flow.resolve(call.args[part.operand if part is not None else 0].value)
    return False


def _hiding(call: Call, trace: Trace) -> int | None:
    """Which argument of a call that hides places is the scores; None of any other call."""
    args, name = call.args, call.op.name
    if call.kwargs.keys() - {"value", "mask"}:
        return None
    if name == "add" and len(args) == 2 and not call.kwargs:
        masks = [hides(a, trace) for a in args]
        if masks.count(True) == 1 and isinstance(args[masks.index(False)], Ref):
            return masks.index(False)
        return None
    if name in ("masked_fill", "masked_fill_"):
        mask, value = (call.kwargs.get(k, args[i] if len(args) > i else None) for k, i in (("mask", 1), ("value", 2)))
        return 0 if isinstance(args[0], Ref) and is_bool(mask, trace) and _far(value) else None
    if name == "where" and len(args) == 3 and not call.kwargs:
        condition = 0 if is_bool(args[0], trace) else 1  # `x.where(mask, other)` is called with x first
        scores = 1 - condition
        return scores if is_bool(args[condition], trace) and isinstance(args[scores], Ref) and _far(args[2]) else None
    return None


def _far(value: Any) -> bool:
    number = _number(value)
    return number is not None and number <= -FAR


def is_bool(argument: Any, trace: Trace) -> bool:
    """Whether an argument is a tensor of yes and no."""
    if isinstance(argument, Ref):
        return trace.values[argument.value].dtype == torch.bool
    return isinstance(argument, Constant) and argument.dtype == torch.bool


def hides(argument: Any, trace: Trace) -> bool:
    """Whether an argument is a mask that is added: 0, or so far below that it hides a place.

    One that hides nothing in the example is known by what it is computed from: integers, or yes and no. What a parameter has a
    part in is no mask, whatever its numbers are before training.
    """
    if isinstance(argument, Constant):
        return argument.hides and argument.elements > 1
    if not isinstance(argument, Ref) or not trace.values[argument.value].hides:
        return False
    of_integers, learned = _origin(argument.value, trace)
    return not learned and (of_integers or trace.values[argument.value].far)


def _origin(value: int, trace: Trace) -> tuple[bool, bool]:
    """Whether all that a value is computed from are tensors of integers, or of yes and no; whether a parameter is among it."""
    writers = {v: call for call in trace.calls for v in call.outputs}
    waiting, seen, of_integers = [value], set[int](), True
    while waiting:
        at = waiting.pop()
        if at in seen or not trace.values[at].is_float:
            continue
        seen.add(at)
        call = writers.get(at)
        if call is None:
            of_integers = False
            continue
        if any(isinstance(a, Constant) and a.learned for a in pytree.tree_leaves([*call.args, *call.kwargs.values()])):
            return of_integers, True
        waiting += call.inputs
    return of_integers, False
