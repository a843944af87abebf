"""Writes the models of the present version; run once for each version that is released, never again for an old one.

    python -m tests.golden.models 0.2.0

Of each case: `NAME.tq`, the program; `NAME.ckpt`, the trained model that it was converted from; `NAME.plan.json`, its plan;
`NAME.json`, a digest of the codes on every edge.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

import truequant as tq
from tests.golden.nets import NETS, net

HERE = Path(__file__).resolve().parent
CASES = (
    ("convolutions", "int8"), ("convolutions", "w8a8"), ("convolutions", "w8a8-pow2"), ("convolutions", "w8a8-per-tensor"),
    ("convolutions", "w7a8"), ("convolutions", "w4a4"),
    ("attention", "w8a8"), ("attention", "w4a16"), ("attention", "w4a8-dynamic"), ("recurrent", "w8a8"),
)  # fmt: skip


def digests(codes: dict[str, Tensor]) -> dict[str, str]:
    return {name: hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest()[:16] for name, t in codes.items()}


def main() -> None:
    folder = HERE / sys.argv[1]
    folder.mkdir()
    for name, preset in CASES:
        example, at = NETS[name][1], folder / f"{name}-{preset}"
        model = net(name)
        plan = tq.plan(model, example, tq.QConfig.preset(preset))
        qat = tq.prepare(model, example, plan).train()
        optimizer = torch.optim.SGD(qat.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            qat(example).square().mean().backward()
            optimizer.step()
        int8 = tq.convert(qat.eval())
        at.with_name(f"{at.name}.plan.json").write_text(plan.to_json())
        tq.save_checkpoint(at.with_name(f"{at.name}.ckpt"), model=qat)
        int8.save(at.with_name(f"{at.name}.tq"))
        at.with_name(f"{at.name}.json").write_text(json.dumps(digests(int8.codes(example)), indent=1) + "\n")


if __name__ == "__main__":
    main()
