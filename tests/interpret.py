"""Runs an integer program by the oracle: one line a kind of node."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from tests import oracle, oracle_rows
from truequant.integer import IntegerProgram, nodes

Array = np.ndarray[Any, Any]


def interpret(program: IntegerProgram, inputs: dict[str, Tensor]) -> dict[str, Array]:
    """Every tensor of the program by name: codes as int64, values as float32."""
    arrays: dict[str, Array] = {name: tensor.numpy() for name, tensor in inputs.items()}
    for node in program.nodes:
        arrays[node.output] = _run(node, program, *(arrays[name] for name in node.reads))
    return arrays


def _run(node: nodes.Node, program: IntegerProgram, *arrays: Array) -> Array:
    params = {name: oracle.Qparams(e.scale, e.zero_point, e.qmin, e.qmax) for name, e in program.edges.items()}
    x, y = params.get("".join(node.reads[:1])), params.get(node.output)
    match node:
        case nodes.Quantize():
            return oracle.quantize(arrays[0], y)
        case nodes.Dequantize():
            return oracle.dequantize(arrays[0], x)
        case nodes.Conv() | nodes.Linear():
            weight, bias = node.weight.numpy().astype(np.int64), node.bias.numpy().astype(np.int64)
            if isinstance(node, nodes.Conv):
                acc = oracle.conv(arrays[0], x, weight, bias, node.stride, node.padding, node.dilation, node.groups)
            else:
                acc = oracle.linear(arrays[0], x, weight, bias)
            axis, scales = 1 if isinstance(node, nodes.Conv) else -1, node.weight_scale.tolist()
            if y is None:
                return oracle.scale_sums(acc, x, scales, axis)
            return oracle.requantize(acc, x, scales, y, node.low, node.high, axis)
        case nodes.MatMul():
            acc = oracle.matmul(*arrays, params[node.left], params[node.right])
            return oracle.requantize(acc, x, [params[node.right].scale], y, node.low, node.high, -1)
        case nodes.Add() | nodes.Mul():
            rule = oracle.add if isinstance(node, nodes.Add) else oracle.mul
            return rule(*arrays, params[node.left], params[node.right], y, node.low, node.high, node.rule)
        case nodes.Sub():
            return oracle.sub(*arrays, params[node.left], params[node.right], y, node.low, node.high)
        case nodes.Softmax() | nodes.Attend():
            stored = [] if node.shown is None else [node.shown.numpy()]
            if isinstance(node, nodes.Attend):
                scores, values, *masks = arrays
                grids = params[node.values], y, node.low, node.high
                return oracle_rows.attend(scores, values, [*masks, *stored], node.causal, node.table.tolist(), *grids)
            scores, *masks = arrays
            given = scores, [*masks, *stored], node.causal, node.table.tolist()
            return oracle_rows.weights(*given) if y is None else oracle_rows.softmax(*given, y, node.low, node.high)
        case nodes.Constant():
            codes = node.codes.numpy().astype(np.int64)
            return codes if node.like is None else np.concatenate([codes] * len(arrays[0]))
        case nodes.Lookup():
            return node.entries.numpy().astype(np.int64)[arrays[0]]
        case nodes.Table():
            return oracle.table(arrays[0], node.entries.tolist(), x)
        case nodes.GlobalAverage():
            return oracle.global_average(arrays[0], node.axes, node.keepdim, x, y, node.low, node.high)
        case nodes.AveragePool():
            fields = node.kernel, node.stride, node.padding, node.ceil_mode
            return oracle.average_pool(arrays[0], *fields, x, y, node.low, node.high, node.rule)
        case nodes.MaxPool():
            fields = node.kernel, node.stride, node.padding, node.dilation, node.ceil_mode
            return oracle.max_pool(arrays[0], *fields, y.qmin)
        case nodes.Normalize():
            rule = oracle_rows.Norm(node.kind, node.axes, node.groups, node.eps, node.outside, node.correction)
            gain, bias = (None if t is None else t.numpy() for t in (node.gain, node.bias))
            values = oracle_rows.norm(arrays[0], rule, gain, bias, x, y)
            return values if y is None else oracle_rows.norm_codes(values, y, node.low, node.high)
        case nodes.Clamp():
            return np.clip(arrays[0], node.low, node.high)
        case nodes.Reshape():
            return oracle.reshape(arrays[0], node.shape)
        case nodes.Transpose():
            return arrays[0].transpose(node.permutation)
        case nodes.Slice():
            return np.moveaxis(np.moveaxis(arrays[0], node.axis, 0)[node.begin : node.end : node.step], 0, node.axis)
        case nodes.Take():
            return np.take(arrays[0], node.indices, node.axis)
        case nodes.Upsample():
            return oracle.upsample(arrays[0], node.factors)
        case nodes.DepthToSpace():
            return oracle.depth_to_space(arrays[0], node.block, node.phases_first)
        case nodes.Pad():
            return oracle.pad(arrays[0], node.padding, y)
        case nodes.PadRepeated():
            whole = ((0, 0),) * (arrays[0].ndim - len(node.padding)) + node.padding
            return np.pad(arrays[0], whole, mode=node.mode)
        case nodes.Concat():
            return np.concatenate(arrays, node.axis)
