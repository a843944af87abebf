"""What is float in transformers of the package `transformers`, in small: ops, codes in onnxruntime, and what exactness costs.

    python benchmarks/transformer_families.py [NAME …] [--factor 6] [--json PATH]

A row is calibrated on six batches of random inputs and compared on four others. *float ops*: calls on floats that the plan
leaves in float (masks and positions are computed on integers, and are none). *different*: codes of every edge in onnxruntime,
in QDQ form with all optimizations and in QOperator form with none and all. *exact*, *islands*: signal to noise of the first
float output against the float model, in dB, as planned and with softmax and attention left to float kernels. Weights are
random; those of queries and keys are multiplied by `--factor`, so that attention looks somewhere.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from tests.models import leaves, registry
from truequant.reports import versions
from truequant.runtimes import EdgeReader

RESULTS = Path(__file__).resolve().parent / "results" / "transformer_families.json"
WAYS = (("qdq", "all"), ("qoperator", "none"), ("qoperator", "all"))
_LOOKS = ("q_proj.weight", "k_proj.weight", "query.weight", "key.weight", ".q.weight", ".k.weight", "c_attn.weight",
          "query_key_value.weight", "Wqkv.weight", "q_lin.weight", "k_lin.weight")  # fmt: skip
_NEOX = registry._BERT | {"use_cache": False}
_MODERN = registry._BERT | {
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 4,
    "global_attn_every_n_layers": 2,
}  # fmt: skip


def _text() -> dict[str, Tensor]:
    return {"input_ids": registry.ids(first=3), "attention_mask": torch.ones(2, 9, dtype=torch.long)}


FAMILIES: dict[str, tuple[str, str, dict[str, Any], Callable[[], Any]]] = {
    title: (f"{name}Model", f"{name}Config", options, inputs)
    for title, (name, options, inputs) in registry._PACKAGE.items()
    if title not in ("ALBERT", "ConvNeXtV2", "MobileViT", "T5")
} | {
    "MPNet": ("MPNetModel", "MPNetConfig", registry._BERT, registry._TEXT),
    "T5, encoder": ("T5EncoderModel", "T5Config", registry._T5, _text),
    "DINOv2": ("Dinov2Model", "Dinov2Config", registry._VIT, registry._PIXELS),
    "BEiT": ("BeitModel", "BeitConfig", registry._VIT | {"use_relative_position_bias": True}, registry._PIXELS),
    "GPT-NeoX": ("GPTNeoXModel", "GPTNeoXConfig", _NEOX, registry._TEXT),
    "ModernBERT": ("ModernBertModel", "ModernBertConfig", _MODERN, registry._TEXT),
}  # fmt: skip


@dataclass
class Row:
    name: str
    float_ops: tuple[str, ...] = ()
    compared: int = 0
    different: int = 0
    exact: float = 0.0
    islands: float = 0.0


def call(model: Any, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(inputs)


def made(name: str, factor: float) -> tuple[nn.Module, Callable[[], Any]]:
    """The model, with biases and positions that are not 0, and its inputs."""
    import transformers

    kind, config, options, inputs = FAMILIES[name]
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, kind)(getattr(transformers, config)(**options)).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if key.endswith(_LOOKS):
                p.mul_(factor)
            elif "relative" in key or "position" in key:
                p.normal_(0, 0.5)
            elif "bias" in key:
                p.normal_(0, 0.05)
    return model, inputs


def ratio(wanted: list[Tensor], found: list[Tensor]) -> float:
    """Signal to noise in dB."""
    want, have = (torch.cat([t.double().flatten() for t in tensors]) for tensors in (wanted, found))
    return round(float(10 * torch.log10(want.square().sum() / (want - have).square().sum())), 2)


def first(model: Any, batches: list[Any]) -> list[Tensor]:
    with torch.no_grad():
        return [next(t for t in leaves(call(model, x)) if t.is_floating_point()) for x in batches]


def islands(model: nn.Module, inputs: Any) -> tq.QConfig:
    """A config that leaves softmax and attention in float."""
    ops = {site.op for site in tq.plan(model, inputs).sites}
    functions = {"softmax": torch.softmax, "scaled_dot_product_attention": F.scaled_dot_product_attention}
    return tq.QConfig(rules=tuple(tq.Rule(function, None) for op, function in functions.items() if op in ops))


def row_of(name: str, factor: float) -> Row:
    model, inputs = made(name, factor)
    seen, fresh = [inputs() for _ in range(6)], [inputs() for _ in range(4)]
    wanted, row = first(model, fresh), Row(name)
    for config in (tq.QConfig(), islands(model, seen[0])):
        qat = tq.prepare(model, seen[0], config)
        tq.calibrate(qat, seen, progress=False)
        found = ratio(wanted, first(qat.eval(), fresh))
        if config.rules:
            row.islands = found
            continue
        row.exact = found
        left = qat.binding.plan.in_float()
        row.float_ops = tuple(sorted({s.op for s in left if not s.reason.startswith("reads tensors that are not floating")}))
        int8 = tq.convert(qat)
        codes = call(int8.codes, fresh[0])
        for form, level in WAYS:
            shipped = call(EdgeReader(int8.program, form=form, level=level).codes, fresh[0])  # type: ignore[arg-type]
            row.compared += sum(want.numel() for want in codes.values())
            row.different += sum(int((want.int() != shipped[key].int()).sum()) for key, want in codes.items())
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="rows to make; all of them by default")
    parser.add_argument("--factor", type=float, default=6.0)
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in options.names or FAMILIES:
        rows.append(row := row_of(name, options.factor))
        ops = ", ".join(row.float_ops) or "none"
        print(f"{name:14} {ops:24} {row.different} of {row.compared:,}  {row.exact} dB, islands {row.islands}", flush=True)
    if not options.names:
        found = {"factor": options.factor, "versions": versions(), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if any(row.different or row.float_ops for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
