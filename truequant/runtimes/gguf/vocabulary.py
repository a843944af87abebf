"""A tokenizer as llama.cpp reads it: byte-level BPE of the kinds that it has a name for, or one that stands in for none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from truequant.errors import ExportError
from truequant.runtimes.gguf.architectures import Metadata
from truequant.runtimes.packages import package

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {_WORDS % r"\p{N}{1,3}": "llama-bpe", _WORDS % r"\p{N}": "qwen2"}
"""How text is split before pairs are merged, and what llama.cpp calls it."""
_GPT_2 = "gpt-2"


def metadata(tokenizer: Any, config: Any) -> Iterator[Metadata]:
    """What the file says of the tokenizer, and of the tokens that begin and end a text.

    None writes a vocabulary of the model's size that stands for no text: llama.cpp then takes and gives numbers of tokens.
    """
    yield from _stand_in(config.vocab_size) if tokenizer is None else _byte_level(tokenizer, config.vocab_size)
    given = config if tokenizer is None else tokenizer
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        number = getattr(given, field, None)
        if isinstance(number, list):
            number = number[0] if number else None
        if number is not None and 0 <= number < config.vocab_size:
            yield field, (number,)
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, str):
        yield "chat_template", (template,)


def _stand_in(size: int) -> Iterator[Metadata]:
    kinds = package("gguf", "gguf").TokenType
    yield "tokenizer_model", ("llama",)
    yield "token_list", ([f"<{number}>" for number in range(size)],)
    yield "token_scores", ([-float(number) for number in range(size)],)
    yield "token_types", ([int(kinds.NORMAL)] * size,)
    yield "add_bos_token", (False,)
    yield "add_space_prefix", (False,)


def _byte_level(tokenizer: Any, size: int) -> Iterator[Metadata]:
    kinds = package("gguf", "gguf").TokenType
    described = _described(tokenizer)
    tokens: dict[int, tuple[str, int]] = {
        number: (text, int(kinds.NORMAL)) for text, number in described["model"]["vocab"].items()
    }
    for added in described.get("added_tokens", []):
        kind = kinds.CONTROL if added["special"] else kinds.USER_DEFINED
        tokens[added["id"]] = added["content"], int(kind)
    if max(tokens) >= size:
        raise ExportError("the tokenizer has more tokens than the model", got=max(tokens) + 1, expected=f"at most {size}")
    rows = [tokens.get(number, (f"[PAD{number}]", int(kinds.UNUSED))) for number in range(size)]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in described["model"]["merges"]]
    yield "tokenizer_model", ("gpt2",)
    yield "tokenizer_pre", (_split_of(described["pre_tokenizer"]),)
    yield "token_list", ([text for text, _ in rows],)
    yield "token_types", ([kind for _, kind in rows],)
    yield "token_merges", (merges,)
    yield "add_bos_token", (bool(getattr(tokenizer, "add_bos_token", False)),)


def _described(tokenizer: Any) -> dict[str, Any]:
    """The description of a fast tokenizer, which must be byte-level BPE."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    described: dict[str, Any] = json.loads(backend.to_str()) if hasattr(backend, "to_str") else {}
    steps = _steps(described.get("pre_tokenizer"))
    kind = described.get("model", {}).get("type")
    if (
        kind != "BPE"
        or not any(step["type"] == "ByteLevel" for step in steps)
        or described.get("normalizer") not in (None, _NFC)
    ):
        raise ExportError(
            "this tokenizer cannot be written", got=f"{type(tokenizer).__name__}, {kind or 'no description'}",
            expected="a fast tokenizer of transformers, byte-level BPE, or None for a file that takes numbers of tokens",
        )  # fmt: skip
    return described


_NFC = {"type": "NFC"}


def _steps(given: Any) -> list[dict[str, Any]]:
    if not isinstance(given, dict):
        return []
    return given["pretokenizers"] if given["type"] == "Sequence" else [given]


def _split_of(given: Any) -> str:
    """llama.cpp's name of how text is split."""
    steps = _steps(given)
    patterns = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    if not patterns and steps[-1].get("use_regex", True):
        return _GPT_2
    if len(patterns) == 1 and patterns[0] in _SPLITS:
        return _SPLITS[patterns[0]]
    raise ExportError(
        "llama.cpp has no name here for how this tokenizer splits text", got=str(patterns or "no split")[:200],
        expected=", ".join((*_SPLITS.values(), _GPT_2)), fix="tokenizer=None, and give numbers of tokens",
    )  # fmt: skip
