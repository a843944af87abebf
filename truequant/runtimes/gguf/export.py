"""`export_gguf`: the trained codes as a file of llama.cpp. Nothing is quantized here, and what is written is read back."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from truequant.errors import ArgumentError, ExportError
from truequant.runtimes.gguf import architectures, vocabulary
from truequant.runtimes.gguf.blocks import Coded, kind_of, to_blocks
from truequant.runtimes.gguf.reading import coded_tensors, float_tensors
from truequant.runtimes.gguf.sources import Stored, float_array, tensors_of
from truequant.runtimes.packages import package


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """A tensor of the file: its name there, the name of its type, its bytes as numpy has them, and its codes if it has some."""

    name: str
    kind: str
    data: NDArray[Any]
    coded: Coded | None = None


def export_gguf(model: nn.Module, path: str | os.PathLike[str], *, tokenizer: Any = None, config: Any = None) -> int:
    """Write a language model of transformers as GGUF and return its size in bytes.

    model: a prepared model, or an `Int8Model`, whose weights alone are quantized: preset "w4a16-gguf" or "w8a16-gguf". Their
        codes and float16 scales are copied as Q4_0 and Q8_0. Other weights keep all their bits: F16 or BF16 where these hold
        every value, else F32.
    tokenizer: a fast tokenizer of transformers of byte-level BPE; None writes a vocabulary that stands for no text, and
        llama.cpp takes and gives numbers of tokens.
    config: the configuration of transformers, where the model has none: that of a prepared model is `model.config`.

    The file is read back, with the package gguf, before it takes the place of `path`: every code and scale is the trained one.
    llama.cpp computes with these weights in an order and precision of its own: its outputs are close, never EXACT.
    Raises `ExportError` for an architecture, a tensor or a tokenizer that has no place in such a file.
    """
    found = tensors_of(model)
    config = getattr(model, "config", None) if config is None else config
    if config is None:
        raise ArgumentError(
            "export_gguf needs the configuration of the model", got="config=None", expected="that of transformers",
            fix="config=float_model.config",
        )  # fmt: skip
    architecture = architectures.architecture_of(config)
    tensors = list(_placed(found, architecture, config))
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        written = Path(folder) / path.name
        _write(written, architecture, tensors, config, tokenizer)
        _read_back(written, tensors)
        size = written.stat().st_size
        os.replace(written, path)
    return size


def _placed(found: dict[str, Stored], architecture: architectures.Architecture, config: Any) -> Iterator[Written]:
    """Every tensor under its name in the file, its rows where llama.cpp has them."""
    names = package("gguf", "gguf").get_tensor_name_map(_known(architecture.name), config.num_hidden_layers)
    missing = dict.fromkeys(_needed(config))
    for name, stored in found.items():
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if place is None:
            raise ExportError(
                f"'{name}': llama.cpp's {architecture.name} has no place for this tensor", got=f"shape {_shape(stored)}",
                expected="the names of transformers' model", fix="the model for causal language modelling itself, in no other",
            )  # fmt: skip
        missing.pop(place, None)
        if name == "lm_head.weight" and _tied(found.get("model.embed_tokens.weight"), stored):
            continue
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(place.split(".")[-2], 0)
        yield _as_written(place, stored, heads if architecture.pairs_of_halves else 0)
    if missing:
        raise ExportError(
            "the model lacks tensors that llama.cpp needs", got=f"no {', '.join(missing)}", fix="config= of this very model"
        )
    factors = architectures.rope_factors(config)
    if factors is not None:
        yield Written("rope_freqs.weight", "F32", factors)


def _needed(config: Any) -> Iterator[str]:
    yield from ("token_embd.weight", "output_norm.weight")
    for layer in range(config.num_hidden_layers):
        for part in ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"):
            yield f"blk.{layer}.{part}.weight"


def _tied(embedding: Stored | None, head: Stored) -> bool:
    """Whether the head is the embedding, which llama.cpp then takes for both."""
    if isinstance(embedding, Coded) and isinstance(head, Coded):
        return np.array_equal(embedding.codes, head.codes) and np.array_equal(embedding.scale, head.scale)
    return isinstance(embedding, Tensor) and isinstance(head, Tensor) and embedding.data_ptr() == head.data_ptr()


def _as_written(name: str, stored: Stored, heads: int) -> Written:
    if isinstance(stored, Coded):
        if heads:
            rows = architectures.rows_in_place(len(stored.codes), heads)
            stored = Coded(stored.codes[rows], stored.scale[rows])
        kind = kind_of(stored, name)
        return Written(name, kind, to_blocks(stored, kind), stored)
    if heads:
        stored = stored[architectures.rows_in_place(len(stored), heads)]
    kind, data = float_array(stored)
    return Written(name, kind, data)


def _shape(stored: Stored) -> tuple[int, ...]:
    return tuple(stored.codes.shape if isinstance(stored, Coded) else stored.shape)


def _known(name: str) -> Any:
    gguf = package("gguf", "gguf")
    return next(number for number, known in gguf.MODEL_ARCH_NAMES.items() if known == name)


def _write(path: Path, architecture: architectures.Architecture, tensors: list[Written], config: Any, tokenizer: Any) -> None:
    gguf = package("gguf", "gguf")
    writer = gguf.GGUFWriter(path, architecture.name)
    four = any(tensor.kind == "Q4_0" for tensor in tensors)
    kinds = gguf.LlamaFileType
    quantized = kinds.MOSTLY_Q4_0 if four else kinds.MOSTLY_Q8_0 if any(t.coded for t in tensors) else kinds.ALL_F32
    for method, arguments in (*architectures.metadata(config, int(quantized)), *vocabulary.metadata(tokenizer, config)):
        getattr(writer, f"add_{method}")(*arguments)
    for tensor in tensors:
        kind = None if tensor.kind in ("F32", "F16") else gguf.GGMLQuantizationType[tensor.kind]
        writer.add_tensor(tensor.name, np.ascontiguousarray(tensor.data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read_back(path: Path, tensors: list[Written]) -> None:
    """`ExportError` unless the file holds these codes and scales, and these floats."""

    codes, floats = coded_tensors(path), float_tensors(path)
    for tensor in tensors:
        if tensor.coded is None:
            same = tensor.name in floats and np.array_equal(floats[tensor.name], tensor.data.reshape(-1).view(np.uint8))
        else:
            have = codes.get(tensor.name)
            same = have is not None and all(
                np.array_equal(a, b) for a, b in ((have.codes, tensor.coded.codes), (have.scale, tensor.coded.scale))
            )
        if not same:
            raise ExportError(f"'{tensor.name}': read back, the file holds another tensor", got=tensor.kind, fix="report it")
