"""Run by an emulated CPU: onnxruntime on stored files, counted against stored codes. numpy and onnxruntime only."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime


def main(model: str, arrays: str) -> None:
    stored = np.load(arrays)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {i.name: stored[f"in:{i.name}"] for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    found = dict(zip(names, session.run(names, feeds), strict=True))
    different = {n: int((found[n] != stored[f"out:{n}"]).sum()) for n in names}
    print(json.dumps({"compared": sum(int(v.size) for v in found.values()), "different": different}))  # noqa: T201


if __name__ == "__main__":
    for pair in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        main(*pair)
