"""Modules whose own forward hides what they compute, written out in ops that can be seen.

`nn.MultiheadAttention` hands all its weights to one function, and in evaluation it and the Transformer layers may take a fused
path that calls no submodule; `nn.EmbeddingBag` makes offsets of bags that have one size. The forms here
compute the same function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truequant.planning.recurrent import unrolled


def multi_head_attention(
    self: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`nn.MultiheadAttention.forward`: three projections, softmax(q k' / sqrt(d) + mask) v, the output projection."""
    batched = query.dim() == 3
    if not batched:
        query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    elif not self.batch_first:
        # One tensor under three names stays one: all projections then read one edge.
        moved = {id(t): t.transpose(0, 1) for t in (query, key, value)}
        query, key, value = moved[id(query)], moved[id(key)], moved[id(value)]
    q, k, v = _projected(self, query, key, value)
    if self.bias_k is not None and self.bias_v is not None:
        k = torch.cat([k, self.bias_k.expand(k.shape[0], -1, -1)], 1)
        v = torch.cat([v, self.bias_v.expand(v.shape[0], -1, -1)], 1)
    if self.add_zero_attn:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    heads = self.num_heads
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    mask = _mask(self, attn_mask, key_padding_mask, q, k)
    dropout = self.dropout if self.training else 0.0
    weights = None
    if need_weights:
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        weights = F.dropout(weights, dropout) if dropout else weights
        y = torch.matmul(weights, v)
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
    y = self.out_proj(y.transpose(1, 2).flatten(-2))
    if not batched:
        return y.squeeze(0), None if weights is None else weights.squeeze(0)
    return y if self.batch_first else y.transpose(0, 1), weights


def _projected(self: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
    if self.in_proj_weight is not None:
        weights = self.in_proj_weight.chunk(3)
    else:
        weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
    q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    return q, k, v


def _mask(self: nn.MultiheadAttention, attention: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Both masks as one that is added to the scores, `(N or 1, heads or 1, L, S)`."""
    added = k.shape[-2]
    masks = []
    if attention is not None:
        attention = _additive(attention, q.dtype)
        attention = attention.unflatten(0, (-1, self.num_heads)) if attention.dim() == 3 else attention[None, None]
        masks.append(attention)
    if padding is not None:
        masks.append(_additive(padding, q.dtype)[:, None, None, :])
    masks = [F.pad(m, (0, added - m.shape[-1])) if m.shape[-1] != added else m for m in masks]
    return None if not masks else masks[0] if len(masks) == 1 else masks[0] + masks[1]


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """True, "do not look", as minus infinity."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)


def embedding_bag(
    self: nn.EmbeddingBag, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
) -> Tensor:
    """`nn.EmbeddingBag.forward` of bags of one size: rows of the table, then their mean, sum or largest.

    Bags told by offsets, weights of samples and a padding row stay torch's own op, which no integer program has.
    """
    special = offsets is not None or per_sample_weights is not None or self.padding_idx is not None
    if special or input.dim() != 2 or self.max_norm is not None or self.scale_grad_by_freq:
        return nn.EmbeddingBag.forward(self, input, offsets, per_sample_weights)
    rows = F.embedding(input, self.weight, sparse=self.sparse)
    return rows.mean(-2) if self.mode == "mean" else rows.sum(-2) if self.mode == "sum" else rows.amax(-2)


DECOMPOSED: dict[type[nn.Module], Callable[..., Any]] = {
    nn.MultiheadAttention: multi_head_attention, nn.EmbeddingBag: embedding_bag,
}  # fmt: skip
UNROLLED: dict[type[nn.Module], Callable[..., Any]] = {nn.LSTM: unrolled, nn.GRU: unrolled, nn.RNN: unrolled}
FAST_PATHS = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
"""Modules that skip their submodules in evaluation unless somebody watches their calls."""


def decomposed(module: nn.Module, *, unroll: bool = False) -> Callable[..., Any] | None:
    """The written-out forward of a module whose forward is torch's own. unroll: of recurrent layers too."""
    for kind, form in (DECOMPOSED | UNROLLED if unroll else DECOMPOSED).items():
        if isinstance(module, kind) and getattr(type(module), "forward", None) is not None:
            own = next(c for c in type(module).__mro__ if "forward" in c.__dict__ and not hasattr(c, "__truequant__"))
            return form if own is kind else None
    return None
