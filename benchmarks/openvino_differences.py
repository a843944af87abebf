"""How many codes differ in OpenVINO, and by how much: its own reading of QDQ form beside the form that is written for it.

    python benchmarks/openvino_differences.py [NAME …] [--presets w8a8 w8a8-pow2] [--json PATH]

Each model of the coverage table is trained for two steps and converted; every code of every edge of a batch of 16 is compared
with the reference program.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.exactness import inputs_of, trained
from tests.models import FAMILIES
from truequant.integer.binding import bind
from truequant.reports import versions
from truequant.runtimes import onnx_bytes
from truequant.runtimes.onnx.forms import FormName
from truequant.runtimes.openvino.session import compiled, run

MODELS = ("LeNet, tanh", "VGG", "ResNet", "DenseNet", "MobileNetV2", "MobileNetV3", "ShuffleNetV2", "U-Net", "YOLO")
FORMS: tuple[FormName, ...] = ("qdq", "openvino")
RESULTS = Path(__file__).resolve().parent / "results" / "openvino_differences.json"


def histogram(name: str, preset: str) -> dict[str, Any]:
    """Codes by their difference from the program's, for each form."""
    family = FAMILIES[name]
    int8, x = trained(family, preset), inputs_of(family, 16)
    expected = int8.codes(x)
    row: dict[str, Any] = {"model": name, "preset": preset}
    for form in FORMS:
        request = compiled(onnx_bytes(int8.program, form=form, show_edges=True)).create_infer_request()
        found = run(request, bind(int8.program, (x,), {}))
        counts: Counter[int] = Counter()
        for edge, codes in expected.items():
            values, numbers = (found[edge].int() - codes.int()).unique(return_counts=True)
            counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
        row[form] = {str(k): n for k, n in sorted(counts.items())}
    return row


def line(row: dict[str, Any]) -> str:
    """A row of the table of docs/runtimes.md."""
    cells = []
    for form in FORMS:
        counts = {int(k): n for k, n in row[form].items()}
        near, far = sum(counts.get(d, 0) for d in (-1, 1)), sum(n for d, n in counts.items() if abs(d) > 1)
        cells += [f"{near:,}", f"{far:,}", str(max(map(abs, counts)))]
    total = sum(row["qdq"].values())
    return f"| {row['model']} | {row['preset']} | {total:,} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--presets", nargs="*", default=["int8", "w8a8", "w8a8-pow2"])
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in options.names:
        for preset in options.presets:
            rows.append(histogram(name, preset))
            print(line(rows[-1]), flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        json.dumps({"versions": versions(), "threads": torch.get_num_threads(), "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
