"""The architectures that are written: what each is in llama.cpp, and how a configuration of transformers becomes its metadata.

Names of tensors are those of the package gguf. An architecture stands here once its file was run in llama.cpp beside the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truequant.errors import ExportError
from truequant.runtimes.packages import package

Metadata = tuple[str, tuple[Any, ...]]
"""The name of a method of `gguf.GGUFWriter`, without `add_`, and its arguments."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One kind of language model.

    name: in llama.cpp. pairs_of_halves: its rotary embedding turns neighbours, where transformers turns the two halves of a
    head, so that rows of q and k change places. refuses: fields of a configuration with the only value that llama.cpp computes.
    """

    name: str
    pairs_of_halves: bool = False
    refuses: Mapping[str, Any] | None = None


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", pairs_of_halves=True),
    "mistral": Architecture("llama", pairs_of_halves=True, refuses={"sliding_window": None}),
    "qwen2": Architecture("qwen2", refuses={"use_sliding_window": False}),
    "qwen3": Architecture("qwen3", refuses={"use_sliding_window": False}),
}
"""By the `model_type` of transformers."""
_REFUSED: Mapping[str, Any] = {"hidden_act": "silu"}
_ROPES = ("default", "linear", "llama3")


def architecture_of(config: Any) -> Architecture:
    """The architecture of a configuration. `ExportError` for one that is not written."""
    kind = getattr(config, "model_type", None)
    if kind not in ARCHITECTURES:
        raise ExportError(
            "no GGUF is written for this architecture", got=repr(kind), expected=", ".join(ARCHITECTURES),
            fix="export_onnx writes any model",
        )  # fmt: skip
    found = ARCHITECTURES[kind]
    for field, only in {**_REFUSED, **(found.refuses or {})}.items():
        if getattr(config, field, only) != only:
            raise ExportError(
                f"llama.cpp computes no {kind} model of this {field}",
                got=f"{field}={getattr(config, field)!r}", expected=f"{field}={only!r}",
            )  # fmt: skip
    return found


def head_size(config: Any) -> int:
    """Features of a head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def metadata(config: Any, quantized: int) -> Iterator[Metadata]:
    """What the file says of the model. quantized: the number of GGUF for the type of most weights."""
    head, rope = head_size(config), rope_of(config)
    yield "context_length", (config.max_position_embeddings,)
    yield "embedding_length", (config.hidden_size,)
    yield "block_count", (config.num_hidden_layers,)
    yield "feed_forward_length", (config.intermediate_size,)
    yield "head_count", (config.num_attention_heads,)
    yield "head_count_kv", (config.num_key_value_heads,)
    yield "key_length", (head,)
    yield "value_length", (head,)
    yield "rope_dimension_count", (head,)
    yield "rope_freq_base", (float(rope.get("rope_theta", 10000.0)),)
    yield "layer_norm_rms_eps", (float(config.rms_norm_eps),)
    yield "vocab_size", (config.vocab_size,)
    yield "file_type", (quantized,)
    yield "quantization_version", (2,)
    if rope["rope_type"] == "linear":
        yield "rope_scaling_type", (package("gguf", "gguf").RopeScalingType.LINEAR,)
        yield "rope_scaling_factor", (float(rope["factor"]),)


def rope_of(config: Any) -> dict[str, Any]:
    """The rotary embedding of a configuration, with its `rope_type` and `rope_theta`. `ExportError` for another kind."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    rope = {"rope_theta": getattr(config, "rope_theta", 10000.0), **given}
    rope["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    if rope["rope_type"] not in _ROPES:
        raise ExportError(
            "no GGUF is written for this rotary embedding", got=repr(rope["rope_type"]), expected=", ".join(_ROPES)
        )
    return rope


def rope_factors(config: Any) -> NDArray[np.float32] | None:
    """By what llama.cpp divides each frequency, for Llama 3.1 and later; None where they stay as they are."""
    rope = rope_of(config)
    if rope["rope_type"] != "llama3":
        return None
    size, old = head_size(config), rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    waves = 2 * math.pi * float(rope["rope_theta"]) ** (np.arange(0, size, 2, dtype=np.float64) / size)
    smooth = (old / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(waves < old / high, 1.0, np.where(waves > old / low, factor, between)).astype(np.float32)


def rows_in_place(rows: int, heads: int) -> NDArray[np.int64]:
    """Which row of transformers' q or k lies at each place of llama.cpp's: rows i and i + half of a head become neighbours."""
    size = rows // heads
    return np.arange(rows).reshape(heads, 2, size // 2).swapaxes(1, 2).reshape(rows)
