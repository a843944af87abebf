"""GGUF: the file holds the trained codes and scales, and llama.cpp computes with them what the model computes."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from truequant.errors import ArgumentError, ArgumentTypeError, ExportError
from truequant.runtimes.gguf.blocks import Coded, from_blocks, to_blocks

VOCABULARY = 96
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("Llama", {}, "w4a16-gguf"),
    "llama of 8 bits": ("Llama", {}, "w8a16-gguf"),
    "llama 3.1, biases, heads of another size, tied": (
        "Llama", {"rope_parameters": LLAMA_3, "attention_bias": True, "head_dim": 32, "tie_word_embeddings": True},
        "w4a16-gguf",
    ),
    "llama, linear positions": (
        "Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}, "w4a16-gguf",
    ),
    "mistral": ("Mistral", {"sliding_window": None}, "w4a16-gguf"),
    "qwen2": ("Qwen2", {}, "w4a16-gguf"),
    "qwen3": ("Qwen3", {"head_dim": 32}, "w4a16-gguf"),
}  # fmt: skip
PROMPT = [3, 17, 42, 5, 80, 61, 7, 19, 33, 90, 11, 64]


def language_model(kind: str, **fields: Any) -> Any:
    """A model of random weights whose logits differ: norms and biases are not those of a new model."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **fields})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.uniform_(0.5, 1.5) if "norm" in name else p.uniform_(-0.3, 0.3)
    return model


@cache
def trained(case: str) -> Any:
    """A prepared model after two steps of training."""
    kind, fields, preset = CASES[case]
    ids = torch.tensor([PROMPT])
    qat = tq.prepare(language_model(kind, **fields), (ids,), preset)
    optimizer = torch.optim.SGD(qat.parameters(), lr=0.05)
    for _ in range(2):
        qat.train()(ids).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return qat.eval()


def blocks_of_8(x: Tensor) -> Tensor:
    """What a layer reads, as llama.cpp has it on x86: int8 for 32 values, `q = rint(x * (127 / max |x|))`, d in float16."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    largest = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 0, 127.0 / largest, 0.0)
    return (torch.round(blocks * inverse) * (largest / 127.0).half().float()).reshape(x.shape)


@cache
def with_blocks(case: str) -> Any:
    """The float model with the trained weights' values, whose layers read blocks of 8 bits."""
    kind, fields, _ = CASES[case]
    state = {name: p.detach() for name, p in trained(case).named_parameters(remove_duplicate=False)}
    for name, quantizer in tq.quantizers(trained(case)):
        state[name] = quantizer.values(state[name])
    if fields.get("tie_word_embeddings"):
        state["model.embed_tokens.weight"] = state["lm_head.weight"]  # one table, of integer weights
    model = language_model(kind, **{**fields, "tie_word_embeddings": False})
    model.load_state_dict(state)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, args: (blocks_of_8(args[0]),))
    return model


@torch.no_grad()
def log_probabilities(model: Any, prompt: list[int]) -> Tensor:
    """Of the token behind a prompt."""
    return torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1].double(), -1)


def in_llama(asked: Any, folder: Path) -> list[list[Tensor]]:
    """The answers of `in_llama.py`, float64."""
    (folder / "asked.json").write_text(json.dumps(asked))
    child = Path(__file__).with_name("in_llama.py")
    command = [sys.executable, child, folder / "asked.json", folder / "told.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads((folder / "told.json").read_text())
    return [[torch.tensor(result, dtype=torch.float64) for result in results] for results in told]


def read(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def values(tensor: Any) -> np.ndarray[Any, Any]:
    return gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)


@pytest.mark.slow
def test_llama_cpp_computes_the_model(tmp_path: Path) -> None:
    """Every architecture, with activations in llama.cpp's own blocks: log probabilities agree but for the order of sums, and
    for a code of an activation that this order moves.
    """
    prompts = [PROMPT[:length] for length in (2, 4, 6, 9, 12)]
    asked = []
    for number, case in enumerate(CASES):
        tq.export_gguf(trained(case), tmp_path / f"{number}.gguf")
        asked.append((str(tmp_path / f"{number}.gguf"), prompts, VOCABULARY))
    for case, results in zip(CASES, in_llama(asked, tmp_path), strict=True):
        moved = 0
        for have, prompt in zip(results, prompts, strict=True):
            own, blocks = log_probabilities(trained(case), prompt), log_probabilities(with_blocks(case), prompt)
            moved += float((have - blocks).abs().max()) > 1e-5
            assert float((have - own).abs().max()) < 0.3, case
            if float(own.topk(2).values.diff().abs()) > 0.3:
                assert int(have.argmax()) == int(own.argmax()), case
        assert moved <= 3, case


TEXT = "In 1776 they'd said: it's WE'RE   here!\n\n  And then, 12345 days on\tcame <|end|> the  end.\n"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_tokenizer(split: str | None) -> Any:
    """Byte-level BPE of 320 tokens, a token that ends a text among them; split: the expression that cuts text before."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = tokenizers.Tokenizer(models.BPE())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    if split is None:
        made.pre_tokenizer = to_bytes
    else:
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(tokenizers.Regex(split), "isolated", False), to_bytes]
        )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([TEXT, "the then they here there days said 12 123 1234 \n\n it's we're they'd"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


@pytest.mark.slow
def test_text_becomes_the_same_tokens(tmp_path: Path) -> None:
    """Of a prompt in text llama.cpp says what it says of the tokens of transformers."""
    asked, prompts = [], []
    for name, split in (("gpt-2", None), ("llama-bpe", WORDS % r"\p{N}{1,3}"), ("qwen2", WORDS % r"\p{N}")):
        tokenizer = byte_tokenizer(split)
        model = language_model("Llama", num_hidden_layers=1, vocab_size=328, eos_token_id=0)
        qat = tq.prepare(model, (torch.tensor([PROMPT]),), "w4a16-gguf").eval()
        tq.export_gguf(qat, tmp_path / f"{name}.gguf", tokenizer=tokenizer)
        told = gguf.GGUFReader(tmp_path / f"{name}.gguf").fields
        assert told["tokenizer.ggml.pre"].contents() == name
        assert told["tokenizer.ggml.tokens"].contents()[-1] == "[PAD327]"
        never = [n for n in range(328) if not tokenizer.decode([n]).isascii() or n == 0]
        prompts.append(tokenizer(TEXT).input_ids)
        asked.append((str(tmp_path / f"{name}.gguf"), [TEXT, prompts[-1], prompts[-1][:-1]], 328, never))
    assert len({tuple(prompt) for prompt in prompts}) == 3  # each split has tokens of its own
    for text, tokens, fewer in in_llama(asked, tmp_path):
        assert torch.equal(text, tokens)
        assert not torch.equal(text, fewer)


def test_tokenizers_without_a_name_there_are_refused(tmp_path: Path) -> None:
    qat = tq.prepare(
        language_model("Llama", num_hidden_layers=1, vocab_size=328), (torch.tensor([PROMPT]),), "w4a16-gguf"
    ).eval()
    with pytest.raises(ExportError, match="no name here for how this tokenizer splits text"):
        tq.export_gguf(qat, tmp_path / "m.gguf", tokenizer=byte_tokenizer(r"\p{L}+"))
    with pytest.raises(ExportError, match="this tokenizer cannot be written"):
        tq.export_gguf(qat, tmp_path / "m.gguf", tokenizer=object())
    small = tq.prepare(language_model("Llama", num_hidden_layers=1), (torch.tensor([PROMPT]),), "w4a16-gguf").eval()
    with pytest.raises(ExportError, match="the tokenizer has more tokens than the model"):
        tq.export_gguf(small, tmp_path / "m.gguf", tokenizer=byte_tokenizer(None))


def heads_turned(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of q or k as llama.cpp has them, in the words of its own converter."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


@pytest.mark.parametrize("case", ["llama", "llama of 8 bits"])
def test_the_file_holds_the_trained_weights_bit_for_bit(case: str, tmp_path: Path) -> None:
    qat = trained(case)
    size = tq.export_gguf(qat, tmp_path / "m.gguf")
    assert size == (tmp_path / "m.gguf").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    tensors, names = read(tmp_path / "m.gguf"), gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    weights, kind = dict(qat.named_parameters()), "Q4_0" if case == "llama" else "Q8_0"
    coded = 0
    for name, quantizer in tq.quantizers(qat):
        place = names.get_name(name, try_suffixes=(".weight",))
        want = quantizer.values(weights[name]).numpy()
        if place.endswith(("attn_q.weight", "attn_k.weight")):
            want = heads_turned(want, 4 if "attn_q" in place else 2)
        assert tensors[place].tensor_type.name == kind
        assert np.array_equal(values(tensors[place]), want), name
        coded += 1
    assert coded == 15 == sum(tensor.tensor_type.name == kind for tensor in tensors.values())
    embedding = tensors["token_embd.weight"]
    assert embedding.tensor_type.name == "F32"
    assert np.array_equal(embedding.data, qat.model.embed_tokens.weight.detach().numpy())
    assert np.array_equal(tensors["output_norm.weight"].data, qat.model.norm.weight.detach().numpy())


def test_an_int8_model_gives_the_same_file_of_weights(tmp_path: Path) -> None:
    qat = trained("qwen3")
    tq.export_gguf(qat, tmp_path / "qat.gguf")
    int8 = tq.convert(qat)
    int8.save(tmp_path / "m.tq")
    with pytest.raises(ArgumentError, match="needs the configuration of the model"):
        tq.export_gguf(int8, tmp_path / "int8.gguf")
    tq.export_gguf(tq.load(tmp_path / "m.tq"), tmp_path / "int8.gguf", config=qat.config)
    own, other = read(tmp_path / "qat.gguf"), read(tmp_path / "int8.gguf")
    assert own.keys() == other.keys()
    for name, tensor in own.items():
        assert (tensor.tensor_type, tensor.data.tobytes()) == (other[name].tensor_type, other[name].data.tobytes()), name


def test_floats_keep_every_bit_in_the_narrowest_type(tmp_path: Path) -> None:
    for dtype, kind in ((torch.float16, "F16"), (torch.bfloat16, "BF16")):
        model = language_model("Qwen2", num_hidden_layers=1)
        model.model.embed_tokens.weight.data[0] = 65504.0 if dtype == torch.float16 else 2.0**20  # more than float16 holds
        model.model.embed_tokens.weight.data = model.model.embed_tokens.weight.data.to(dtype).float()
        qat = tq.prepare(model, (torch.tensor([PROMPT]),), "w4a16-gguf").eval()
        tq.export_gguf(qat, tmp_path / "m.gguf")
        tensor = read(tmp_path / "m.gguf")["token_embd.weight"]
        assert tensor.tensor_type.name == kind
        assert np.array_equal(values(tensor), qat.model.embed_tokens.weight.detach().numpy())


def test_blocks_of_all_codes_go_there_and_back() -> None:
    rng = np.random.default_rng(0)
    scale = np.array([[2.0**-24, 2.0**15], [0.1, 1.0]], np.float16).astype(np.float32)
    for kind, low, high in (("Q4_0", -8, 7), ("Q8_0", -128, 127)):
        coded = Coded(rng.integers(low, high + 1, (2, 64), np.int8), scale)
        data = to_blocks(coded, kind)
        back = from_blocks(data, kind)
        assert np.array_equal(back.codes, coded.codes)
        assert np.array_equal(back.scale, coded.scale)
        theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
        assert np.array_equal(theirs, (coded.codes.reshape(2, 2, 32) * scale[..., None]).reshape(2, 64))


@pytest.mark.parametrize(
    ("kind", "fields", "preset", "said"),
    [
        ("Llama", {}, "w4a16", "GGUF keeps scales in float16, and these were trained in more"),
        ("Llama", {}, "w8a16", "GGUF has no block for these groups"),
        ("Llama", {"hidden_act": "gelu"}, "w4a16-gguf", "computes no llama model of this hidden_act"),
        ("Llama", {"rope_parameters": DYNAMIC}, "w4a16-gguf", "no GGUF is written for this rotary embedding"),
        ("Mistral", {"sliding_window": 8}, "w4a16-gguf", "computes no mistral model of this sliding_window"),
        ("Olmo2", {}, "w4a16-gguf", "no GGUF is written for this architecture"),
    ],
)  # fmt: skip
def test_what_has_no_place_is_refused_and_nothing_is_written(
    kind: str, fields: dict[str, Any], preset: str, said: str, tmp_path: Path
) -> None:
    qat = tq.prepare(language_model(kind, num_hidden_layers=1, **fields), (torch.tensor([PROMPT]),), preset).eval()
    with pytest.raises(ExportError, match=said):
        tq.export_gguf(qat, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_other_models_are_refused(tmp_path: Path) -> None:
    model = language_model("Llama", num_hidden_layers=1)
    with pytest.raises(ArgumentTypeError, match="a prepared model or an Int8 model"):
        tq.export_gguf(model, tmp_path / "m.gguf")
    part = tq.prepare(nn.Sequential(nn.Linear(32, 32)), torch.randn(2, 32), "w4a16-gguf").eval()
    with pytest.raises(ExportError, match="'0.weight': llama.cpp's llama has no place for this tensor"):
        tq.export_gguf(part, tmp_path / "m.gguf", config=model.config)
    edges = tq.prepare(nn.Sequential(nn.Linear(32, 32)), torch.randn(2, 32))
    tq.calibrate(edges, [torch.randn(2, 32)])
    for given in (edges, tq.convert(edges.eval())):
        with pytest.raises(ExportError, match="llama.cpp keeps what is between layers in float"):
            tq.export_gguf(given, tmp_path / "m.gguf", config=model.config)
