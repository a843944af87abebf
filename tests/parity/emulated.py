"""Run by an emulated CPU: a runtime on stored files, counted against stored codes. numpy and that runtime only."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np


def onnxruntime_on(model: str, feeds: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def openvino_on(model: str, feeds: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    import openvino

    core = openvino.Core()
    request = core.compile_model(core.read_model(model), "CPU", options).create_infer_request()
    return {name: np.array(array) for port, array in request.infer(feeds).items() for name in port.get_names()}


def main(model: str, arrays: str, runtime: str, options: dict[str, Any]) -> None:
    stored = np.load(arrays)
    names = [key.removeprefix("in:") for key in stored.files if key.startswith("in:")]
    found = {"onnxruntime": onnxruntime_on, "openvino": openvino_on}[runtime](
        model, {name: stored[f"in:{name}"] for name in names}, options
    )
    expected = [key.removeprefix("out:") for key in stored.files if key.startswith("out:")]
    different = {n: int((found[n] != stored[f"out:{n}"]).sum()) for n in expected}
    print(json.dumps({"compared": sum(int(found[n].size) for n in expected), "different": different}))  # noqa: T201


if __name__ == "__main__":
    chosen, given = sys.argv[1], json.loads(sys.argv[2])
    for pair in zip(sys.argv[3::2], sys.argv[4::2], strict=True):
        main(*pair, chosen, given)
