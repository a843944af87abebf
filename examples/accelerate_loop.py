"""accelerate: a prepared model is prepared once more, for whatever devices there are.

pip install 'truequant[huggingface]' && python examples/accelerate_loop.py      # half a minute; or: accelerate launch …
"""

import argparse

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import truequant as tq
from truequant.demo import lenet, load_mnist


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()

    torch.manual_seed(0)
    mnist = load_mnist()
    qat = tq.prepare(lenet(), mnist.train_images[:8], "int8")
    tq.calibrate(qat, mnist.train_images[:1000].split(100))

    accelerator = Accelerator()
    optimizer = torch.optim.SGD(tq.training.parameter_groups(qat, weight_decay=5e-4), 0.02, momentum=0.9)
    loader = DataLoader(TensorDataset(mnist.train_images, mnist.train_labels), 64, shuffle=True)
    model, optimizer, loader = accelerator.prepare(qat, optimizer, loader)
    schedule = tq.training.QATSchedule(freeze_batchnorm_at=options.steps * 3 // 4)
    model.train()
    for step, (x, y) in zip(range(options.steps), loader, strict=False):
        schedule.step(accelerator.unwrap_model(model))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        accelerator.backward(loss)
        optimizer.step()
        if step % 100 == 0:
            accelerator.print(f"step {step}: loss {loss.item():.3f}")

    trained = accelerator.unwrap_model(model).cpu().eval()
    if accelerator.is_main_process:
        print(tq.verify(trained, tq.convert(trained), mnist.test_images[:1000].split(500)))


if __name__ == "__main__":
    main()
