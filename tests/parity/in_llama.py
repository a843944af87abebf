"""Log probabilities of llama.cpp, in a process of its own: it ends its process over a file that it cannot read.

Called with two JSON files: reads `[[model, [prompt, …], size of the vocabulary, tokens never to take], …]`, and writes, for
each model and prompt, the log probability of every token behind the whole prompt. Keys and values stay in float32, attention is
written out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import xllamacpp


def served(path: str) -> Any:
    """A server of one model, without a port, on one thread."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup, params.port = 256, 1, 0, False, 0
    params.cpuparams.n_threads = 1
    params.no_extra_bufts = True
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def answered(server: Any, prompt: list[int] | str, vocabulary: int, never: list[int]) -> dict[str, Any]:
    """What the server says of one token behind a prompt. It tells no probabilities where it took a token that is no whole text:
    these are never to be taken, which leaves all probabilities as they are.
    """
    asked = {"prompt": prompt, "n_predict": 1, "n_probs": vocabulary, "temperature": -1.0, "cache_prompt": False}
    asked["logit_bias"] = [[token, False] for token in never]
    answer = server.handle_completions(asked)
    return answer if isinstance(answer, dict) else json.loads(answer)


def log_probabilities(server: Any, prompt: list[int] | str, vocabulary: int, never: list[int]) -> list[float]:
    """By the number of a token."""
    told = answered(server, prompt, vocabulary, never)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return [p for _, p in sorted((entry["id"], entry["logprob"]) for entry in told)]


if __name__ == "__main__":
    results = []
    for model, prompts, size, *never in json.loads(Path(sys.argv[1]).read_text()):
        server = served(model)
        results.append([log_probabilities(server, prompt, size, *(never or [[]])) for prompt in prompts])
        del server
    Path(sys.argv[2]).write_text(json.dumps(results))
