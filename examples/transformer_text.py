"""A small BERT-like classifier of real sentences: which library does this docstring describe, NumPy, SymPy or NetworkX?

    python examples/transformer_text.py      # two minutes or three

The sentences are the docstrings in the installed sources of three packages that come with torch.
"""

import argparse
import ast
import re
from importlib.util import find_spec
from pathlib import Path
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq

PACKAGES = ("numpy", "sympy", "networkx")
WORDS, LENGTH = 4096, 32
Batch = tuple[dict[str, Tensor], Tensor]


def sentences(package: str, limit: int) -> list[str]:
    """First paragraphs of docstrings, in the order of the files."""
    found: list[str] = []
    for file in sorted(Path(find_spec(package).submodule_search_locations[0]).rglob("*.py")):
        if "test" in str(file) or len(found) >= limit:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (text := ast.get_docstring(node)):
                found.append(text.split("\n\n")[0])
    return found[:limit]


def encode(text: str) -> Tensor:
    """Words as numbers: 0 pads, others come from a hash. Names of the packages are left out, which would be cheating."""
    words = [w for w in re.findall(r"[a-z]{2,}", text.lower()) if w not in (*PACKAGES, "np", "nx")]
    return torch.tensor(([1 + crc32(w.encode()) % (WORDS - 1) for w in words] + [0] * LENGTH)[:LENGTH])


def load(limit: int = 2500) -> tuple[Tensor, Tensor]:
    """Word numbers (n, 32) and labels (n,), shuffled, as many of each package."""
    texts = [(encode(text), label) for label, package in enumerate(PACKAGES) for text in sentences(package, limit)]
    texts = [(ids, label) for ids, label in texts if int((ids > 0).sum()) >= 4]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    return torch.stack([texts[i][0] for i in order]), torch.tensor([texts[i][1] for i in order])


class Classifier(nn.Module):
    """Token and position embeddings, two encoder layers, the mean over words, a linear layer."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, width), nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.classifier = nn.Linear(width, len(PACKAGES))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(LENGTH, device=ids.device))
        return self.classifier(self.encoder(x).mean(1))


def train(model: nn.Module, ids: Tensor, labels: Tensor, learning_rate: float, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(ids), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(ids[chosen]), labels[chosen]).backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="of float training, and of quantization-aware training")
    parser.add_argument("--limit", type=int, default=2500, help="sentences of each package")
    options = parser.parse_args()

    torch.manual_seed(0)
    ids, labels = load(options.limit)
    held = len(ids) // 5
    model = Classifier()
    train(model, ids[held:], labels[held:], 2e-3, options.steps)

    qat = tq.prepare(model, ids[:8], "int8")
    print("stays float:", ", ".join(sorted({f"{s.op} ({s.reason})" for s in tq.plan(model, ids[:8], "int8").in_float()})))
    tq.calibrate(qat, ids[held : held + 512].split(64))
    train(qat, ids[held:], labels[held:], 2e-4, options.steps // 2)
    qat.eval()
    int8 = tq.convert(qat)
    with torch.no_grad():
        for name, form in (("float", model.eval()), ("quantization-aware", qat), ("Int8", int8)):
            print(f"{name:<20} {100 * (form(ids[:held]).argmax(1) == labels[:held]).double().mean():.2f} % of {held}")
    print(tq.verify(qat, int8, ids[:held].split(64), runtimes=("reference", "onnxruntime")))


if __name__ == "__main__":
    main()
