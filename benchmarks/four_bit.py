"""What weights of 4 bits cost a Llama: a training step, an evaluation and the conversion, as ratios to float in the same run.

    python benchmarks/four_bit.py [MODEL …] [--preset NAME …] [--quick] [--record]

Llama of `transformers` with random weights, batches of 4 x 128 tokens, AdamW, cross entropy; embedding, attention and norms are
left in float. Float and prepared models take turns in one process. The converted model is then compared with the
evaluated one, and the script fails where one bit differs or a range was searched after the first forward.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from typing import Any

import harness
import torch
import torch.nn.functional as F
from harness import Row
from torch import Tensor, nn

import truequant as tq
from truequant.fake import searched

FLOAT, STEP, EVALUATION = "float", "step", "evaluation"
MODELS = {"Llama 4 x 256": (4, 256), "Llama 8 x 768": (8, 768)}
PRESETS = ("w4a16", "w4a8-dynamic")
BATCH, LENGTH, VOCABULARY = 4, 128, 2000


def llama(depth: int, width: int) -> nn.Module:
    """Heads of 64, hidden layers of 8/3 of the width in whole groups of 32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = width // 64
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, num_key_value_heads=heads,
            intermediate_size=8 * width // 3 // 32 * 32, vocab_size=VOCABULARY, use_cache=False,
        )
    )  # fmt: skip


def stepper(model: nn.Module, ids: Tensor) -> Callable[[], None]:
    """One training step."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), ids.flatten()).backward()
        optimizer.step()

    return step


def evaluator(model: nn.Module, ids: Tensor) -> Callable[[], Tensor]:
    """The logits, without gradients."""

    @torch.no_grad()
    def evaluate() -> Tensor:
        model.eval()
        found: Tensor = model(input_ids=ids).logits
        return found

    return evaluate


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def measure(name: str, presets: list[str], seconds: float, rounds: int) -> list[Row]:
    """A row for each preset; all share the float model's rounds."""
    plain = llama(*MODELS[name])
    ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    made = {p: timed(lambda p=p: tq.prepare(copy.deepcopy(plain), {"input_ids": ids}, p)) for p in presets}
    models = {FLOAT: plain} | {p: model for p, (_, model) in made.items()}
    steps = {n: stepper(m, ids) for n, m in models.items()}
    for step in steps.values():
        step()
    searches, search = [0], searched.search

    def counted(*args: Any) -> Tensor:
        searches[0] += 1
        return search(*args)

    searched.search = counted
    trained = harness.interleaved(steps, seconds=seconds, fewest=rounds, warmup=1)
    evaluations = {n: evaluator(m, ids) for n, m in models.items()}
    evaluated = harness.interleaved(evaluations, seconds=seconds / 2, fewest=rounds, warmup=1)
    rows: list[Row] = []
    for preset in presets:
        if not rows:
            tq.convert(models[preset])  # the first one of a process loads torch.export
        took, program = timed(lambda p=preset: tq.convert(models[p]))
        with torch.no_grad():
            different = int((program(input_ids=ids)["logits"] != evaluations[preset]()).sum())
        rows.append({
            "model": name, "preset": preset, "rounds": trained[FLOAT].rounds,
            "seconds": {"float step": trained[FLOAT].median, STEP: trained[preset].median,
                        "float evaluation": evaluated[FLOAT].median, EVALUATION: evaluated[preset].median,
                        "prepare": made[preset][0], "convert": took},
            STEP: trained[preset].median / trained[FLOAT].median,
            EVALUATION: evaluated[preset].median / evaluated[FLOAT].median,
            "convert": took / trained[FLOAT].median,
            "different": different, "searches": searches[0],
        })  # fmt: skip
    searched.search = search
    return rows


COLUMNS: harness.Columns = {
    "model": lambda r: r["model"],
    "preset": lambda r: r["preset"],
    "float step": lambda r: harness.milliseconds(r["seconds"]["float step"]),
    "step": lambda r: harness.ratio(r[STEP]),
    "float evaluation": lambda r: harness.milliseconds(r["seconds"]["float evaluation"]),
    "evaluation": lambda r: harness.ratio(r[EVALUATION]),
    "prepare": lambda r: harness.milliseconds(r["seconds"]["prepare"]),
    "convert, in float steps": lambda r: f"{r['convert']:.1f}",
    "logits different, program": lambda r: str(r["different"]),
}


def main() -> None:
    arguments = harness.parser(__doc__)
    arguments.add_argument("models", nargs="*", choices=[*MODELS, []], help="models; both by default")
    arguments.add_argument("--preset", nargs="*", default=list(PRESETS), help="presets; both by default")
    arguments.add_argument("--seconds", type=float, default=60.0, help="how long to measure the steps of a model")
    arguments.add_argument("--rounds", type=int, default=7, help="the fewest rounds")
    given = harness.options(arguments)
    harness.keep_pages()
    if given.quick:
        given.seconds, given.rounds = 10.0, 3
    warnings.simplefilter("ignore")
    rows: list[Row] = []
    for name in given.models or (["Llama 4 x 256"] if given.quick else list(MODELS)):
        rows += measure(name, given.preset, given.seconds, given.rounds)
    harness.publish("four_bit", given, rows, ("model", "preset"), COLUMNS, "Weights of 4 bits, as ratios to float eager")
    wrong = [f"{r['model']} {r['preset']}" for r in rows if r["different"] or r["searches"]]
    if wrong:
        raise SystemExit(f"a bit of the converted model differs, or a range was searched again: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
