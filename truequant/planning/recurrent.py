"""Recurrent layers of torch's: which of their parameters are quantized, and their forward written out step by step."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OPS = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"))
_State = tuple[Tensor, Tensor | None]


def weights_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the weight matrices of a recurrent layer or cell."""
    if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return ()
    return tuple(name for name, _ in module.named_parameters(recurse=False) if name.startswith("weight"))


def unrolled(self: nn.RNNBase, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
    """`nn.LSTM`, `nn.GRU` or `nn.RNN`, one step after the other, in ops that can be seen.

    A state that is not given is zeros made from the input, so that the first step is as all others are.
    """
    batched = input.dim() == 3
    x = input if batched else input.unsqueeze(1 - int(self.batch_first))
    x = x if self.batch_first else x.transpose(0, 1)
    given = None if hx is None else _given(self, hx, batched)
    last: list[_State] = []
    for layer in range(self.num_layers):
        parts = []
        for direction in range(1 + int(self.bidirectional)):
            state = None if given is None else given[len(last)]
            y, end = _direction(self, x, state, f"_l{layer}" + ("_reverse" if direction else ""), backwards=bool(direction))
            parts.append(y)
            last.append(end)
        x = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        if self.dropout and layer < self.num_layers - 1:
            x = F.dropout(x, self.dropout, self.training)
    y = x if self.batch_first else x.transpose(0, 1)
    y = y if batched else y.squeeze(1 - int(self.batch_first))
    states = [torch.stack([s for s in column if s is not None]) for column in zip(*last, strict=True) if column[0] is not None]
    states = states if batched else [s.squeeze(1) for s in states]
    return y, (states[0], states[1]) if isinstance(self, nn.LSTM) else states[0]


def _given(self: nn.RNNBase, hx: Any, batched: bool) -> list[_State]:
    """The initial state of each layer and direction."""
    given = [s if batched else s.unsqueeze(1) for s in (hx if isinstance(self, nn.LSTM) else (hx,))]
    h, c = given[0], given[1] if len(given) > 1 else None
    return [(h[i], None if c is None else c[i]) for i in range(self.num_layers * (1 + int(self.bidirectional)))]


def _direction(self: nn.RNNBase, x: Tensor, state: _State | None, end: str, *, backwards: bool) -> tuple[Tensor, _State]:
    """All steps of one layer in one direction: results `(N, T, H)` in the order of the input, and the last state."""
    hidden, bias = self.hidden_size, self.bias
    of: dict[str, Any] = {k: getattr(self, f"{k}{end}") if bias or k.startswith("weight") else None for k in _PARAMETERS}
    narrowing = getattr(self, f"weight_hr{end}") if self.proj_size else None
    projected = F.linear(x, of["weight_ih"], of["bias_ih"])
    if state is None:
        zeros = projected[:, 0, :hidden] * 0.0
        state = zeros[:, : self.proj_size or hidden], zeros if isinstance(self, nn.LSTM) else None
    order = range(x.shape[1])
    results = []
    for t in reversed(order) if backwards else order:
        recurrent = F.linear(state[0], of["weight_hh"], of["bias_hh"])
        state = _step(self, projected[:, t], recurrent, state)
        if narrowing is not None:
            state = F.linear(state[0], narrowing), state[1]
        results.append(state[0])
    return torch.stack(results[::-1] if backwards else results, 1), state


_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _step(self: nn.RNNBase, x: Tensor, h: Tensor, state: _State) -> _State:
    """One step: `x` and `h` are the projections of the input and of the state, gates side by side."""
    if isinstance(self, nn.LSTM):
        i, f, g, o = (x + h).chunk(4, -1)
        assert state[1] is not None
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    if isinstance(self, nn.GRU):
        (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), h.chunk(3, -1)
        z = torch.sigmoid(xz + hz)
        n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
        return n + z * (state[0] - n), None
    activation = torch.tanh if self.mode == "RNN_TANH" else torch.relu
    return activation(x + h), None
