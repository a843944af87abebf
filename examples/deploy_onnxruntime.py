"""Deployment: the exported file in onnxruntime alone, with NumPy arrays; no torch, no truequant.

    python examples/mnist.py && python examples/deploy_onnxruntime.py model.onnx      # seconds, behind mnist.py

`answers` is the whole of what a server needs. Run without a file, the example makes one first.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime


def answers(file: Path, images: np.ndarray) -> np.ndarray:
    """Logits of float32 images (n, 1, 28, 28) in [0, 1]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # one request, one core
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (name,) = [value.name for value in session.get_inputs()]
    (found,) = session.run(None, {name: images})
    return found


def make(file: Path, images: np.ndarray) -> np.ndarray:
    """A calibrated LeNet in a file, and what the model that was validated says of the images."""
    import torch

    import truequant as tq
    from truequant.demo import lenet, load_mnist

    torch.manual_seed(0)
    batches = load_mnist().train_images[:500].split(100)
    qat = tq.calibrate(tq.prepare(lenet(), batches[0], "int8"), batches).eval()
    tq.export_onnx(tq.convert(qat), file)
    with torch.no_grad():
        return qat(torch.from_numpy(images)).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", help="an exported model")
    options = parser.parse_args()
    images = np.random.default_rng(0).random((64, 1, 28, 28), dtype=np.float32)
    if options.file is not None:
        print(answers(options.file, images).argmax(1))
        return
    expected = make(Path("lenet.onnx"), images)
    found = answers(Path("lenet.onnx"), images)
    print(f"{int((expected != found).sum())} of {expected.size} logits differ in any bit from the validated model's")


if __name__ == "__main__":
    main()
