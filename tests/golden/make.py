"""Writes the golden files of the present version; run once for each version that is released, never again for an old one.

python -m tests.golden.make
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

import truequant as tq
from tests.training_runs import Net, Run, started
from truequant.checkpoints.stored import VERSION

HERE = Path(__file__).resolve().parent


def digests(run: Run) -> dict[str, str]:
    """Of every tensor of the model; flags that are counted as numbers now, as the yes or no of the files."""
    flags = (".calibrated", ".held")
    state = {n: t.detach().bool() if n.endswith(flags) else t.detach() for n, t in run.model.state_dict().items()}
    return {n: hashlib.sha256(t.numpy().tobytes()).hexdigest() for n, t in state.items()}


def main() -> None:
    run = started("w4a4", "adam")
    run.train(3)
    tq.save_checkpoint(HERE / f"qat-v{VERSION}.ckpt", **run.parts(), step=3, extra={"note": [1, 2.5]})
    torch.manual_seed(0)
    tq.save_checkpoint(HERE / f"float-v{VERSION}.ckpt", model=Net(), step=1)
    (HERE / f"qat-v{VERSION}.json").write_text(json.dumps(digests(run), indent=1) + "\n")


if __name__ == "__main__":
    main()
